/* point.pml: a recovery point by copy-before-write, and power losses at every step.

   Two chunks. At the start the secondary holds a consistent image (value 1 everywhere). A synchronization overwrites both
   with value 2, one after the other, in windows: the old contents go to the undo file (in the page cache), the undo file
   is synced, data and index at once, and only then may the window be overwritten. A write of a guest under way takes the
   same path. A power loss keeps of every file what was synced, and of the rest any part. Then the process starts, takes
   from the undo file what is whole, and either goes on copying (a chunk that the file has is not saved again, for it
   would save what was overwritten) or rolls back, and that may be cut short by a power loss, too.

   Bad is: after a roll-back a chunk is not 1; or the point is dropped before the in-sync commit. */
#include "rules.h"
#define OLD 1
#define NEW 2
byte data[2] = OLD, dataDisk[2] = OLD;   /* the raw file: in the cache, on the platter */
byte undo[2], undoDisk[2];                                  /* saved contents; 0: none */
bool saved[2];                                              /* memory: may be overwritten */
#define ROLLED ((undo[0] == 0 || data[0] == undo[0]) && (undo[1] == 0 || data[1] == undo[1]))
bool point, rolling, rolledBack, committed;
byte losses;

inline power_loss() {
  saved[0] = 0; saved[1] = 0; rolling = 0
}

proctype Chunk(byte c) {
end: do
  :: d_step { point && !committed && !rolling && !rolledBack && undo[c] == 0 -> printf("chunk %d: old contents %d into the undo file\n", c, data[c]); undo[c] = data[c] }
  :: d_step { point && undo[c] && !saved[c] && !rolling -> printf("undo file: synced\n");
#ifndef BAD_UNSYNCED
     undoDisk[c] = undo[c];
#endif
     saved[c] = 1 }
#ifdef BAD_OVERWRITE_FIRST
  :: d_step { point && !committed && !rolling && !rolledBack && data[c] == OLD -> printf("chunk %d: overwritten\n", c); data[c] = NEW }
#else
  :: d_step { point && !committed && !rolling && !rolledBack && saved[c] && data[c] == OLD -> printf("chunk %d: overwritten\n", c); data[c] = NEW }
#endif
#ifdef BAD_SAVED_AGAIN           /* after a restart everything is saved anew */
  :: d_step { point && !rolling && !committed && !rolledBack && undo[c] && losses && !saved[c] -> undo[c] = data[c] }
#endif
  :: d_step { dataDisk[c] != data[c] -> dataDisk[c] = data[c] }                    /* written back at any time */
  :: d_step { undo[c] && undoDisk[c] != undo[c] && undo[c] -> undoDisk[c] = undo[c] }
  :: d_step { rolling && undo[c] && data[c] != undo[c] -> printf("chunk %d: rolled back to %d\n", c, undo[c]); data[c] = undo[c] }
  od
}

#define settled (committed || rolledBack)
#ifdef LIVE
ltl settles { <> [] settled }
#endif
init {
  atomic { run Chunk(0); run Chunk(1) }
end: do
  :: d_step { !point && !committed && !rolledBack -> printf("the point is set\n"); point = 1; dataDisk[0] = data[0]; dataDisk[1] = data[1] }
  :: d_step { point && !rolling && losses < 2 -> printf("power is lost\n"); losses++;
     data[0] = dataDisk[0]; data[1] = dataDisk[1]; undo[0] = undoDisk[0]; undo[1] = undoDisk[1]; power_loss() }
  :: d_step { rolling && losses < 2 -> printf("power is lost while rolling back\n"); losses++;
     data[0] = dataDisk[0]; data[1] = dataDisk[1]; undo[0] = undoDisk[0]; undo[1] = undoDisk[1]; power_loss() }
  :: d_step { point && !rolling && !committed -> printf("roll back\n"); rolling = 1 }
  :: d_step { rolling && ROLLED -> dataDisk[0] = data[0]; dataDisk[1] = data[1];
     printf("rolled back, synced, the point is dropped\n"); point = 0; rolling = 0; rolledBack = 1;
     undo[0] = 0; undo[1] = 0; undoDisk[0] = 0; undoDisk[1] = 0; assert(data[0] == OLD && data[1] == OLD) }
  :: d_step { point && !rolling && data[0] == NEW && data[1] == NEW -> printf("in sync is committed\n"); committed = 1; point = 0 }
#ifdef BAD_DROPPED_EARLY         /* when the last chunk was sent, not at the commit */
  :: d_step { point && !rolling && saved[0] && saved[1] -> point = 0; rolledBack = 1; assert(data[0] == data[1]) }
#endif
  od
}
