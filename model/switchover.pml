/* switchover.pml: the planned change of roles, in sync before and after.

   The primary drains under epoch e, persists e+1 (`reversing`) and holds; both sides flush, and the flush answers carry
   boot ids; if they are the record's, the roles are swapped in one step, in sync. Otherwise, or when patience ends, the
   roles stay, in sync, with the boot ids as they were. Against that: a crash or a reboot of the primary, a reboot of the
   secondary, and frames that arrive late. A write is a bit with a region of its own.

   After the swap both sides must be equal, for in sync is claimed, and both must have every acknowledged write: a
   failover back is allowed at once. NO_F12: the hold is memory of the process only, and no epoch.
   Liveness: once calm, the group is at rest, with one side serving. */
#include "rules.h"
#ifndef WRITES
#define WRITES 2
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef REBOOTS
#define REBOOTS 1
#endif
mtype = { normal, reversing };
mtype = { started, two_sided, held, secondary_role };

byte epoch = 1; mtype state = normal; bool swapped; byte recordedOld = 1, recordedNew = 1;       /* the record */
byte oldEpoch = 1, oldBoot = 1, oldCache, oldDisk, intent, pending; mtype mode = two_sided;      /* the primary of the beginning */
byte newEpoch = 1, newBoot = 1, newCache, newDisk; bool newServes;
byte frames, acks;
byte flushedAt, flushedOld, flushedNew;       /* the answer `reversed`: epoch, boot ids of the flush answers */
byte issued, acked, crashes, reboots, tries, power; bool calm;
byte asked;                                   /* NO_F12: the switchover under way, an epoch of nobody */
#define BIT (1 << issued)
#define UNCHANGED (newBoot == recordedNew && oldBoot == recordedOld)
#ifdef BAD_UNDRAINED
#define DRAINED 1
#else
#define DRAINED (pending == 0)
#endif
#ifdef BAD_BOOTS_UNCHECKED
#define BOOTS_OK 1
#else
#define BOOTS_OK (flushedOld == recordedOld && flushedNew == recordedNew)
#endif
#define FENCE newEpoch = epoch; frames = 0

proctype OldPrimary() {
end: do
  :: d_step { !calm && issued < WRITES && mode == two_sided && !swapped ->
     printf("guest: writes %d\n", BIT); pending = pending | BIT; intent = intent | BIT; oldCache = oldCache | BIT;
     if :: newEpoch == oldEpoch -> frames = frames | BIT :: else fi; issued++ }
  :: d_step { (mode == two_sided || mode == held) && (pending & acks) -> acked = acked | (pending & acks); pending = pending & ~acks }
  :: d_step { oldDisk != oldCache -> oldDisk = oldCache }
  :: d_step { state == reversing && oldEpoch < epoch && (mode == two_sided || mode == held) && DRAINED ->
     printf("primary: drained, persists reversing epoch %d, holds\n", epoch); oldEpoch = epoch; mode = held; acks = 0 }
  :: d_step { state == reversing && mode == started && newEpoch <= epoch && UNCHANGED ->             /* a restart: [F9] first */
     printf("primary: restarted, repairs its marked regions, holds\n");
     FENCE; oldEpoch = epoch; newCache = (newCache & ~intent) | (oldCache & intent); mode = held; acks = 0 }
  :: d_step { state == reversing && mode == held && oldEpoch == epoch && newEpoch <= epoch && flushedAt != epoch ->
     printf("primary: both sides flushed, answers: reversed\n");
     FENCE; oldDisk = oldCache; newDisk = newCache; flushedOld = oldBoot; flushedNew = newBoot; flushedAt = epoch }
  :: d_step { state == normal && !swapped && oldEpoch < epoch && (mode == held || mode == two_sided) && newBoot == recordedNew && oldBoot == recordedOld ->
     printf("primary: goes on at epoch %d, sends again what is unacknowledged\n", epoch);
     oldEpoch = epoch; FENCE; frames = pending; acks = 0; mode = two_sided }
  :: d_step { state == normal && !swapped && mode == started && newEpoch <= epoch && UNCHANGED ->
     printf("primary: restarted, repairs its marked regions, goes on\n");
     FENCE; oldEpoch = epoch; newCache = (newCache & ~intent) | (oldCache & intent); mode = two_sided; acks = 0 }
  :: d_step { swapped && mode != secondary_role -> printf("primary: demotes itself\n"); mode = secondary_role; oldEpoch = epoch; pending = 0; acks = 0 }
#ifdef NO_F12
  :: d_step { asked && mode == two_sided -> mode = held }
  :: d_step { asked && mode == held && pending == 0 -> oldDisk = oldCache; newDisk = newCache; flushedOld = oldBoot; flushedNew = newBoot; flushedAt = asked }
  :: d_step { !asked && mode == held -> mode = two_sided }
#endif
  :: d_step { !calm && crashes < CRASHES && mode != secondary_role -> printf("primary: its process dies\n"); crashes++; mode = started; pending = 0; acks = 0 }
  :: d_step { !calm && power == 0 && reboots < REBOOTS -> printf("primary: its host loses power\n"); reboots++; oldBoot++; oldCache = oldDisk;
     pending = 0; acks = 0; if :: mode != secondary_role -> mode = started :: else fi }
  od
}

proctype Secondary() {
end: do
  :: d_step { frames -> assert(!newServes); newCache = newCache | frames; if :: newEpoch == oldEpoch -> acks = acks | frames :: else fi; frames = 0 }
  :: d_step { newDisk != newCache -> newDisk = newCache }
  :: d_step { swapped && !newServes -> printf("secondary: takes over at epoch %d\n", epoch);
     FENCE; newServes = 1;
     if :: UNCHANGED -> assert((acked & ~newCache) == 0); assert((acked & ~oldCache) == 0);
           assert(mode != secondary_role || oldCache == newCache) :: else fi }
  :: d_step { !calm && power == 1 && reboots < REBOOTS -> printf("secondary: its host loses power\n"); reboots++; newBoot++; newCache = newDisk; frames = 0 }
  od
}

proctype Controller() {
end: do
#ifndef NO_F12
  :: d_step { !calm && tries < 2 && state == normal && !swapped -> printf("user: switchover\n"); tries++; state = reversing; epoch++ }
  :: d_step { state == reversing && flushedAt == epoch && BOOTS_OK ->
     printf("controller: the roles are swapped\n"); state = normal; swapped = 1; epoch++;
     recordedOld = flushedOld; recordedNew = flushedNew }
  :: d_step { state == reversing && (!calm || !UNCHANGED) -> printf("controller: the roles stay\n"); state = normal; epoch++ }
#else
  :: d_step { !calm && tries < 2 && !asked && !swapped -> tries++; asked = epoch; flushedAt = 0 }
  :: d_step { asked && flushedAt == epoch && flushedNew == recordedNew -> swapped = 1; epoch++; recordedOld = flushedOld; recordedNew = flushedNew; asked = 0 }
  :: d_step { asked && !calm -> asked = 0; flushedAt = 0 }
#endif
  :: d_step { !calm -> calm = 1 }
  od
}
/* A reboot is for other models: there the primary takes back, or the group trips. */
#define settled (!UNCHANGED || state == normal && (swapped && newServes && mode == secondary_role || !swapped && mode == two_sided && pending == 0))
#ifdef LIVE
ltl settles { (<> calm) -> (<> [] settled) }
#endif
init { if :: power = 0 :: power = 1 fi; atomic { run OldPrimary(); run Secondary(); run Controller() } }
