/* group.pml: one record, PAIRS pairs, each with a primary and a secondary node of its own.

   The heart of the protocol: a trip and its way back, an operator's `continue` and `confirm-node-off`, pause,
   synchronization, failover and its back-out, and what nodes do after a crash, a reboot or a cut link, boot ids
   included. With PAIRS=1 the boot ids and the life of one volume are explored deeply; with PAIRS=2 the question is
   whether the secondaries' images stay one consistent cut.

   A write is a bit and has a region of its own (overwrites are in region.pml). With PAIRS=2 write k belongs to pair
   k mod 2, and is issued only after write k-1 was acknowledged: a guest that orders its writes over two volumes.
   Data has two places on each side: `cache` is what reads see, `disk` is what a power loss leaves. The kernel may
   write back at any time. A link holds the frames under way as a set, which stands for loss, delay and duplication;
   a frame belongs to the epoch that its secondary has persisted, and is refused (dropped) when that moves on.

   `calm` ends all faults and all users' calls. Safety: process Watch, in every state. Liveness: after calm the group
   comes to rest with every primary serving, or every new primary after a failover. Reads and leases: lease.pml. */
#include "rules.h"

#ifndef PAIRS
#define PAIRS 1
#endif
#ifndef WRITES
#define WRITES 1
#endif
/* how often each may happen in a run */
#ifndef CRASHES
#define CRASHES 1            /* a primary's process */
#endif
#ifndef REBOOTS
#define REBOOTS 1            /* a host, with loss of what was not written back */
#endif
#ifndef TRIPS
#define TRIPS 1
#endif
#ifndef PAUSES
#define PAUSES 0
#endif
#ifndef SYNCS
#define SYNCS 1
#endif
#ifndef FAILOVERS
#define FAILOVERS 1
#endif
#ifndef WAYSBACK
#define WAYSBACK 1           /* from tripping, and from failovering, to in sync */
#endif
#ifndef STATEMENTS
#define STATEMENTS 0         /* of an operator: continue, confirm-node-off */
#endif
#ifndef CUTS
#define CUTS 1               /* of a link; 0: none */
#endif
#ifndef HEALS
#define HEALS 0              /* 1: once calm, the controller synchronizes by itself */
#endif
/* Which hosts may lose power: the promise ends where both sides of a pair do, but for what both had flushed. */
#ifndef POWER
#define POWER (POWER_PRIMARY + POWER_SECONDARY)
#endif
#define POWER_PRIMARY 1
#define POWER_SECONDARY 2
#define POWER_BOTH 4

mtype = { normal, tripping, copying, failovering }                                      /* states of the record */
mtype = { down, held, two_sided, one_sided, copy_one, copy_two_sided, refused }         /* modes of a volume */

typedef Record {
  byte epoch; mtype state; bool inSync; bool failedOver; bool pause;
  byte insyncEpoch; byte continueAt;
  byte primaryBoot[PAIRS]; byte secondaryBoot[PAIRS]; byte offAt[PAIRS]
};
typedef PrimaryNode {
  mtype mode; mtype state; bool inSync;   /* state and inSync: of the record it has persisted */
  byte epoch; bool adopted;               /* persisted; in force in this life of the process */
  bool restarted;                         /* this process began at the persisted epoch */
  byte boot; bool hostOff; byte mark;
  byte cache; byte disk;                  /* sets of writes */
  byte pending; byte intent; byte dirty; byte sent; byte repair;
  byte peerRecorded; byte ownRecorded;    /* boot ids of the secondary and of itself in the record it has persisted */
  byte peerBoot; bool announced;          /* of this session */
  bool reported;
  bool flushing; byte flushSet; byte flushBoot;
  byte confirmed;                         /* answer: tripping, at that epoch */
  bool drained; bool peersBack; bool confirmedBoot;
  byte report; byte reportBoot; byte reportPeerBoot; /* answer: two-sided, at that epoch */
  bool cut                                /* from the store */
};
typedef SecondaryNode {
  byte epoch; byte boot; byte cache; byte disk; byte mark; bool serving;
  byte point; byte pointEpoch;
  byte ready; byte readyBoot;             /* answer: ready, at that epoch */
  byte fenced                             /* answer: fenced, at that epoch */
};
typedef LinkState { bool up; byte frames; byte acks };

