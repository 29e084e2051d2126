/* region.pml: one pair, two regions that are written again and again.

   What overwriting can break: the order of frames on old and new sessions [F8], the repair after a crash of the
   primary's process [F9], and the maps by which an old primary comes back. A region holds the number of the write that
   it has last; the higher number is newer. At most one write to a region is under way (overlapping ones are ordered).
   Phases: replicating; failed over (the old primary is gone); rejoin (the old primary is copied to by the union of all
   maps); equal. With -DROLLBACK there are also: apart (tripped), copying with a recovery point at the secondary, and from
   there a forced failover that rolls back to the point: what the roll-back touches is dirty at the new primary [F14].

   After a failover the new primary may write twice. Boot ids and epochs are in group.pml; here a secondary that lost
   power is simply never taken over. */
#include "rules.h"
#ifndef WRITES
#define WRITES 3
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef REBOOTS
#define REBOOTS 1
#endif
#define SESSIONS 3
#define LAST 4

mtype = { replicating, failed_over, rejoin, equal, apart, copying };
mtype = { serves, restarted, rebooted, gone };
mtype phase = replicating, primaryIs = serves;

byte cache[2], disk[2];                /* primary: the write each region has */
byte peerCache[2], peerDisk[2];        /* secondary */
byte point[2], undone;                 /* recovery point; regions written since */
byte intent, dirty, peerDirty, sent;   /* sets of regions */
byte region[LAST + 1];                 /* of each write */
byte issued, inFlight, applied, answered;  /* sets of writes (bit k: write k) */
byte frames[SESSIONS];
byte session, newest;                  /* the primary's, and the newest that the secondary has answered */
byte ackedIn[2];                       /* newest acknowledged write of each region */
byte repair;                           /* [F9] regions that the life before may have left different */
byte crashes, reboots, power, issuedBefore;
bool forced;

#define B(x) (1 << (x))
#define BUSY(r) ((inFlight & B(1) && region[1] == r) || (inFlight & B(2) && region[2] == r) || \
                 (inFlight & B(3) && region[3] == r) || (inFlight & B(4) && region[4] == r))
/* [F8] the hello has closed and drained every older session */
#define OPEN(s) (!RULE_F8 || s == newest)
#define NOTHING_LOST (peerCache[0] >= ackedIn[0] && peerCache[1] >= ackedIn[1])
#define SAME (cache[0] == peerCache[0] && cache[1] == peerCache[1])
#ifdef BAD_NO_UNION
#define KNOWN_DIFFERENT peerDirty
#else
#define KNOWN_DIFFERENT (intent | dirty | peerDirty)
#endif

inline reconnect() { session++; newest = session }
inline forget_flight() { inFlight = 0; applied = 0; answered = 0 }
inline flush_both() { disk[0] = cache[0]; disk[1] = cache[1]; peerDisk[0] = peerCache[0]; peerDisk[1] = peerCache[1] }

proctype Guest(byte r) {
end: do
  :: d_step { phase == replicating && primaryIs == serves && session == newest && issued < WRITES && !BUSY(r) && !(repair & B(r)) ->
     issued++; region[issued] = r; inFlight = inFlight | B(issued);
     printf("guest: write %d to region %d\n", issued, r);
#ifndef BAD_LATE_INTENT
     intent = intent | B(r);                                            /* marked before it goes anywhere */
#endif
     frames[session] = frames[session] | B(issued) }
  /* the new primary's guests */
  :: d_step { (phase == failed_over || phase == rejoin) && issued < issuedBefore + 2 && issued < LAST ->
     issued++; printf("guest: write %d to region %d at the new primary\n", issued, r);
     peerDirty = peerDirty | B(r); sent = sent & ~B(r); peerCache[r] = issued }
#ifdef ROLLBACK
  :: d_step { (phase == apart || phase == copying) && issued < WRITES ->
     issued++; printf("guest: write %d to region %d, one-sided\n", issued, r);
     intent = intent | B(r); dirty = dirty | B(r); cache[r] = issued;
     if :: phase == copying -> peerCache[r] = issued; undone = undone | B(r) :: skip fi }   /* copying, it may come with its chunk */
  :: d_step { phase == copying && (dirty & B(r)) ->
     printf("region %d is copied\n", r); peerCache[r] = cache[r]; undone = undone | B(r);
     if :: RULE_F14 -> skip :: else dirty = dirty & ~B(r); intent = intent & ~B(r) fi }    /* [F14] noted, not cleared */
#endif
  od
}

