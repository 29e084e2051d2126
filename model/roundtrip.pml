/* roundtrip.pml: failing over, rejoining and failing back in one run, with disks that fail.

   Two sites; the record names the primary. Unforced failover while in sync, synchronization from whoever is primary to the
   other, and failover again: the roles go there and back as often as EPOCHS allows. At each side one disk may fail: at
   the secondary, by an error answer, which trips the group; at the primary, which serves no more, keeps its marks, and
   may be failed over from. A failed disk stays failed (a later success of fdatasync proves nothing) until it is replaced
   by an empty one, which is another directory: it is compared in full before it counts [R]. A site may be down for a while.
   Writes are numbers; a site's image is the newest that it has. Reboots and leases are in other models.

   Bad is: a serving side lacks an acknowledged write; two sides acknowledge at one epoch; the group is in sync and the
   sides differ; a failed or empty disk is the one that counts. Liveness: once calm, with one good disk that has every
   acknowledged write, the group is at rest and somebody serves. */
#include "rules.h"
#define WRITES 3
#ifndef EPOCHS
#define EPOCHS 12
#endif
mtype = { normal, tripping, copying, failovering };
mtype = { good, failed, blank };

byte epoch = 1; mtype state = normal; bool inSync = 1; byte primarySite;           /* the record */
byte has[2]; mtype disk[2]; bool up[2]; byte siteEpoch[2]; bool serves[2];
bool broke[2];               /* the medium itself; disk: what is made of it */
bool whole[2];               /* what this side's directory holds was in sync once, or is the primary's */
byte issued, acked, inFlight; bool remoteDone, localDone;
byte fails, downs, moves; bool calm, ready, reported;
#define OTHER (1 - primarySite)
#define MAY_ACK (up[primarySite] && serves[primarySite] && siteEpoch[primarySite] == epoch && disk[primarySite] == good)

#ifdef BAD_UNHEALTHY
#define HEALTHY(x) 1
#define READY(x) 1
#else
#define HEALTHY(x) (disk[x] == good)
#define READY(x) (disk[x] == good && whole[x])
#endif
#ifdef BAD_BLANK_NOT_COMPARED
#define FULL (disk[OTHER] != blank)
#else
#define FULL 1
#endif
#ifdef BAD_FAILOVER_OUT_OF_SYNC
#define MAY_FAIL_OVER 1
#else
#define MAY_FAIL_OVER inSync
#endif