Record record;
PrimaryNode primary[PAIRS];
SecondaryNode secondary[PAIRS];
LinkState link[PAIRS];
bool calm;
byte issued, acked, weak;     /* acked: with both copies, or safe since a commit; weak: one-sided, not yet safe */
bool excused;                 /* a one-sided node lost power: its unflushed writes may be missing, as on any disk */
byte crashes, reboots, trips, pauses, syncs, failovers, waysBack, statements;
byte power;                   /* which hosts may lose power in this run */
byte cuts;

#define P primary[n]
#define S secondary[n]
#define L link[n]
#define BIT (1 << issued)
#if PAIRS == 1
#define MINE(n) 255
#define TURN(n) 1
#define EVERY(c) (c(0))
#define SOME(c) (c(0))
#else
#define MINE(n) (n == 0 -> 85 : 170)
#define TURN(n) (issued % 2 == n && (issued == 0 || ((acked | weak) & (1 << (issued - 1)))))
#define EVERY(c) (c(0) && c(1))
#define SOME(c) (c(0) || c(1))
#endif
#define SERVES(m) (m == two_sided || m == one_sided || m == copy_one || m == copy_two_sided)
/* A frame of an older epoch than its secondary has persisted is refused. */
#ifdef BAD_OLD_EPOCHS
#define TAKEN(n) 1
#else
#define TAKEN(n) (secondary[n].epoch == primary[n].epoch)
#endif
#define SENDS(n) (TAKEN(n) && link[n].up && primary[n].announced && (primary[n].mode == two_sided || primary[n].mode == copy_one || primary[n].mode == copy_two_sided))
#define SEES(n) (primary[n].mode != down && !primary[n].cut)
/* a node cut from the store learns of a newer record when its secondary has persisted it [F22] */
#define READS(n) (primary[n].mode != down && (!primary[n].cut || (RULE_F22 && link[n].up && secondary[n].epoch >= record.epoch)))
#define MARK_VALID(n) (primary[n].mark > (RULE_F4 -> record.insyncEpoch : 0))                                   /* [F4] */
#define TAKE_BACK(n) (RULE_F2 && record.primaryBoot[n] != primary[n].boot && !MARK_VALID(n))                    /* [F2] */
#define RECORDED(n) (secondary[n].boot == record.secondaryBoot[n])
#define AT_REST(n) (primary[n].state == normal && primary[n].inSync)
#define TODO(n) (primary[n].dirty & ~primary[n].sent)
#define SERVING(n) secondary[n].serving
#define CUT(n) primary[n].cut
#ifdef ONE_STAYS_DOWN         /* the second primary's process, once dead and calm, is started by nobody */
#define STAYS_DOWN(n) (n == 1)
#else
#define STAYS_DOWN(n) 0
#endif
/* The answers that end a transition: each at exactly the record's epoch. */
#ifdef BAD_STALE_ANSWERS
#define AT(e) (e != 0)
#else
#define AT(e) (e == record.epoch)
#endif
#define HOLDS(n) AT(primary[n].confirmed)
#ifdef BAD_FENCE_UNASKED
#define FENCED(n) (record.continueAt == record.epoch)
#else
#define FENCED(n) (record.continueAt == record.epoch && secondary[n].fenced == record.epoch)                      /* [F10] */
#endif
#define CONFIRMED(n) (HOLDS(n) || FENCED(n) || record.offAt[n] == record.epoch)
#define BACK(n) (!HOLDS(n) || (primary[n].peersBack && primary[n].confirmedBoot))                                        /* [F21] */
#define REPORTED(n) AT(primary[n].report)
#ifdef BAD_COMMIT_BOOT
#define COMMIT_BOOTS(n) record.secondaryBoot[n] = secondary[n].boot; record.primaryBoot[n] = primary[n].boot
#else
#define COMMIT_BOOTS(n) record.secondaryBoot[n] = primary[n].reportPeerBoot; record.primaryBoot[n] = primary[n].reportBoot  /* [F6] */
#endif
#define READY(n) (secondary[n].ready == record.epoch && (!RULE_F1 || secondary[n].readyBoot == record.secondaryBoot[n]))     /* [F1] */
#define OTHER_LIFE(n) (RULE_F1 && secondary[n].ready == record.epoch && secondary[n].readyBoot != record.secondaryBoot[n])
#ifdef BAD_FAILOVER_ONE
#define FAILOVER_READY SOME(READY)
#else
#define FAILOVER_READY EVERY(READY)
#endif
#define BACKOUT_OK EVERY(READY)       /* boot ids are not renewed by it [F17] */
#ifdef NO_HOST_OFF
#define SAID_OFF(n) (primary[n].mode == down)
#else
#define SAID_OFF(n) (primary[n].mode == down && primary[n].hostOff)     /* [R] the word is about the host, not about its process */
#endif

