/* forced.pml: failing over to an image that lacks writes, and what becomes of the side that lost.

   Two sites, one volume of two chunks; write n goes to chunk n mod 2, after write n-1 was answered. A site's image is
   one cut if with a write it has every write before it that the group has not given up. The group trips, copies, breaks
   off, is failed over by force from either, or by the book while in sync; the old primary confirms that it holds, or is
   said to be off, or (by the book only) is not heard of. Then the new primary's data is copied to the old one, and that
   may break off, too, and be forced back. A secondary's process may die in the middle of a roll-back.

   What a copying overwrites is first kept: as the recovery point, the last consistent image of the group, and, at the
   side that lost a forced failover, as a divergence image, all that it alone had.

   Bad is: a site takes over with an image that is no cut, or that has what was given up; two sites serve; a side that
   lost is overwritten without its divergence image; in sync, and the sides differ. Liveness: somebody serves in the end. */
#include "rules.h"
#ifndef WRITES
#define WRITES 3
#endif
#ifndef FORCES
#define FORCES 2             /* forced failovers */
#endif
#ifndef BOOKS
#define BOOKS 0              /* failovers by the book */
#endif
#ifndef BREAKS
#define BREAKS 1             /* of a synchronization */
#endif
#ifndef TRIPS
#define TRIPS 1
#endif
#ifndef CRASHES
#define CRASHES 1            /* of a secondary that rolls back */
#endif
mtype = { normal, copying, failovering };
mtype = { refused, held, serves };
typedef Site { mtype mode; byte epoch; byte chunk[2]; bool dirty[2]; bool point; byte pointed[2]; bool image; bool off };

byte epoch = 1; mtype state = normal; bool inSync = 1, failedOver, fenced = 1, forced, waived, byForce; byte prim;   /* the record */
Site site[2];
byte readyAt, heldAt, announcedAt; bool copied[2];
bool rolling;
byte issued, trips, breaks, forces, books, crashes; bool calm; byte givenUp, stray;   /* sets of writes; stray: applied, answered by nobody */
#define P site[prim]
#define S site[1 - prim]
#define BIT(n) (1 << (n))
#define CHUNK(n) ((n) % 2)
/* the newest write to chunk c before m that was not given up */
#define LIVE(n, c, m) (n < m && CHUNK(n) == c && issued >= n && !((givenUp | stray) & BIT(n)))
#define BEFORE(c, m) (LIVE(4, c, m) -> 4 : (LIVE(3, c, m) -> 3 : (LIVE(2, c, m) -> 2 : (LIVE(1, c, m) -> 1 : 0))))
#define NEWEST(x) (site[x].chunk[0] > site[x].chunk[1] -> site[x].chunk[0] : site[x].chunk[1])
#define IS_CUT(x) (NEWEST(x) == 0 || !(givenUp & BIT(NEWEST(x))) && site[x].chunk[1 - CHUNK(NEWEST(x))] == BEFORE(1 - CHUNK(NEWEST(x)), NEWEST(x)))
#define LOST_FORCED (forced && !waived)
#define ROLLED(x) (!site[x].point || site[x].chunk[0] == site[x].pointed[0] && site[x].chunk[1] == site[x].pointed[1])
#define DIRTY(c) (P.dirty[c] || S.dirty[c])
#ifdef BAD_UNSENT             /* a write to what was copied is left to the copying, too */
#define WITH_CHUNK(c) 1
#else
#define WITH_CHUNK(c) (DIRTY(c) && !copied[c])
#endif
#define EQUAL (site[0].chunk[0] == site[1].chunk[0] && site[0].chunk[1] == site[1].chunk[1])
#ifdef BAD_SECOND             /* what lost may be failed over to again */
#define NOT_LOST 1
#else
#define NOT_LOST (!forced)
#endif
#ifdef BAD_UNFENCED           /* an old primary that was not heard of may be failed back to */
#define HELD_THEN 1
#else
#define HELD_THEN fenced
#endif
#ifdef BAD_NOT_HELD
#define STOPPED 1
#else
#define STOPPED (heldAt == epoch || P.off)
#endif

inline next(to) { epoch++; state = to; readyAt = 0; heldAt = 0; announcedAt = 0; copied[0] = 0; copied[1] = 0; rolling = 0 }
inline keep_image(x) { if :: LOST_FORCED -> site[x].image = 1 :: else fi }
inline set_point(x) {
  if :: site[x].point -> skip
     :: else -> site[x].point = 1; site[x].pointed[0] = site[x].chunk[0]; site[x].pointed[1] = site[x].chunk[1] fi
}
inline write(x) {
  issued++; printf("site %d: acknowledges write %d\n", x, issued);
  site[x].chunk[CHUNK(issued)] = issued; site[x].dirty[CHUNK(issued)] = 1; copied[CHUNK(issued)] = 0
}