proctype Write(byte k) {
  byte s;
end: do
  :: d_step { phase == replicating && primaryIs == serves && (inFlight & B(k)) && !(applied & B(k)) ->
     applied = applied | B(k); cache[region[k]] = k }
#ifdef BAD_LATE_INTENT
  :: d_step { (inFlight & applied & B(k)) -> intent = intent | B(region[k]) }
#endif
  :: d_step { phase == replicating && (frames[0] & B(k)) && OPEN(0) -> s = 0; frames[0] = frames[0] & ~B(k); peerCache[region[k]] = k;
     if :: s == session -> answered = answered | B(k) :: else printf("an old session's frame of write %d is applied\n", k) fi }
  :: d_step { phase == replicating && (frames[1] & B(k)) && OPEN(1) -> s = 1; frames[1] = frames[1] & ~B(k); peerCache[region[k]] = k;
     if :: s == session -> answered = answered | B(k) :: else printf("an old session's frame of write %d is applied\n", k) fi; s = 0 }
  :: d_step { phase == replicating && primaryIs == serves && (inFlight & applied & answered & B(k)) ->
     printf("primary: acknowledges write %d\n", k); inFlight = inFlight & ~B(k); ackedIn[region[k]] = k }
  od
}

proctype Node() {
end: do
  :: d_step { disk[0] != cache[0] -> disk[0] = cache[0] }
  :: d_step { disk[1] != cache[1] -> disk[1] = cache[1] }
  :: d_step { peerDisk[0] != peerCache[0] || peerDisk[1] != peerCache[1] -> peerDisk[0] = peerCache[0]; peerDisk[1] = peerCache[1] }
  :: d_step { phase == replicating && primaryIs == serves && session < SESSIONS - 2 && inFlight ->
     printf("primary: connects again, sends again what is unacknowledged\n");
     reconnect(); frames[session] = frames[session] | (inFlight & ~answered) }
  :: d_step { phase == replicating && primaryIs == serves && intent && !inFlight && !repair -> flush_both(); intent = 0 }
#ifdef BAD_CLEAR_UNFLUSHED
  :: d_step { phase == replicating && primaryIs == serves && intent && !inFlight && !repair -> intent = 0 }
#endif
#ifdef BAD_CLEAR_UNREPAIRED
  :: d_step { phase == replicating && primaryIs == serves && intent && !inFlight -> flush_both(); intent = 0; repair = 0 }
#endif
  :: d_step { crashes < CRASHES && phase == replicating && primaryIs == serves ->
     printf("primary: its process dies\n"); crashes++; primaryIs = restarted; forget_flight(); repair = 0 }
  :: d_step { power == 0 && reboots < REBOOTS && phase == replicating && primaryIs != gone ->
     printf("primary: its host loses power\n"); reboots++; primaryIs = rebooted; forget_flight(); repair = 0;
     cache[0] = disk[0]; cache[1] = disk[1] }
  :: d_step { power == 0 && reboots < REBOOTS && (phase == failed_over || phase == rejoin) ->
     printf("old primary: its host loses power\n"); reboots++; cache[0] = disk[0]; cache[1] = disk[1]; sent = 0 }
  :: d_step { phase == replicating && primaryIs == restarted && session < SESSIONS - 2 ->
     printf("primary: starts again\n"); reconnect(); primaryIs = serves;
     if :: RULE_F9 -> repair = intent :: else fi }                                                       /* [F9] */
  :: d_step { repair & 1 -> printf("region 0 is repaired\n"); peerCache[0] = cache[0]; repair = repair & ~1 }
  :: d_step { repair & 2 -> printf("region 1 is repaired\n"); peerCache[1] = cache[1]; repair = repair & ~2 }
  :: d_step { phase == replicating && primaryIs == rebooted && session < SESSIONS - 2 ->                       /* [F2] */
     printf("primary: takes its marked regions back\n"); reconnect(); primaryIs = serves;
     if :: intent & 1 -> cache[0] = peerCache[0]; disk[0] = cache[0] :: else fi;
     if :: intent & 2 -> cache[1] = peerCache[1]; disk[1] = cache[1] :: else fi }
  /* failover */
  :: d_step { phase == replicating -> printf("failover\n"); phase = failed_over; primaryIs = gone;
     assert(NOTHING_LOST); peerDisk[0] = peerCache[0]; peerDisk[1] = peerCache[1];
     frames[0] = 0; frames[1] = 0; forget_flight(); repair = 0; issuedBefore = issued }
  :: d_step { power == 1 && reboots < REBOOTS && (phase == failed_over || phase == rejoin) ->
     printf("new primary: its host loses power\n"); reboots++; peerCache[0] = peerDisk[0]; peerCache[1] = peerDisk[1];
#ifdef BAD_VOLATILE_DIRTY
     peerDirty = 0;
#endif
     phase = failed_over; sent = 0 }
  /* rejoin: the union of the maps is sent; nothing is cleared before it is in sync [F14] */
  :: d_step { phase == failed_over -> printf("the old primary is back, its maps are united with the new one's\n"); phase = rejoin; sent = 0 }
#ifdef BAD_CLEAR_WHEN_SENT
  :: d_step { phase == rejoin && (KNOWN_DIFFERENT & 1) -> cache[0] = peerCache[0]; intent = intent & ~1; dirty = dirty & ~1; peerDirty = peerDirty & ~1 }
  :: d_step { phase == rejoin && (KNOWN_DIFFERENT & 2) -> cache[1] = peerCache[1]; intent = intent & ~2; dirty = dirty & ~2; peerDirty = peerDirty & ~2 }
#else
  :: d_step { phase == rejoin && (KNOWN_DIFFERENT & ~sent & 1) -> cache[0] = peerCache[0]; sent = sent | 1 }
  :: d_step { phase == rejoin && (KNOWN_DIFFERENT & ~sent & 2) -> cache[1] = peerCache[1]; sent = sent | 2 }
#endif
  :: d_step { phase == rejoin && (KNOWN_DIFFERENT & ~sent) == 0 -> printf("in sync again\n"); flush_both(); assert(SAME); phase = equal }
#ifdef ROLLBACK
  :: d_step { phase == replicating && primaryIs == serves && !repair -> printf("tripped\n"); phase = apart; disk[0] = cache[0]; disk[1] = cache[1];
     dirty = dirty | intent; frames[0] = 0; frames[1] = 0; forget_flight() }
  :: d_step { phase == apart && dirty -> printf("copying begins, the secondary sets its point\n"); phase = copying;
     point[0] = peerCache[0]; point[1] = peerCache[1]; undone = 0 }
  :: d_step { phase == copying -> printf("forced failover: rolled back to the point\n"); phase = failed_over; primaryIs = gone;
     peerCache[0] = point[0]; peerCache[1] = point[1]; peerDisk[0] = point[0]; peerDisk[1] = point[1];
     if :: RULE_F14 -> peerDirty = peerDirty | undone :: else fi;                                               /* [F14] */
     undone = 0; issuedBefore = issued }
#endif
  od
}

proctype Watch() {
end: do
  /* an acknowledged write is never newer than what the secondary has */
  :: d_step { phase == replicating && !NOTHING_LOST -> assert(0) }
  :: d_step { phase == replicating && primaryIs == serves && !inFlight && !repair && !frames[newest] && !SAME -> assert(0) }
  od
}

/* once nothing happens to it any more, it serves, equal and idle, or both sides are equal after the rejoin */
#define settled (phase == equal || phase == replicating && primaryIs == serves && !inFlight && !repair)
#ifdef LIVE
ltl settles { <> [] settled }
#endif
init {
  if :: power = 0 :: power = 1 fi;
  atomic { run Guest(0); run Guest(1); run Write(1); run Write(2);
#if WRITES > 2
  run Write(3);
#endif
  run Node(); run Watch() }
}