#define ADVANCE(to) record.epoch++; record.state = to
inline commit_in_sync() {
  ADVANCE(normal); record.inSync = 1; record.insyncEpoch = record.epoch; record.pause = 0
}
inline drop_session() {      /* the connection is gone; frames under way may still arrive at an older one's end */
  L.up = 0; P.announced = 0;
  if :: RULE_F8 -> L.acks = 0 :: else fi;            /* [F8] an answer counts on its session only */
  if :: (P.mode == copy_one || P.mode == copy_two_sided) && !(RULE_F7 && P.reported) -> P.mode = one_sided  /* [F7] */
     :: else fi
}
inline persist() {        /* the record's epoch is durable at the primary, and in force */
  P.epoch = record.epoch; P.state = record.state; P.inSync = record.inSync; P.adopted = 1; P.restarted = 0;
  P.peerRecorded = record.secondaryBoot[n]; P.ownRecorded = record.primaryBoot[n];
  P.announced = 0; P.reported = 0; P.flushing = 0; P.flushSet = 0; P.flushBoot = 0; L.acks = 0
}
inline leave_in_sync() {     /* [F3] flushed before the epoch is persisted, and marked with it */
  if :: !MARK_VALID(n) -> if :: RULE_F3 -> P.disk = P.cache :: else fi; P.mark = record.epoch :: else fi
}
/* The secondary persists an epoch: older frames are refused from now on. */
#ifdef BAD_OLD_EPOCHS
#define RAISE(e) S.epoch = e
#else
#define RAISE(e) S.epoch = e; L.frames = 0
#endif
inline set_point() {         /* [F13] a point newer than the last in-sync commit is the good one: it is kept */
  if :: RULE_F13 && S.pointEpoch > record.insyncEpoch -> skip
     :: else -> S.point = S.cache; S.pointEpoch = P.epoch fi
}

