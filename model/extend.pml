/* extend.pml: a volume grows while a link breaks, the group fails over, or it is synchronized.

   One pair; of each volume the model knows the new part only: what lies beyond the old size. A file has the old size (1)
   or the new one (2), and so have the announced size of the record and the size that a node goes by (`bound`), which it
   takes from the newest record that it has read. The operation asks for larger files, secondary first, waits for the
   nodes' reports, and announces at a new epoch. A failover in between keeps the old size, the operation gives up, files
   that have grown stay, and the user may ask again.

   Bad is: a write reaches a file beyond its end; a client is answered of what no record has announced; a side that is
   in sync or takes over lacks an acknowledged write; the group stops without a fault. Liveness: once calm the operation
   is over, whichever way, nothing waits, and both sides are in sync. */
#include "rules.h"
#ifndef CUTS
#define CUTS 0               /* of the link */
#endif
#ifndef MOVES
#define MOVES 1              /* failovers */
#endif
mtype = { normal, tripping, copying, failovering };                                     /* states of the record */
mtype = { refused, held, one_sided, two_sided, copy };                                  /* modes of a volume */
mtype = { none, grow_secondary, wait_secondary, grow_primary, wait_primary, announce, undo };

byte epoch = 1; mtype state = normal; bool inSync; bool failedOver; byte prim;          /* the record */
byte announced = 1; bool extending; bool fresh;                                         /* fresh: never in sync */
mtype step = none; byte want[2] = 1, reported[2] = 1; byte forPrimary;                  /* the operation, in the store */
byte file[2] = 1, bound[2] = 1, persisted[2] = 1, at[2] = 1; mtype mode[2];             /* at: the epoch of the mode */
byte has[2]; bool dirty[2];                       /* the new part: newest write; known to differ */
bool linked; byte frame, frameEpoch;              /* frame: the write under way to the secondary */
byte issued, acked, pending, writer; bool localDone, remoteDone;
bool ready, copied, calm; byte asked, cuts, moves, overdue;

#define OTHER(s) (1 - s)
#ifdef BAD_FILE_SIZE          /* the export and the range check go by the file */
#define RANGE(s) (file[s] == 2)
#else
#define RANGE(s) (bound[s] == 2)
#endif
#ifdef BAD_TODO_BEYOND        /* R30: chunks beyond the announced size are to be sent, and never visited */
#define TO_SEND(s) ((dirty[s] || dirty[OTHER(s)]) && !copied && file[s] == 2)
#else
#define TO_SEND(s) ((dirty[s] || dirty[OTHER(s)]) && !copied && bound[s] == 2)
#endif
#ifdef BAD_PRIMARY_ONLY       /* nobody waits for the secondary's file */
#define GROWN (reported[prim] == 2)
#else
#define GROWN (reported[0] == 2 && reported[1] == 2)
#endif
#ifdef BAD_SAME_EPOCH         /* sizes are no part of what is announced */
#define NEW_SIZE
#else
#define NEW_SIZE epoch++; if :: inSync -> fresh = 0 :: else fi
#endif
#ifdef BAD_FREEZES            /* the operation gives up, and the record does not know it */
#define UNFREEZE
#else
#define UNFREEZE extending = 0
#endif
#define GOES(s) (mode[s] == one_sided || mode[s] == two_sided || mode[s] == copy)
#define SENDS(s) (linked && (mode[s] == two_sided || mode[s] == copy) && at[s] == persisted[s])

inline serve(m) {             /* announced: the secondary has persisted the epoch, what is unacknowledged goes again */
  persisted[OTHER(s)] = epoch; bound[OTHER(s)] = announced; mode[OTHER(s)] = refused; linked = 1;
  if :: pending && writer == OTHER(s) -> pending = 0 :: else fi;                  /* an old primary that demotes itself */
  if :: inSync -> dirty[OTHER(s)] = 0 :: else fi; at[s] = epoch; mode[s] = m;
  remoteDone = 0; frame = 0;
  if :: pending && writer == s -> frame = pending; frameEpoch = epoch :: else fi
}