proctype SiteOf(byte x) {
end: do
  :: d_step { x == prim && issued < WRITES && !calm && site[x].mode == serves && site[x].epoch == epoch && !(state == copying && announcedAt == epoch) && !inSync -> write(x) }
  :: d_step { x == prim && issued < WRITES && !calm && site[x].mode == serves && site[x].epoch == epoch && (state == copying && announcedAt == epoch || state == normal && inSync) ->
     write(x); S.chunk[CHUNK(issued)] = issued; copied[CHUNK(issued)] = (state == copying); if :: inSync -> site[x].dirty[CHUNK(issued)] = 0 :: else fi }
  /* a chunk that is still to be copied takes its writes along */
  :: d_step { x == prim && issued < WRITES && !calm && site[x].mode == serves && site[x].epoch == epoch && state == copying && announcedAt == epoch && WITH_CHUNK(CHUNK(issued + 1)) ->
     printf("not sent by itself: "); write(x);
#ifdef BAD_UNSENT
     copied[CHUNK(issued)] = 1
#endif
     }
  /* one that was not heard of writes on: one-sided with an answer, in sync without one */
  :: d_step { x != prim && issued < WRITES && !calm && site[x].mode == serves && site[x].epoch < epoch && byForce -> printf("site %d: serves on\n", x); assert(0) }
  :: d_step { x != prim && issued < WRITES && !calm && site[x].mode == serves && site[x].epoch < epoch && !byForce && failedOver ->
     issued++; printf("site %d: applies write %d, and answers nothing\n", x, issued); site[x].chunk[CHUNK(issued)] = issued; site[x].dirty[CHUNK(issued)] = 1; stray = stray | BIT(issued) }
  /* adopt as primary */
  :: d_step { x == prim && site[x].epoch < epoch && state == failovering && !site[x].off ->
     printf("site %d: holds at epoch %d\n", x, epoch); site[x].epoch = epoch; site[x].mode = held; heldAt = epoch }
  :: d_step { x == prim && site[x].epoch < epoch && state != failovering && !site[x].off ->
     printf("site %d: serves at epoch %d\n", x, epoch); site[x].epoch = epoch; site[x].mode = serves; if :: inSync -> site[x].point = 0; site[x].dirty[0] = 0; site[x].dirty[1] = 0 :: else fi }
  /* demote */
  :: d_step { x != prim && site[x].mode != refused && site[x].epoch < epoch && state == normal && failedOver && !site[x].off ->
     printf("site %d: demotes itself, keeps what it has\n", x); site[x].mode = refused; site[x].epoch = epoch; keep_image(x) }
#ifdef BAD_DEMOTED_STRAIGHT   /* R40: what a demotion has persisted passes for the announcement's */
  :: d_step { x != prim && site[x].mode != refused && site[x].epoch < epoch && state == copying && P.epoch == epoch && !site[x].off ->
     printf("site %d: demotes itself into copying\n", x); site[x].mode = refused; site[x].epoch = epoch; announcedAt = epoch }
#endif
  /* take part as secondary */
  :: d_step { x != prim && state == copying && P.epoch == epoch && announcedAt != epoch && site[x].epoch <= epoch && !site[x].off ->
     printf("site %d: persists copying epoch %d, its point is set\n", x, epoch); site[x].mode = refused; site[x].epoch = epoch; announcedAt = epoch;
#ifndef BAD_NO_IMAGE
     keep_image(x);
#endif
     set_point(x) }
  :: d_step { x != prim && state == failovering && site[x].epoch < epoch && !site[x].off ->
     printf("site %d: persists failovering epoch %d\n", x, epoch); site[x].epoch = epoch; rolling = 1;
#ifdef BAD_POINT_FIRST        /* the point goes before the image is whole */
     if :: site[x].point && byForce -> site[x].chunk[0] = site[x].pointed[0]; site[x].dirty[0] = 1; site[x].point = 0 :: else fi;
#endif
#ifdef BAD_NO_ROLLBACK
     site[x].point = 0;
#endif
     if :: !byForce -> site[x].point = 0 :: else fi }
  :: d_step { x != prim && rolling && site[x].point && site[x].chunk[0] != site[x].pointed[0] -> site[x].chunk[0] = site[x].pointed[0]; site[x].dirty[0] = 1 }
  :: d_step { x != prim && rolling && site[x].point && site[x].chunk[1] != site[x].pointed[1] -> site[x].chunk[1] = site[x].pointed[1]; site[x].dirty[1] = 1 }
  :: d_step { x != prim && rolling && state == failovering && ROLLED(x) && readyAt != epoch -> printf("site %d: its image is whole, ready\n", x); site[x].point = 0; readyAt = epoch }
  :: d_step { x != prim && crashes < CRASHES && rolling && readyAt != epoch -> printf("site %d: its process dies while it rolls back\n", x); crashes++; rolling = 0; site[x].epoch = epoch - 1 }
  od
}

