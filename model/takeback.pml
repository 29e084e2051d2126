/* takeback.pml: one primary node with two secondaries, rebooted.

   Volume v has its secondary on node v. Each had one write that was acknowledged and flushed nowhere. Then the primary's
   host and that of secondary 1 lost power: volume 0 can only be taken back [F2], of volume 1 only the own image is
   left [F5]. Secondaries answer in any order, or not for a while, the primary may reboot once more, and then it starts
   over [F18]. One compare-and-swap records its new boot id for both volumes, and it goes to `tripping` if one kept its
   own image; serving two-sided with a secondary in another life than recorded is the bug, and so is a lost write.

   Liveness: in the end it serves. -DGONE: secondary 1 never answers; then an operator gives it up
   (accept-lost-secondary), and without that statement the node waits for ever, which is what is meant. */
#include "rules.h"
bool cache[2], disk[2];           /* the primary has the write */
bool secondaryHas[2];
byte boot = 2, recordedBoot = 1;
byte secondaryBoot[2], recordedSecondary[2];
bool up[2], decided[2], own, givenUp, serving, inSync = 1;
byte reboots;

#define BOTH_DECIDED (decided[0] && decided[1])
#define REBOOTED (boot != recordedBoot)

proctype Volume(byte v) {
end: do
#ifdef GONE
  :: d_step { !up[v] && v == 0 -> up[v] = 1 }
#else
  :: d_step { !up[v] -> printf("secondary %d answers\n", v); up[v] = 1 }
#endif
  :: d_step { REBOOTED && !decided[v] && up[v] && secondaryBoot[v] == recordedSecondary[v] ->
     printf("volume %d: taken back, flushed\n", v); cache[v] = secondaryHas[v]; disk[v] = cache[v]; decided[v] = 1 }
#ifdef BAD_TAKE_BACK_REBOOTED     /* from a secondary that has lost power itself, over the own image */
  :: d_step { REBOOTED && !decided[v] && up[v] && secondaryBoot[v] != recordedSecondary[v] ->
     printf("volume %d: taken back\n", v); cache[v] = secondaryHas[v]; disk[v] = cache[v]; decided[v] = 1 }
#endif
  :: d_step { REBOOTED && !decided[v] && up[v] && secondaryBoot[v] != recordedSecondary[v] ->
     printf("volume %d: keeps its own image\n", v); decided[v] = 1; own = 1 }
#ifdef GONE
  :: d_step { REBOOTED && !decided[v] && !up[v] && v == 1 && givenUp -> printf("volume %d: keeps its own image, its secondary is given up\n", v);
     decided[v] = 1; own = 1 }
#endif
  od
}

init {
  atomic {
    secondaryBoot[0] = 1; secondaryBoot[1] = 2; recordedSecondary[0] = 1; recordedSecondary[1] = 1;
    secondaryHas[0] = 1;          /* of volume 1 the write survived on the primary's disk only, if at all */
    disk[1] = 1; cache[1] = 1;
    run Volume(0); run Volume(1) }
end: do
#ifndef NO_STATEMENT
  :: d_step { !givenUp && !up[1] -> printf("operator: secondary 1 is given up\n"); givenUp = 1 }
#endif
  :: d_step { REBOOTED && (decided[0] || decided[1]) && (!RULE_F18 || BOTH_DECIDED) ->                     /* [F18] */
     printf("one compare-and-swap: boot id %d recorded, in sync %d\n", boot, !own);
     recordedBoot = boot; if :: own -> inSync = 0 :: else fi }
  :: d_step { !REBOOTED && !serving -> printf("serves, in sync %d\n", inSync); serving = 1;
     assert(cache[0]);            /* acknowledged, and the secondary had it: must be here */
     assert(cache[1]);
     if :: inSync -> assert(secondaryBoot[0] == recordedSecondary[0] && secondaryBoot[1] == recordedSecondary[1]) :: else fi }
  :: d_step { reboots < 1 && !serving -> printf("the primary's host loses power again\n"); reboots++; boot++;
     cache[0] = disk[0]; cache[1] = disk[1]; decided[0] = 0; decided[1] = 0; own = 0 }
  od
}
#define settled (serving)
#ifdef LIVE
ltl settles { <> settled }
#endif