proctype Site(byte s) {
end: do
  /* adopt the record: demote, hold, or serve */
  :: d_step { up[s] && siteEpoch[s] < epoch && epoch > 0 ->
     siteEpoch[s] = epoch;
     serves[s] = (s == primarySite && state != tripping && state != failovering && disk[s] == good && whole[s]);
     if :: s == primarySite -> printf("site %d: adopts epoch %d as primary, serves %d\n", s, epoch, serves[s]) :: else fi }
  /* the guest */
  :: d_step { !calm && s == primarySite && MAY_ACK && inFlight == 0 && issued < WRITES ->
     issued++; inFlight = issued; localDone = 0; remoteDone = 0; printf("guest: write %d\n", issued) }
  :: d_step { inFlight && s == primarySite && disk[s] == good && up[s] && serves[s] && !localDone -> has[s] = inFlight; localDone = 1 }
  :: d_step { inFlight && s == OTHER && inSync && up[s] && disk[s] == good && siteEpoch[s] == epoch && siteEpoch[primarySite] == epoch && serves[primarySite] && !remoteDone ->
     has[s] = inFlight; remoteDone = 1 }
  :: d_step { inFlight && s == primarySite && localDone && (remoteDone || !inSync) && MAY_ACK ->
     printf("site %d: acknowledges write %d\n", s, inFlight); acked = inFlight; inFlight = 0 }
  /* a disk fails, is replaced */
  :: d_step { !calm && fails < 2 && disk[s] == good && !(fails && disk[1 - s] != good) -> printf("site %d: its disk fails\n", s); fails++; disk[s] = failed; broke[s] = 1; serves[s] = 0;
#ifdef BAD_PEER_ERROR   /* R31: met by a job, the secondary's error passes for one of the own disk */
     if :: s == OTHER && state == copying -> disk[primarySite] = failed; serves[primarySite] = 0 :: else fi
#endif
     }
  :: d_step { disk[s] == failed && s == OTHER && !inSync && !serves[s] -> printf("site %d: an empty disk\n", s); disk[s] = blank; broke[s] = 0; has[s] = 0; whole[s] = 0 }
#ifdef BAD_RETRY        /* the error went away: it is taken for good again, without what it lost */
  :: d_step { disk[s] == failed -> disk[s] = good; if :: has[s] -> has[s]-- :: else fi }
#endif
  /* down, up */
  :: d_step { !calm && downs < 1 && up[s] -> printf("site %d: down\n", s); downs++; up[s] = 0; serves[s] = 0 }
  :: d_step { !up[s] -> printf("site %d: up\n", s); up[s] = 1; siteEpoch[s] = 0 }
  /* the primary: trip */
  :: d_step { s == primarySite && up[s] && state == normal && inSync && siteEpoch[s] == epoch && disk[s] == good && epoch < EPOCHS && (!up[OTHER] || disk[OTHER] != good) ->
     printf("site %d: asks for a trip\n", s); state = tripping; epoch++ }
  :: d_step { s == primarySite && up[s] && state == tripping && siteEpoch[s] == epoch && HEALTHY(s) ->
     printf("site %d: confirms, goes on alone\n", s); state = normal; inSync = 0; epoch++ }
  /* the primary: synchronize */
  :: d_step { s == primarySite && MAY_ACK && state == copying && up[OTHER] && disk[OTHER] != failed && siteEpoch[OTHER] == epoch && inFlight == 0 ->
     printf("site %d: everything is copied\n", s);
     if :: FULL -> has[OTHER] = has[s] :: else skip fi;
     disk[OTHER] = good; whole[OTHER] = 1; state = normal; inSync = 1; epoch++ }
  /* the secondary: failover */
  :: d_step { s == OTHER && up[s] && state == failovering && siteEpoch[s] == epoch ->
     if :: READY(s) -> printf("failed over to site %d\n", s); state = normal; inSync = 0; primarySite = s; epoch++; inFlight = 0; assert(has[s] >= acked && disk[s] == good)
        :: else -> printf("site %d cannot take over, the roles stay\n", s); state = normal; epoch++ fi }
  od
}
proctype Controller() {
end: do
  :: d_step { !calm && moves < 2 && MAY_FAIL_OVER && (state == normal || state == tripping) && epoch < EPOCHS -> printf("user: failover\n"); moves++; state = failovering; epoch++ }
  :: d_step { state == normal && !inSync && epoch < EPOCHS && up[OTHER] && disk[OTHER] != failed && MAY_ACK -> printf("controller: synchronization\n"); state = copying; epoch++ }
  :: d_step { state == copying && (!up[OTHER] || disk[OTHER] == failed || disk[primarySite] != good) -> printf("controller: the synchronization is aborted\n"); state = normal; epoch++ }
  :: d_step { !calm -> printf("-- calm\n"); calm = 1 }
  od
}
proctype Watch() {
end: do
  :: d_step { MAY_ACK && has[primarySite] < acked -> assert(0) }
  :: d_step { inSync && state == normal && disk[0] == good && disk[1] == good && !inFlight && has[OTHER] < acked -> assert(0) }
  :: d_step { disk[0] == failed && !broke[0] || disk[1] == failed && !broke[1] -> printf("watch: a good disk counts as failed\n"); assert(0) }
  :: d_step { serves[0] && serves[1] && siteEpoch[0] == siteEpoch[1] && siteEpoch[0] > 0 -> assert(0) }
  od
}
/* Where the primary's disk is gone and the other side is in sync, the way out is a user's failover, allowed at any time. */
#define settled (epoch >= EPOCHS - 1 || MAY_ACK || (disk[primarySite] != good && state != failovering))
#ifdef LIVE
ltl settles { (<> calm) -> (<> [] settled) }
#endif
init { atomic { disk[0] = good; disk[1] = good; up[0] = 1; up[1] = 1; whole[0] = 1; whole[1] = 1;
  siteEpoch[0] = 1; siteEpoch[1] = 1; serves[0] = 1; run Site(0); run Site(1); run Controller(); run Watch() } }