proctype Controller() {
end: do
  :: d_step { !calm && trips < TRIPS && state == normal && inSync && P.epoch == epoch -> printf("tripped\n"); trips++; inSync = 0; next(normal) }
  :: d_step { state == normal && !inSync && !S.off && P.mode == serves && P.epoch == epoch && breaks <= BREAKS ->
     printf("controller: synchronization from site %d\n", prim); failedOver = 0; next(copying) }
  :: d_step { !calm && state == copying && breaks < BREAKS -> printf("the synchronization breaks off\n"); breaks++; next(normal) }
  :: d_step { state == copying && announcedAt == epoch && P.epoch == epoch && DIRTY(0) && !copied[0] -> printf("chunk 0 is copied\n"); copied[0] = 1; S.chunk[0] = P.chunk[0];
     if :: LOST_FORCED && !S.image -> printf("watch: overwritten, and no divergence image\n"); assert(0) :: else fi }
  :: d_step { state == copying && announcedAt == epoch && P.epoch == epoch && DIRTY(1) && !copied[1] -> printf("chunk 1 is copied\n"); copied[1] = 1; S.chunk[1] = P.chunk[1];
     if :: LOST_FORCED && !S.image -> printf("watch: overwritten, and no divergence image\n"); assert(0) :: else fi }
  :: d_step { state == copying && announcedAt == epoch && P.epoch == epoch && (copied[0] || !DIRTY(0)) && (copied[1] || !DIRTY(1)) ->
     printf("in sync\n"); assert(EQUAL); givenUp = givenUp | stray; stray = 0; inSync = 1; forced = 0; waived = 0; fenced = 1; site[0].point = 0; site[1].point = 0;
     site[0].dirty[0] = 0; site[0].dirty[1] = 0; site[1].dirty[0] = 0; site[1].dirty[1] = 0; next(normal) }
  :: d_step { !calm && forced && !waived && !S.image -> printf("user: the divergence image is not needed\n"); waived = 1 }
  /* failovers */
  :: d_step { !calm && books < BOOKS && inSync && state == normal -> printf("user: failover\n"); books++; byForce = 0; next(failovering) }
  :: d_step { !calm && forces < FORCES && !inSync && state != failovering && !failedOver && NOT_LOST && HELD_THEN -> printf("user: forced failover\n"); forces++; byForce = 1; next(failovering) }
  :: d_step { !calm && state == failovering && !P.off && P.mode != refused && byForce -> printf("operator: site %d is off\n", prim); P.off = 1; P.mode = refused }
  :: d_step { site[0].off -> site[0].off = 0 }
  :: d_step { site[1].off -> site[1].off = 0 }
  :: d_step { state == failovering && readyAt == epoch && (!byForce || STOPPED) ->
     printf("failed over to site %d, by force %d\n", 1 - prim, byForce);
     fenced = (byForce || heldAt == epoch); forced = byForce; waived = 0;
     assert(IS_CUT(1 - prim));
     if :: byForce && issued > NEWEST(1 - prim) -> givenUp = givenUp | (BIT(issued + 1) - BIT(NEWEST(1 - prim) + 1)) :: else fi;
     prim = 1 - prim; failedOver = 1; inSync = 0; next(normal) }
  :: d_step { !calm && state == failovering && byForce && breaks < BREAKS -> printf("site %d cannot: the forced failover is given up\n", 1 - prim); breaks++; byForce = 0; next(normal) }
  :: d_step { !calm -> printf("-- calm\n"); calm = 1 }
  od
}
#define settled (P.mode == serves && P.epoch == epoch && state == normal && inSync)
#ifdef LIVE
ltl settles { (<> calm) -> (<> [] settled) }
#endif
init {
  atomic { site[0].mode = serves; site[0].epoch = 1; site[1].mode = refused; site[1].epoch = 1; run SiteOf(0); run SiteOf(1); run Controller() }
}