proctype Primary(byte n) {
end: do
  /* ---- the data path */
  :: d_step { !calm && issued < WRITES && TURN(n) && P.adopted && SERVES(P.mode) ->
     printf("guest %d: writes %d\n", n, BIT);
     P.cache = P.cache | BIT; P.pending = P.pending | BIT;
#ifndef BAD_NO_INTENT
     P.intent = P.intent | BIT;                                 /* [R] marked before it goes anywhere */
#endif
     if :: SENDS(n) -> L.frames = L.frames | BIT :: else fi;
     if :: P.mode != two_sided -> P.dirty = P.dirty | BIT :: else fi;
     issued++ }
  :: d_step { (P.mode == two_sided || P.mode == copy_two_sided) && (P.pending & L.acks) ->
     printf("primary %d: acknowledges %d, it is on both sides\n", n, P.pending & L.acks);
     if :: P.mode == two_sided -> acked = acked | (P.pending & L.acks)
        :: else -> weak = weak | (P.pending & L.acks) fi;       /* until in sync is committed it is one disk's promise */
     P.pending = P.pending & ~L.acks }
  :: d_step { (P.mode == one_sided || P.mode == copy_one) && P.pending ->
     printf("primary %d: acknowledges %d one-sided\n", n, P.pending);
     assert(!SOME(SERVING));                                    /* two primaries */
     weak = weak | P.pending; P.dirty = P.dirty | P.pending; P.pending = 0 }
  :: d_step { P.adopted && AT_REST(n) && (P.repair & L.acks) -> P.repair = P.repair & ~L.acks }
  :: d_step { P.disk != P.cache -> P.disk = P.cache }           /* the kernel writes back */

  /* ---- the background flush clears marks [F6] */
  :: d_step { !calm && P.mode == two_sided && L.up && !P.flushing && (P.intent & ~(P.pending | P.repair)) ->
     P.disk = P.cache; P.flushing = 1; P.flushSet = P.intent & ~(P.pending | P.repair); P.flushBoot = P.peerBoot }
  :: d_step { P.flushing && P.mode == two_sided && SENDS(n) ->
#ifndef BAD_FLUSH_ONE_SIDE
     S.disk = S.cache;
#endif
     if :: !RULE_F6 || S.boot == P.flushBoot -> printf("primary %d: both sides flushed, marks %d cleared\n", n, P.flushSet);
           P.intent = P.intent & ~P.flushSet
        :: else fi;
     P.flushing = 0; P.flushSet = 0; P.flushBoot = 0 }

  /* ---- the connection */
  :: d_step { P.mode != down && P.mode != refused && !L.up && !S.serving ->
     printf("primary %d: connects, the secondary's boot id is %d\n", n, S.boot);
     L.up = 1; L.frames = 0;
     if :: S.boot != P.peerBoot -> P.sent = 0 :: else fi;       /* [F6] another life: nothing sent counts */
     P.peerBoot = S.boot }
  :: d_step { !calm && cuts < CUTS && L.up -> printf("link %d: cut\n", n); cuts++; drop_session() }
  :: d_step { L.up && P.peerBoot != S.boot -> printf("link %d: ends with the secondary's host\n", n); drop_session() }
  :: d_step { L.up && P.adopted && !P.announced && S.epoch <= P.epoch && !S.serving &&
              (P.state == copying || AT_REST(n) && (P.peerBoot == P.peerRecorded)) ->
     printf("primary %d: announces epoch %d, the secondary persists it\n", n, P.epoch);
     if :: S.epoch < P.epoch -> RAISE(P.epoch);
           if :: P.state == copying -> set_point() :: else S.pointEpoch = 0; S.point = 0 fi
        :: else fi;
     S.mark = 0; P.announced = 1;
     if :: P.state == copying -> P.mode = (P.reported -> copy_two_sided : copy_one) :: else P.mode = two_sided fi;
#ifndef BAD_NO_RESEND
     L.frames = L.frames | P.pending | P.repair                 /* [R] what is unacknowledged goes again */
#endif
     }

  /* ---- a trip is asked for at the epoch that this node knows */
  :: d_step { SEES(n) && P.mode == two_sided && record.state == normal && record.inSync && record.epoch == P.epoch &&
              (!calm && trips < TRIPS || L.up && P.peerBoot != P.peerRecorded) ->
     printf("primary %d: asks for a trip\n", n);
     if :: !calm && trips < TRIPS -> trips++ :: else fi;
     ADVANCE(tripping) }
  :: d_step { SEES(n) && P.mode == held && P.adopted && AT_REST(n) && record.epoch == P.epoch && record.state == normal &&
              L.up && P.peerBoot != P.peerRecorded ->
     printf("primary %d: asks for a trip: the secondary has rebooted\n", n); ADVANCE(tripping) }

  /* ---- a newer record is adopted */
  :: d_step { READS(n) && record.state == tripping && !record.failedOver && (P.epoch < record.epoch || !P.adopted) && !TAKE_BACK(n)->
     printf("primary %d: holds, flushes, persists tripping epoch %d\n", n, record.epoch);
     P.drained = (P.pending == 0 && P.repair == 0);
     if :: RULE_F3 -> P.disk = P.cache :: else fi; P.mark = record.epoch;
     persist(); P.mode = held; P.confirmed = 0; P.peersBack = 0 }
  :: d_step { SEES(n) && P.adopted && P.state == tripping && P.epoch == record.epoch && P.confirmed != P.epoch ->
     printf("primary %d: answers: tripping\n", n);
     P.confirmed = P.epoch; P.confirmedBoot = (P.boot == record.primaryBoot[n]) }
  :: d_step { SEES(n) && P.adopted && P.confirmed == record.epoch && L.up && P.peerBoot == P.peerRecorded && !P.peersBack ->
     printf("primary %d: answers: its secondary is back\n", n); P.peersBack = 1 }
  :: d_step { READS(n) && record.state == failovering && (P.epoch < record.epoch || !P.adopted) ->
     printf("primary %d: holds, persists failovering epoch %d\n", n, record.epoch); persist(); P.mode = held }
  :: d_step { READS(n) && record.state == normal && record.inSync && !record.failedOver && (P.epoch < record.epoch || !P.adopted) &&
              !TAKE_BACK(n) ->
     printf("primary %d: adopts epoch %d, in sync\n", n, record.epoch);
     P.mark = 0; P.dirty = 0; P.sent = 0;                        /* [F4] [F14] */
     persist(); P.mode = held }
  :: d_step { READS(n) && (P.adopted || !P.cut) && record.state == normal && !record.inSync && !record.failedOver &&
              (P.epoch < record.epoch || !P.adopted) && !TAKE_BACK(n) ->
     printf("primary %d: adopts epoch %d, goes on one-sided\n", n, record.epoch);
     leave_in_sync();
     P.dirty = P.dirty | P.intent | P.pending; P.repair = 0;
     persist(); P.mode = one_sided }
  :: d_step { SEES(n) && record.state == copying && (P.epoch < record.epoch || !P.adopted && !(RULE_F19 && P.restarted)) && !TAKE_BACK(n) ->
     printf("primary %d: adopts copying epoch %d\n", n, record.epoch);
     leave_in_sync();
     P.dirty = P.dirty | P.intent | P.pending; P.repair = 0; P.sent = 0;
     persist(); P.mode = one_sided }
  :: d_step { SEES(n) && record.state == copying && (P.epoch == record.epoch && !P.adopted && P.restarted || TAKE_BACK(n)) ->
     printf("primary %d: restarted in copying epoch %d, aborts it\n", n, record.epoch); ADVANCE(normal) }  /* [F19] */
  :: d_step { READS(n) && record.failedOver && record.state == normal && P.mode != refused ->
     printf("primary %d: demotes itself at epoch %d\n", n, record.epoch);
     persist(); P.mode = refused; P.pending = 0; P.repair = 0; drop_session() }

  /* ---- after a start without the store: only what was persisted in sync, and by this life of the host [R] */
  :: d_step { P.mode == held && !P.adopted && AT_REST(n) && P.boot == P.ownRecorded ->
     printf("primary %d: goes on at the persisted epoch %d\n", n, P.epoch); P.adopted = 1; P.restarted = 0 }

  /* ---- after a reboot [F2] [F5] */
  :: d_step { SEES(n) && P.mode == held && TAKE_BACK(n) && L.up && P.peerBoot == S.boot && !record.failedOver &&
              (record.state == normal || record.state == tripping) && RECORDED(n) ->
     printf("primary %d: takes %d back from its secondary, records its new boot id\n", n, P.intent);
     P.cache = (P.cache & ~P.intent) | (S.cache & P.intent); P.disk = P.cache; P.pending = 0; P.repair = 0;
     record.primaryBoot[n] = P.boot; ADVANCE(record.state) }
  :: d_step { SEES(n) && P.mode == held && TAKE_BACK(n) && L.up && P.peerBoot == S.boot && !record.failedOver &&
              (record.state == normal || record.state == tripping) && !RECORDED(n) && RULE_F5 ->
     printf("primary %d: both sides rebooted, keeps its own image\n", n);
     record.primaryBoot[n] = P.boot; P.disk = P.cache;
#ifdef BAD_F5_DIRECT
     record.inSync = 0; ADVANCE(normal)
#else
     if :: record.inSync -> ADVANCE(tripping) :: else ADVANCE(record.state) fi
#endif
     }

  /* ---- synchronization */
  :: d_step { P.mode == copy_one && (P.dirty & L.acks & ~P.sent) -> P.sent = P.sent | (P.dirty & L.acks) }
  :: d_step { (P.mode == copy_one || P.mode == copy_two_sided) && SENDS(n) && P.peerBoot == S.boot && TODO(n) ->
     printf("primary %d: sends dirty %d\n", n, TODO(n));
     S.cache = (S.cache & ~TODO(n)) | (P.cache & TODO(n));
     if :: RULE_F14 -> P.sent = P.sent | TODO(n) :: else P.intent = P.intent & ~P.dirty; P.dirty = 0 fi }   /* [F14] noted, not cleared */
  :: d_step { P.mode == copy_one && SENDS(n) && TODO(n) == 0 && P.pending == 0 ->
     printf("primary %d: nothing is left, obeys both sides' rules\n", n); P.mode = copy_two_sided }
  :: d_step { SEES(n) && P.mode == copy_two_sided && !P.reported && SENDS(n) && P.peerBoot == S.boot &&
              TODO(n) == 0 && P.pending == 0 && P.epoch == record.epoch ->
     printf("primary %d: both sides flushed, answers: two-sided\n", n);
     P.disk = P.cache; S.disk = S.cache;
     P.reported = 1; P.report = P.epoch; P.reportBoot = P.boot; P.reportPeerBoot = S.boot }
  :: d_step { SEES(n) && P.mode == copy_two_sided && P.reported && record.state == copying && record.epoch == P.epoch &&
              L.up && P.peerBoot != P.reportPeerBoot ->
     printf("primary %d: its secondary has rebooted since the report, aborts\n", n); ADVANCE(normal) }

  /* ---- faults and starts */
#ifdef STORE_CUTS
  :: d_step { !calm && !SOME(CUT) -> printf("primary %d: loses the store for good\n", n); P.cut = 1 }
#endif
  :: d_step { !calm && crashes < CRASHES && P.mode != down && P.mode != refused ->
     printf("primary %d: its process dies\n", n); crashes++;
     drop_session(); P.mode = down; P.adopted = 0; P.pending = 0; P.repair = 0; P.flushing = 0; P.flushSet = 0; P.flushBoot = 0;
     P.sent = 0; P.reported = 0 }
  :: d_step { !calm && reboots < REBOOTS && power != POWER_SECONDARY && P.mode != refused ->
     printf("primary %d: its host loses power\n", n); reboots++;
     drop_session(); P.mode = down; P.adopted = 0; P.pending = 0; P.repair = 0; P.flushing = 0; P.flushSet = 0; P.flushBoot = 0;
     P.sent = 0; P.reported = 0;
     if :: P.hostOff -> skip :: else P.boot++ fi;
     P.hostOff = 1;
     if :: weak & MINE(n) & ~P.disk -> excused = 1 :: else fi;
     P.cache = P.disk; weak = weak & ~(MINE(n) & ~P.disk);
     if :: power == POWER_BOTH && S.boot > 1 -> acked = acked & ~(MINE(n) & ~(P.disk & S.disk)) :: else fi }
  :: d_step { P.mode == down && !(calm && STAYS_DOWN(n)) ->
     printf("primary %d: starts\n", n); P.mode = held; P.hostOff = 0; P.restarted = 1;
     if :: RULE_F9 -> P.repair = P.intent & P.cache :: else fi }         /* [F9] what the life before may have left different */
  od
}

