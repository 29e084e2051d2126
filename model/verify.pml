/* verify.pml: one range is compared on both sides while clients write to it, the link breaks, and a disk goes wrong.

   A verification claims the range: writes that come later wait, those in flight are waited for. Then it reads the own
   bytes, has them compared with the secondary's, and, if they differ, marks the range, sends the own bytes, and lets go.
   A change of mode or link takes the claim away at once (requests must not wait for it), and what was under way is void:
   it is made again, and is no difference. The secondary's disk may change behind everybody's back (value 9). The
   primary's process may die, and then repairs what its intent log names; the group may trip, and then copies what is
   dirty or marked.

   Bad is: a difference is reported where no disk went wrong; the sides differ at rest, or the secondary lacks an
   acknowledged write, but for what a disk did; a difference that was found is still there after the next
   synchronization. Liveness: once calm the comparison ends, and no write waits. */
#include "rules.h"
mtype = { idle, queued, held, read_own, found };
#define WRONG 9

byte own, theirs, acked, issued, pending; bool localDone, remoteDone, frame;
byte link = 1;                                    /* grows with every change of mode or link */
bool inSync = 1, repair, intent, dirty;
mtype phase = idle; bool claimed; byte at, got, fix, fixAt;
bool corrupt, known; byte corruptions, breaks, restarts, trips, checks; bool calm;

#ifdef BAD_UNCLAIMED          /* writes do not wait */
#define MAY_WRITE 1
#define QUIET 1
#else
#define MAY_WRITE (!claimed)
#define QUIET (pending == 0)
#endif
#ifdef BAD_VOID_COUNTS        /* what was under way when the link changed counts */
#define COUNTS 1
#else
#define COUNTS (at == link)
#endif
#ifdef BAD_LATE_SEND          /* the own bytes are sent on whatever link there is */
#define TAKES_FIX 1
#else
#define TAKES_FIX (fixAt == link)
#endif

inline changes() { link++; claimed = 0; frame = 0; remoteDone = 0 }
inline equal() { theirs = own; corrupt = 0; known = 0 }

proctype Guest() {
end: do
  :: d_step { !calm && issued < 3 && !pending && !repair && MAY_WRITE -> issued++; pending = issued; localDone = 0; remoteDone = 0; frame = inSync;
     printf("guest: write %d\n", issued); if :: inSync -> intent = 1 :: else dirty = 1 fi }
  :: d_step { pending && !localDone -> own = pending; localDone = 1 }
  :: d_step { pending && frame -> theirs = pending; corrupt = 0; known = 0; remoteDone = 1; frame = 0 }
  :: d_step { pending && localDone && (remoteDone || !inSync) -> printf("primary: acknowledges write %d\n", pending); acked = pending; pending = 0 }
  od
}

proctype Verifier() {
end: do
  :: d_step { phase == idle && checks < 2 && !calm && inSync && !repair -> checks++; phase = queued; claimed = 1; at = link }
  :: d_step { phase == queued && COUNTS && QUIET -> phase = held }
  :: d_step { phase == held -> got = own; phase = read_own }
  :: d_step { phase == read_own && COUNTS ->
     if :: got == theirs -> printf("verification: equal\n"); phase = idle; claimed = 0
        :: else -> printf("verification: %d here, %d there\n", got, theirs); assert(corrupt); known = 1;
#ifndef BAD_UNMARKED
           intent = 1; dirty = 1;
#endif
           phase = found fi }
  :: d_step { phase == found && COUNTS && fixAt == 0 -> fix = got; fixAt = link }
  :: d_step { fixAt && TAKES_FIX -> printf("verification: the primary's bytes are sent\n"); theirs = fix; corrupt = 0; known = 0; fixAt = 0; fix = 0; claimed = 0; phase = idle }
  :: d_step { fixAt && !TAKES_FIX -> fixAt = 0; fix = 0 }
  :: d_step { phase != idle && !COUNTS && (fixAt == 0 || !TAKES_FIX) -> printf("verification: void\n"); phase = idle; fixAt = 0; fix = 0; got = 0 }
  od
}

proctype World() {
end: do
  :: d_step { !calm && corruptions < 1 && inSync && !corrupt -> printf("the secondary's disk changes\n"); corruptions++; theirs = WRONG; corrupt = 1 }
  :: d_step { !calm && breaks < 2 && inSync -> printf("the link breaks and is back\n"); breaks++; changes(); frame = (pending != 0) }
  :: d_step { !calm && restarts < 1 && inSync -> printf("primary: its process dies and starts\n"); restarts++; changes(); pending = 0; repair = 1;
     phase = idle; fixAt = 0; fix = 0; got = 0 }
  :: d_step { repair -> printf("primary: what its log names is repaired\n"); repair = 0; if :: intent -> equal() :: else fi; assert(!known || dirty) }
  :: d_step { !calm && trips < 1 && inSync && !repair -> printf("tripped\n"); trips++; changes(); inSync = 0; if :: pending || intent -> dirty = 1 :: else fi }
  :: d_step { !inSync && !pending -> printf("synchronized\n"); changes(); inSync = 1; if :: dirty -> equal() :: else fi; dirty = 0; intent = 0; assert(!known) }
  :: d_step { inSync && intent && !pending && !repair && phase == idle && !calm -> intent = 0 }             /* both sides flushed */
  :: d_step { !calm -> printf("-- calm\n"); calm = 1 }
  od
}

proctype Watch() {
end: do
  :: d_step { inSync && !repair && !corrupt && theirs < acked -> printf("watch: the secondary lacks an acknowledged write\n"); assert(0) }
  :: d_step { inSync && !repair && !corrupt && !pending && own != theirs -> printf("watch: the sides differ at rest\n"); assert(0) }
  od
}
#define settled (phase == idle && !pending && !repair && inSync && !claimed)
#ifdef LIVE
ltl settles { (<> calm) -> (<> [] settled) }
#endif
init { atomic { run Guest(); run Verifier(); run World(); run Watch() } }
