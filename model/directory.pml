/* directory.pml: a primary node is started in another directory than the record names.

   One pair that was in sync. Write 1 is on both sides; the group may then have tripped, and write 2 is at the primary
   alone. Now the primary's node starts in another directory (another instance id): the same files on another machine,
   an older copy of them, or an empty one whose files are still to be made. Its intent log and dirty map may be of any
   age, so that what they name says nothing; the log that names what the secondary has not flushed is not among them. The secondary may be as the record names it, may have lost power since
   (`theirs` falls back), or may be away. In sync, everything is taken back from a secondary in its recorded life. In all
   other cases the node waits, until an operator has looked and says that this very directory counts
   (`accept-directory`): then it keeps its image, by way of tripping, and everything is compared. The operator says so of
   a directory that has every acknowledged write, and of no other; what he said of one is no word about the next.

   Bad is: it serves without an acknowledged write; in sync is committed and the sides differ. Liveness: it serves in the
   end, unless no side is known to be complete: then it waits for people, as is meant. */
#include "rules.h"
#define RECORDED 1

bool inSync = 1; bool tripping; byte recordedDir = RECORDED; byte accepted;      /* the record */
bool peerRecorded = 1, peerUp, peerLost, peerFlushed;                            /* the secondary; peerLost: given up by an operator */
byte dir = RECORDED; bool up, present, marked;                                   /* the directory in use; its files are there; its maps name the chunk */
byte mine = 1, theirs = 1, acked = 1;
bool decided, own, allDirty, serving, synced; byte starts, losses; bool calm;

#define STRANGE (dir != recordedDir)
#ifdef BAD_ACCEPT_ANY         /* the word is about the node, whatever directory it has */
#define ACCEPTED (accepted != 0)
#else
#define ACCEPTED (accepted == dir)
#endif
#ifdef BAD_MISSING            /* R20: files that are not there need no taking back */
#define THERE 1
#else
#define THERE present
#endif
#ifdef BAD_OUT_OF_SYNC        /* R19: taken back out of sync, too */
#define TAKES_BACK 1
#else
#define TAKES_BACK inSync
#endif

inline start_in(d, contents) {
  printf("primary: starts in directory %d, which has write %d\n", d, contents);
  dir = d; mine = contents; up = 1; decided = 0; own = 0; serving = 0; if :: marked = 0 :: marked = 1 fi
}

init {
end: do
  :: d_step { !up && starts == 0 && inSync && !calm -> printf("the group trips, write 2 is at the primary alone\n"); inSync = 0; mine = 2; acked = 2; marked = 1 }
  /* another directory: moved, an older copy, an empty one; once more at most */
  :: !calm && starts < 2 && !serving && !tripping -> d_step { starts++; synced = 0 }
     if
     :: d_step { start_in(1 + starts, acked); present = 1 }
     :: d_step { start_in(1 + starts, acked - 1); present = 1 }
     :: d_step { start_in(1 + starts, 0); present = 0 }
     fi
  :: d_step { up && !present -> printf("primary: its files are made\n"); present = 1 }
  /* the secondary */
  :: d_step { !peerUp && !peerLost -> peerUp = 1 }
  :: d_step { !calm && losses < 1 && peerRecorded && !serving -> printf("secondary: its host loses power\n"); losses++; peerRecorded = 0; peerUp = 0; decided = 0;
     if :: !peerFlushed -> theirs = 0 :: skip fi }
  :: d_step { !calm && !peerUp && !peerLost -> printf("operator: the secondary is given up\n"); peerLost = 1 }
  /* operator */
  :: d_step { up && present && STRANGE && accepted != dir && mine == acked -> printf("operator: directory %d counts\n", dir); accepted = dir }
  /* what the node makes of it */
  :: d_step { up && STRANGE && !decided && THERE && !ACCEPTED && TAKES_BACK && peerUp && peerRecorded ->
     printf("primary: takes everything back\n");
#ifdef BAD_MARKED_ONLY        /* ... what this directory's intent log names */
     if :: marked -> mine = theirs :: else fi;
#else
     if :: present -> mine = theirs :: else fi;
#endif
#ifndef BAD_UNFLUSHED         /* M22: the log that names what the secondary has not flushed is in the other directory */
     peerFlushed = 1;
#endif
     decided = 1; own = 0 }
  :: d_step { up && STRANGE && !decided && THERE && ACCEPTED -> printf("primary: keeps the image of directory %d\n", dir); decided = 1; own = 1;
#ifndef BAD_NOT_COMPARED
     allDirty = 1
#endif
     }
#ifdef BAD_OWN                /* R17: the secondary has rebooted, so the own image counts [F5] */
  :: d_step { up && STRANGE && !decided && present && inSync && peerUp && !peerRecorded -> decided = 1; own = 1; allDirty = 1 }
#endif
#ifdef BAD_GIVEN_UP           /* 7 of the ledger: the secondary is given up, so the own image counts */
  :: d_step { up && STRANGE && !decided && present && inSync && peerLost -> decided = 1; own = 1; allDirty = 1 }
#endif
  :: d_step { up && STRANGE && decided -> printf("one compare-and-swap: directory %d is recorded, own image %d\n", dir, own);
     recordedDir = dir; accepted = 0; decided = 0; if :: own && inSync -> tripping = 1 :: else fi }
  :: d_step { up && tripping && !STRANGE -> printf("tripped\n"); tripping = 0; inSync = 0 }
  :: d_step { up && !STRANGE && !tripping && !serving && (!inSync || peerUp && peerRecorded) && starts ->
     printf("primary: serves write %d, in sync %d\n", mine, inSync); serving = 1; assert(mine == acked) }
  /* a secondary in another life: trip, synchronization of what is dirty or marked */
  :: d_step { up && !STRANGE && !tripping && inSync && starts && (!peerUp || !peerRecorded) -> printf("tripped: the secondary is away, or in another life\n"); inSync = 0 }
  :: d_step { serving && !inSync && peerUp && !synced -> printf("in sync\n"); synced = 1;
     if :: allDirty || marked -> theirs = mine :: else fi;
     allDirty = 0; inSync = 1; peerRecorded = 1; peerFlushed = 1; assert(theirs == mine) }
  :: d_step { !calm && starts -> printf("-- calm\n"); calm = 1 }
  od
}
#define NOBODY_COMPLETE (STRANGE && mine != acked && (!inSync || !peerRecorded || peerLost))
#define settled (serving || NOBODY_COMPLETE)
#ifdef LIVE
ltl settles { (<> calm) -> (<> [] settled) }
#endif