proctype Secondary(byte n) {
end: do
  :: d_step { L.frames && S.epoch > 0 && (L.frames & ~(S.cache & L.acks)) && (L.up || !RULE_F8 || (L.frames & ~S.cache)) ->
     printf("secondary %d: applies %d\n", n, L.frames);
     assert(!S.serving);
     S.cache = S.cache | L.frames; if :: L.up || !RULE_F8 -> L.acks = L.acks | L.frames :: else fi; L.frames = 0 }
  :: d_step { S.disk != S.cache -> S.disk = S.cache }
  /* ---- failover [F1] */
  :: d_step { record.state == failovering && S.ready != record.epoch ->
     printf("secondary %d: persists failovering epoch %d, flushes, answers: ready\n", n, record.epoch);
     if :: RULE_F1 -> RAISE(record.epoch);
#ifndef BAD_READY_UNFLUSHED
           S.disk = S.cache;
#endif
        :: else fi;
     S.mark = record.epoch;                                     /* [F3] it may be the primary when it starts again */
#ifdef NO_MARK_AT_READY
     S.mark = 0;
#endif
     S.ready = record.epoch; S.readyBoot = S.boot }
  :: d_step { record.failedOver && record.state == normal && !S.serving && (S.boot == record.secondaryBoot[n] || S.mark > record.insyncEpoch) ->
     printf("secondary %d: takes over at epoch %d\n", n, record.epoch);
     RAISE(record.epoch); S.disk = S.cache; S.serving = 1 }
  /* ---- on an operator's continue only [F22] */
  :: d_step { record.state == tripping && record.continueAt == record.epoch && S.fenced != record.epoch && S.epoch <= record.epoch ->
     printf("secondary %d: fences at tripping epoch %d\n", n, record.epoch);
     if :: RULE_F10 -> RAISE(record.epoch) :: else fi; S.mark = 0; S.fenced = record.epoch }
  /* ---- faults */
  :: d_step { !calm && reboots < REBOOTS && power != POWER_PRIMARY ->
     printf("secondary %d: its host loses power\n", n); reboots++;
     S.boot++; S.cache = S.disk; L.frames = 0; S.serving = 0;
     if :: power == POWER_BOTH && P.boot > 1 -> acked = acked & ~(MINE(n) & ~(P.disk & S.disk)) :: else fi }
  od
}