proctype Node(byte s) {
end: do
  /* files: grown durably on request, never cut */
#ifdef BAD_CUT
  :: d_step { file[s] != want[s] -> printf("node %d: its file is made %d long\n", s, want[s]); file[s] = want[s]; if :: want[s] == 1 -> has[s] = 0 :: else fi }
#else
  :: d_step { file[s] < want[s] -> printf("node %d: its file has grown\n", s); file[s] = want[s] }
#endif
  :: d_step { reported[s] != file[s] -> reported[s] = file[s] }
  /* the newest record's size counts as soon as it is read */
  :: d_step { bound[s] != announced -> printf("node %d: goes by size %d\n", s, announced); bound[s] = announced }
  /* the record is adopted */
  :: d_step { persisted[s] < epoch && s == prim && (state == tripping || state == failovering) ->
     printf("node %d: holds at epoch %d\n", s, epoch); persisted[s] = epoch; bound[s] = announced; mode[s] = held; frame = 0 }
  :: d_step { persisted[s] < epoch && s == prim && state == normal && inSync ->
     persisted[s] = epoch; bound[s] = announced; dirty[s] = (pending && writer == s); if :: mode[s] == one_sided || mode[s] == copy -> mode[s] = held :: else fi }
  :: d_step { persisted[s] < epoch && s == prim && (state == copying || state == normal && !inSync) ->
     printf("node %d: goes on one-sided at epoch %d\n", s, epoch); persisted[s] = epoch; bound[s] = announced; at[s] = epoch; mode[s] = one_sided; frame = 0;
     copied = 0; if :: state == copying && fresh && file[s] == 2 -> dirty[s] = 1 :: else fi;     /* all of the file is dirty */
     if :: failedOver -> assert(has[s] >= acked); assert(acked == 0 || bound[s] == 2) :: else fi }
  :: d_step { persisted[s] < epoch && s != prim && state == failovering -> printf("node %d: ready at epoch %d\n", s, epoch); persisted[s] = epoch; bound[s] = announced; frame = 0; ready = 1 }
  :: d_step { persisted[s] < epoch && s != prim && state == normal && failedOver -> printf("node %d: demotes itself\n", s); persisted[s] = epoch; bound[s] = announced; mode[s] = refused;
     if :: pending && writer == s -> pending = 0 :: else fi }
  /* announce: connects, or goes on at a newer epoch */
  :: d_step { s == prim && persisted[s] == epoch && (!linked || at[s] != epoch || mode[s] == held) && persisted[OTHER(s)] <= epoch && cuts != 1 && state == normal && inSync ->
     printf("node %d: two-sided at epoch %d\n", s, epoch); serve(two_sided) }
  :: d_step { s == prim && persisted[s] == epoch && mode[s] != copy && persisted[OTHER(s)] <= epoch && cuts != 1 && state == copying -> printf("node %d: copies at epoch %d\n", s, epoch); serve(copy) }
  /* a write beyond the old size */
  :: d_step { !calm && issued < 2 && !pending && GOES(s) && RANGE(s) ->
     issued++; printf("guest: write %d beyond the old size at node %d\n", issued, s);
     pending = issued; writer = s; localDone = 0; remoteDone = 0; dirty[s] = 1;
     if :: linked && mode[s] != one_sided -> frame = issued; frameEpoch = at[s] :: else fi }
  :: d_step { pending && writer == s && !localDone && mode[s] != refused -> assert(file[s] == 2); has[s] = pending; localDone = 1 }
  :: d_step { frame && s != writer && linked && persisted[s] == frameEpoch && RANGE(s) -> assert(file[s] == 2); has[s] = frame; remoteDone = 1; frame = 0 }
  :: d_step { frame && s != writer && linked && persisted[s] == frameEpoch && !RANGE(s) -> printf("node %d: refuses the range\n", s); frame = 0;
#ifdef BAD_RANGE_TRIPS
     if :: state == normal && inSync -> state = tripping; epoch++ :: else fi
#endif
     }
  :: d_step { frame && s != writer && (!linked || persisted[s] != frameEpoch) -> frame = 0 }
  :: d_step { pending && writer == s && localDone && (mode[s] == one_sided || (mode[s] == two_sided || mode[s] == copy) && remoteDone) ->
     printf("node %d: acknowledges write %d\n", s, pending); acked = pending; pending = 0 }
  /* link and trip */
  :: d_step { !calm && CUTS && cuts == 0 && s == prim && linked -> printf("the link is cut\n"); cuts = 1; linked = 0; frame = 0; remoteDone = 0;
     if :: mode[s] == copy -> mode[s] = one_sided; copied = 0 :: else fi }
  :: d_step { cuts == 1 -> printf("the link is back\n"); cuts = 2 }
  :: d_step { s == prim && !linked && cuts == 1 && persisted[s] == epoch && state == normal && inSync -> printf("node %d: asks for a trip\n", s); state = tripping; epoch++ }
  :: d_step { s == prim && state == tripping && persisted[s] == epoch && mode[s] == held -> printf("tripped\n"); state = normal; inSync = 0; epoch++ }
  /* synchronization */
  :: d_step { s == prim && mode[s] == copy && SENDS(s) && TO_SEND(s) && bound[s] == 2 && !pending -> printf("node %d: copies the new part\n", s);
     assert(file[OTHER(s)] == 2); if :: has[OTHER(s)] != has[s] -> has[OTHER(s)] = has[s] :: else fi; copied = 1 }
  :: d_step { s == prim && mode[s] == copy && SENDS(s) && at[s] == epoch && state == copying && !TO_SEND(s) && !pending -> printf("in sync\n");
     mode[s] = two_sided;                             /* as it has reported: it falls back no more [F7] */
     state = normal; inSync = 1; fresh = 0; failedOver = 0; epoch++; assert(announced == 1 || has[0] == has[1]) }
  od
}

