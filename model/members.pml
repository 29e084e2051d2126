/* members.pml: membership and tombstones.

   Pairs A and B in a group that was in sync once. B is taken out, perhaps put in again, and the group is deleted, while the nodes
   of B may be down or cut off and read a record late. A pair that left has a life of its own: its primary volume is plain, and
   its secondary is released and written to. A pair that joins, known or not, is never synchronized (insync_epoch 0, all
   dirty) [R]; a recovery point of its stay before counts no more. A group without members leaves a tombstone until every
   node that has not yet been told has persisted it; a node that finds neither record nor tombstone quarantines its volume.

   Bad is: B counts as in sync with different data; a node serves a volume by a record that is gone; a node that was down
   finds nothing, so that its volume stays quarantined for ever (liveness, R21 of the bug ledger). */
#include "rules.h"
mtype = { present, tombstone, nothing };
mtype recordIs = present;
byte epoch = 1; bool member = 1; byte insyncEpoch = 1; bool inSync = 1;    /* of B */
bool untold;                                     /* B's node left and does not know it */
byte nodeEpoch = 1; bool nodeMember = 1, nodeUp = 1, quarantined;
byte mine = 1, theirs = 1;                      /* contents of B's volumes */
bool allDirty; byte changes, downs, pauses; bool calm, copied;

init {
end: do
  /* a pause, and then a change of members: each an epoch */
  :: d_step { !calm && recordIs == present && inSync && pauses < 2 -> printf("user: pause\n"); pauses++; inSync = 0; epoch++ }
  :: d_step { !calm && recordIs == present && !inSync && member && changes < 3 -> printf("user: B is taken out\n"); changes++; member = 0; epoch++;
#ifndef BAD_UNTOLD
     untold = 1
#endif
     }
  :: d_step { !calm && recordIs == present && !inSync && !member && changes < 3 -> printf("user: B is put in\n"); changes++; member = 1; epoch++;
#ifndef BAD_KNOWN_AGAIN          /* its old place in the group counts again */
     insyncEpoch = 0;
#endif
     untold = 0 }
  :: d_step { !calm && recordIs == present && !inSync && !member -> printf("user: the group is deleted\n"); recordIs = tombstone; epoch++ }
  :: d_step { recordIs == tombstone && !untold -> printf("controller: the tombstone is buried\n"); recordIs = nothing }
  /* synchronization: what is dirty is sent; a pair that was never in sync is all dirty */
  :: d_step { recordIs == present && !inSync && member && nodeUp && nodeEpoch == epoch && nodeMember && !copied ->
     printf("B: is synchronized\n"); if :: insyncEpoch == 0 || allDirty -> theirs = mine :: else fi; copied = 1 }
  :: d_step { recordIs == present && !inSync && member && copied && nodeEpoch == epoch -> printf("controller: in sync\n");
     inSync = 1; epoch++; insyncEpoch = epoch; copied = 0; assert(mine == theirs) }
  /* B's node */
  :: d_step { nodeUp && recordIs != nothing && nodeEpoch < epoch && (!quarantined || recordIs != nothing) -> printf("node of B: persists epoch %d\n", epoch);
     nodeEpoch = epoch; nodeMember = (member && recordIs == present); copied = 0; quarantined = 0;
     if :: !nodeMember -> untold = 0 :: else fi }
  :: d_step { nodeUp && recordIs == nothing && nodeMember && !quarantined -> printf("node of B: neither record nor tombstone: quarantined\n"); quarantined = 1 }
#ifdef BAD_SERVES_UNKNOWN        /* a node that finds no record takes its volume for a plain one */
  :: d_step { nodeUp && quarantined -> quarantined = 0; nodeMember = 0; assert(0) }
#endif
  :: d_step { nodeUp && !nodeMember && mine < 3 -> printf("B's volume, plain: written\n"); mine++ }
  :: d_step { nodeUp && nodeMember && !inSync && nodeEpoch == epoch && mine < 3 -> printf("B: a write, tracked\n"); mine++; allDirty = 1; copied = 0 }
  :: d_step { !calm && nodeUp && downs < 1 -> printf("node of B: down\n"); downs++; nodeUp = 0 }
  :: d_step { !nodeUp -> printf("node of B: up\n"); nodeUp = 1 }
  :: d_step { !calm -> calm = 1 }
  od
}
#define settled (!quarantined && (nodeEpoch == epoch || recordIs == nothing))
#ifdef LIVE
ltl settles { (<> calm) -> (<> [] settled) }
#endif