proctype Controller() {
end: do
  /* ---- trip */
#ifdef SLICE   /* this pair is one of several in its group: another primary node asks */
  :: d_step { !calm && trips < TRIPS && record.state == normal && record.inSync && !record.failedOver ->
     printf("controller: another pair's node asks for a trip\n"); trips++; ADVANCE(tripping) }
#endif
  :: d_step { record.state == tripping && EVERY(CONFIRMED) ->
     printf("controller: every primary node has confirmed: not in sync\n"); ADVANCE(normal); record.inSync = 0; record.pause = 0 }
  :: d_step { RULE_F21 && (!calm && waysBack < WAYSBACK || calm && SOME(STAYS_DOWN)) && record.state == tripping && EVERY(BACK) && SOME(HOLDS) ->
     printf("controller: the trip is taken back, in sync\n"); if :: calm -> skip :: else waysBack++ fi;
#ifdef NO_F17
     record.primaryBoot[0] = primary[0].boot; record.secondaryBoot[0] = secondary[0].boot;
#endif
     commit_in_sync() }
  :: d_step { !calm && statements < STATEMENTS && record.state == tripping && record.continueAt != record.epoch ->
     printf("operator: continue\n"); statements++; record.continueAt = record.epoch }
#if STATEMENTS > 0
  :: d_step { !calm && statements < STATEMENTS && record.state == tripping && SAID_OFF(0) ->
     printf("operator: the host of primary 0 is off\n"); statements++; record.offAt[0] = record.epoch }
#endif
  /* ---- pause [F11] */
  :: d_step { !calm && pauses < PAUSES && record.state == normal && record.inSync && !record.failedOver ->
     printf("user: pause\n"); pauses++;
     if :: RULE_F11 -> record.pause = 1; ADVANCE(tripping)
        :: else -> record.inSync = 0; ADVANCE(normal) fi }      /* as if holding in memory were enough */
  /* ---- synchronization */
  :: d_step { (!calm && syncs < SYNCS || HEALS && calm) && record.state == normal && !record.inSync && !record.failedOver ->
     printf("controller: synchronization\n"); if :: calm -> skip :: else syncs++ fi; ADVANCE(copying) }
  :: d_step { record.state == copying && EVERY(REPORTED) ->
     printf("controller: in sync\n");
     COMMIT_BOOTS(0);
#if PAIRS > 1
     COMMIT_BOOTS(1);
#endif
     acked = acked | weak; weak = 0;
     commit_in_sync() }
  :: d_step { !calm && trips < TRIPS && record.state == copying ->
     printf("controller: the synchronization is aborted\n"); trips++; ADVANCE(normal) }
  /* ---- failover */
  :: d_step { !calm && failovers < FAILOVERS && record.inSync && !record.failedOver && (record.state == normal || record.state == tripping) ->
     printf("user: failover\n"); failovers++; ADVANCE(failovering) }
  :: d_step { record.state == failovering && FAILOVER_READY ->
     printf("controller: failed over\n"); record.failedOver = 1; record.inSync = 0; ADVANCE(normal) }
  :: d_step { record.state == failovering && SOME(OTHER_LIFE) ->
     printf("controller: a secondary has rebooted, back out by way of tripping\n"); ADVANCE(tripping) }
  :: d_step { !calm && waysBack < WAYSBACK && record.state == failovering && BACKOUT_OK ->
     printf("operator: back out, in sync is kept\n"); waysBack++; commit_in_sync() }
  :: d_step { !calm && waysBack < WAYSBACK && record.state == failovering ->
     printf("operator: back out by way of tripping\n"); waysBack++; ADVANCE(tripping) }
  :: d_step { !calm -> printf("-- calm\n"); calm = 1 }
  od
}