proctype Controller() {
end: do
  :: d_step { state == normal && !inSync && !extending && cuts != 1 -> printf("controller: synchronization\n"); state = copying; failedOver = 0; epoch++ }
  :: d_step { state == copying && cuts == 1 -> printf("controller: the synchronization is aborted\n"); state = normal; epoch++ }
  :: d_step { !calm && moves < MOVES && inSync && (state == normal || state == tripping) -> printf("user: failover\n"); moves++; state = failovering; epoch++; ready = 0 }
  :: d_step { state == failovering && ready -> printf("controller: failed over\n"); state = normal; inSync = 0; failedOver = 1; prim = OTHER(prim); ready = 0; epoch++; linked = 0 }
  /* the operation */
  :: d_step { !calm && asked < 2 && step == none && announced == 1 && cuts != 1 && state != failovering && state != tripping ->
     printf("user: extend\n"); asked++; step = grow_secondary; extending = 1; forPrimary = prim }
  :: d_step { step != none && step != undo && (forPrimary != prim || state == failovering || !calm && overdue < 1) -> printf("controller: the extend is given up\n");
     if :: forPrimary != prim || state == failovering -> skip :: else overdue++ fi; step = undo }
  :: d_step { step == grow_secondary && state != failovering ->  want[OTHER(prim)] = 2; step = wait_secondary }
  :: d_step { step == wait_secondary && (reported[OTHER(prim)] == 2 || reported[prim] == 2 && GROWN) -> step = grow_primary }
#ifdef BAD_PRIMARY_ONLY
  :: d_step { step == wait_secondary -> step = grow_primary }
#endif
  :: d_step { step == grow_primary && state != failovering -> want[prim] = 2; step = wait_primary }
  :: d_step { step == wait_primary && GROWN -> step = announce }
  :: d_step { step == announce && forPrimary == prim && (state == normal || state == copying) -> printf("controller: the new size is announced\n");
     announced = 2; extending = 0; step = none; NEW_SIZE }
  :: d_step { step == undo -> printf("controller: the old size stays\n"); want[0] = announced; want[1] = announced; UNFREEZE; step = none }
  :: d_step { !calm -> printf("-- calm\n"); calm = 1 }
  od
}

proctype Watch() {
end: do
  :: d_step { acked && announced == 1 -> printf("watch: a client was answered of what was never announced\n"); assert(0) }
  :: d_step { announced == 2 && (file[0] == 1 || file[1] == 1) -> printf("watch: a file is shorter than announced\n"); assert(0) }
  :: d_step { cuts == 0 && moves == 0 && state == tripping -> printf("watch: the group stops without a fault\n"); assert(0) }
  :: d_step { inSync && state == normal && has[OTHER(prim)] < acked -> printf("watch: in sync without an acknowledged write\n"); assert(0) }
  od
}
#define settled (step == none && !extending && state == normal && inSync && mode[prim] == two_sided && at[prim] == epoch && linked && !pending)
#ifdef LIVE
ltl settles { (<> calm) -> (<> [] settled) }
#endif
init {
  atomic {
    mode[0] = two_sided; mode[1] = refused; linked = 1; inSync = 1;
    if :: skip :: inSync = 0; fresh = 1; mode[0] = one_sided; linked = 0 fi;      /* a new pair is not yet in sync */
    run Node(0); run Node(1); run Controller(); run Watch() }
}
