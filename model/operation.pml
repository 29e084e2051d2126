/* operation.pml: an operation of the controllers, here an extend, under a change of leader at every moment.

   An operation is a row in the store with its step. Two controllers believe at times that they lead: the old one does
   not know yet that its lease of leadership is gone. A leader reads the row and the record in one transaction, decides,
   and writes in another that compares everything it read and its own leadership. The result of a transaction may be
   lost: the leader then reads again, and never assumes. The record holds the announced size; files are grown on request,
   secondary first; the last transaction announces, moves the record's epoch on and takes the operation to its end.

   Broken variants: the transaction does not compare what was read; a lost result is taken for a failure, and the step is
   done again from memory; the operation is kept in the leader's memory only; the fence of leadership is left out with the
   comparison (either alone would do here; the code has both). Safety: the operation ends once, the announced size is never larger than a
   file, each step is done at most once. Liveness: with a living controller it ends, with the user's size or undone. */
#include "rules.h"
#define LEADERS 2
mtype = { none, grow_secondary, wait_secondary, grow_primary, wait_primary, announce, undo, done };

mtype step = none;                 /* the row in the store */
byte version;                      /* of row and record together: what transactions compare */
byte leader;                       /* in the store */
byte announced = 1, wantPrimary = 1, wantSecondary = 1, epoch = 1;
byte filePrimary = 1, fileSecondary = 1;
bool frozen;                       /* the record holds `extending`: no synchronization begins */
byte ends, asks, elections, deaths, lost; bool calm;

inline apply(s) {                  /* one step, inside its transaction */
  if
  :: s == grow_secondary -> wantSecondary = 2; step = wait_secondary
  :: s == wait_secondary -> step = grow_primary
  :: s == grow_primary -> wantPrimary = 2; step = wait_primary
  :: s == wait_primary -> step = announce
  :: s == announce -> assert(filePrimary == 2 && fileSecondary == 2); announced = 2; epoch++; frozen = 0; step = done; ends++
  :: s == undo -> wantPrimary = announced; wantSecondary = announced; frozen = 0; step = done; ends++
  fi;
  version++
}
#ifdef BAD_UNCOMPARED
#define COMPARED 1                        /* neither what was read, nor that this controller still leads */
#else
#define COMPARED (leader == me && at == version)
#endif
#define WRITE if :: saw == none -> printf("controller %d: gives it up\n", me); step = undo; version++ \
                 :: else -> printf("controller %d: does step %e\n", me, saw); apply(saw) fi
#define GROWN(s) ((s != wait_secondary || fileSecondary == 2) && (s != wait_primary || filePrimary == 2))

proctype User() {
end: do
  :: d_step { asks < 1 && step == none -> printf("user: extend\n"); asks++; step = grow_secondary; frozen = 1; version++ }
  :: d_step { !calm -> printf("-- calm\n"); calm = 1 }
  od
}

proctype Nodes() {
end: do
  :: d_step { fileSecondary < wantSecondary -> printf("secondary: the file has grown\n"); fileSecondary = wantSecondary }
  :: d_step { filePrimary < wantPrimary -> printf("primary: the file has grown\n"); filePrimary = wantPrimary }
  od
}

proctype Controller_(byte me) {
  bool believes, has; mtype saw; byte at; bool unknown;
end: do
  :: d_step { leader != me && (!calm && elections < 2 || leader == 0) -> printf("controller %d: elected\n", me);
     if :: calm -> skip :: else elections++ fi; leader = me; believes = 1; has = 0 }
  :: d_step { leader != me && believes && !has -> believes = 0 }
  :: d_step { leader == me && !believes -> believes = 1 }
  :: d_step { !calm && deaths < 1 && believes -> printf("controller %d: its process dies\n", me); deaths++; believes = 0; has = 0; unknown = 0; saw = none; at = 0;
     if :: leader == me -> leader = 0 :: else fi;
#ifdef BAD_IN_MEMORY
     step = none; frozen = 0
#endif
     }
  /* read, decide */
  :: d_step { believes && !has && step != none && step != done && GROWN(step) -> has = 1; saw = step; at = version }
  /* the step is hopeless (overdue, a node failed): undo it */
  :: d_step { !calm && believes && !has && step != none && step != done && step != undo && step != announce -> has = 1; saw = none; at = version }
  /* write */
  :: d_step { has && COMPARED && !unknown -> WRITE; has = 0; saw = none; at = 0 }
  :: d_step { has && COMPARED && !unknown && !calm && lost < 1 -> WRITE; lost++; unknown = 1;   /* its result is lost on the way */
     printf("controller %d: does not learn the result\n", me) }
  :: d_step { has && (leader != me || at != version) && !unknown -> has = 0; saw = none; at = 0;
     if :: leader != me -> believes = 0 :: else fi }
  :: d_step { unknown ->
     unknown = 0;
#ifdef BAD_ASSUMED_FAILED       /* not read again: the same is done once more, compared with what is there by now */
     at = version
#else
     has = 0; saw = none; at = 0
#endif
     }
  od
}

proctype Watch() {
end: do
  :: d_step { announced > filePrimary || announced > fileSecondary -> assert(0) }
  :: d_step { ends > 1 -> assert(0) }
  :: d_step { step == done && frozen -> assert(0) }
  od
}
#define settled (asks == 0 || (step == done && !frozen && wantPrimary == announced && wantSecondary == announced))
#ifdef LIVE
ltl settles { (<> calm) -> (<> [] settled) }
#endif
init { atomic { leader = 1; run User(); run Nodes(); run Controller_(1); run Controller_(2); run Watch() } }