/* What must hold in every state. */
#define IMAGE(n) ((!record.inSync && !record.failedOver && secondary[n].pointEpoch > record.insyncEpoch) -> secondary[n].point : secondary[n].cache)
#define KEPT(n) (!(primary[n].adopted && SERVES(primary[n].mode)) || ((acked | weak) & MINE(n) & ~primary[n].cache) == 0)
#define TAKEN_OVER(n) (!secondary[n].serving || ((acked | weak) & MINE(n) & ~secondary[n].cache) == 0)
#define EQUAL(n) (!(primary[n].mode == two_sided && primary[n].adopted && SENDS(n) && RECORDED(n) && primary[n].epoch == record.epoch && record.state == normal && \
                    primary[n].pending == 0 && primary[n].repair == 0 && link[n].frames == 0) || primary[n].cache == secondary[n].cache)
#if PAIRS == 1
#define IMAGES IMAGE(0)
#define CUT_OK 1
#else
#define IMAGES (IMAGE(0) | IMAGE(1))
#define CUT_OK (excused || IMAGES == 0 || IMAGES == 1 || IMAGES == 3 || IMAGES == 7 || IMAGES == 15)
#endif
proctype Watch() {
end: do
  :: !EVERY(KEPT) -> printf("watch: a primary serves without an acknowledged write\n"); assert(0)
  :: !EVERY(TAKEN_OVER) -> printf("watch: the new primary lacks an acknowledged write\n"); assert(0)
  :: EVERY(RECORDED) && !record.failedOver && record.inSync && ((acked | weak) & ~IMAGES) ->
     printf("watch: in sync, and the secondary lacks an acknowledged write\n"); assert(0)
  :: EVERY(RECORDED) && !record.failedOver && !CUT_OK -> printf("watch: the secondaries' images are no cut\n"); assert(0)
  :: !EVERY(EQUAL) -> printf("watch: at rest, and the sides differ\n"); assert(0)
  od
}

#define RESTED(n) (STAYS_DOWN(n) || record.failedOver && secondary[n].serving || !record.failedOver && primary[n].pending == 0 && primary[n].adopted && \
                   (primary[n].mode == two_sided && SENDS(n) || primary[n].mode == one_sided))
#define settled (record.state == normal && EVERY(RESTED) && (!HEALS || record.inSync || record.failedOver))
#ifdef LIVE
ltl settles { (<> calm) -> (<> [] settled) }
#endif

init {
  byte i;
  atomic {
  d_step {
    record.epoch = 1; record.state = normal; record.inSync = 1; record.insyncEpoch = 1;
    for (i : 0 .. PAIRS - 1) {
      record.primaryBoot[i] = 1; record.secondaryBoot[i] = 1;
      primary[i].mode = two_sided; primary[i].state = normal; primary[i].inSync = 1; primary[i].epoch = 1; primary[i].adopted = 1;
      primary[i].boot = 1; primary[i].peerBoot = 1; primary[i].peerRecorded = 1; primary[i].ownRecorded = 1; primary[i].announced = 1;
      secondary[i].epoch = 1; secondary[i].boot = 1; link[i].up = 1 }
    i = 0 }
  if
  :: (POWER & POWER_PRIMARY) -> power = POWER_PRIMARY
  :: (POWER & POWER_SECONDARY) -> power = POWER_SECONDARY
  :: (POWER & POWER_BOTH) -> power = POWER_BOTH
  fi;
  run Primary(0); run Secondary(0);
#if PAIRS > 1
  run Primary(1); run Secondary(1);
#endif
  run Controller(); run Watch() }
}
