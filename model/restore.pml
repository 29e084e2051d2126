/* restore.pml: etcd is restored from an older backup under nodes that know better.

   Two nodes, one pair. The record has an epoch, a primary and the in-sync flag; each change of it is one step here, taken
   by whom it needs: a trip by the primary, a failover by the secondary, a synchronization by both, another policy by
   nobody. At some moment the record is copied, at a later one the copy is put back. A node that finds the store's epoch
   below its own, at its start or after something newer, is `behind`: it serves nothing, answers nothing, and only a
   record that was recovered above what it has persisted ends that. `lockstep store recover` asks every node, takes the
   newest record, lifts it above all, and keeps in sync only what every node confirms.

   What the rules cannot do is left to the manual: before the recovery every node is started and linked, and nothing is
   asked of groups (-DAWAY and -DACTS_ANYWAY show why). Data: the number of the newest write.

   Bad is: a node serves without an acknowledged write; two nodes serve at once. Liveness: once calm somebody serves. */
#include "rules.h"
#ifndef CHANGES
#define CHANGES 4            /* of the record, before and after the restore */
#endif
#ifndef DOWNS
#define DOWNS 1
#endif
typedef Rec { byte epoch; byte prim; bool inSync; byte recovered };
typedef Node_ { byte epoch; byte prim; bool inSync; bool up; bool looked; bool saw; bool behind; byte told; byte has };

Rec record, copy;
Node_ node[2];
bool copied, restored, recoveredNow, calm, cut; byte changes, downs, issued, acked;
#define N node[s]
#define O node[1 - s]
#define PRIM node[record.prim]
#define SEC node[1 - record.prim]
/* up, read the record, persisted it, and takes part */
#define AT(n) (n.up && n.looked && !n.behind && n.epoch == record.epoch)
#define PAIRED(s) (node[1 - s].up && !node[1 - s].behind && node[1 - s].epoch == node[s].epoch && node[1 - s].prim == s && !cut)
#define SERVES(s) (node[s].up && node[s].looked && !node[s].behind && node[s].prim == s && (!node[s].inSync || PAIRED(s)))
#ifdef ACTS_ANYWAY            /* users go on although nodes are not started, or say that the store is older */
#define MAY_ACT 1
#else
#define MAY_ACT (!restored || recoveredNow || node[0].up && node[1].up && node[0].saw && node[1].saw && !node[0].behind && !node[1].behind)
#endif
#ifdef AWAY                   /* a node that knows more is away, or cut off, while one that does not know acts alone */
#define MAY_TRIP 1
#else
#define MAY_TRIP MAY_ACT
#endif
#ifdef BAD_REVISION           /* M20: the revision has grown, and a running node looks at nothing else */
#define SAW(s) 0
#else
#define SAW(s) (node[s].told > record.epoch)
#endif
#ifdef BAD_AT_START
#define STARTS_BEHIND(s) 0
#else
#define STARTS_BEHIND(s) (!node[s].looked && node[s].epoch > record.epoch)
#endif
#ifdef BAD_NOT_ALL            /* nodes that are down are not waited for */
#define REPORTS(n) (n.saw || !n.up)
#define KNOWS(n) n.up
#else
#define REPORTS(n) (n.saw)
#define KNOWS(n) 1
#endif
#ifdef BAD_UNMARKED           /* any higher number ends it */
#define ENDS(s) (record.epoch > node[s].epoch)
#else
#define ENDS(s) (record.recovered > node[s].epoch)
#endif
#ifdef BAD_NOT_ABOVE
#define LIFTED (record.epoch + 1)
#else
#define LIFTED ((KNOWS(node[0]) && node[0].epoch > record.epoch && (!KNOWS(node[1]) || node[0].epoch >= node[1].epoch) -> node[0].epoch : \
                 (KNOWS(node[1]) && node[1].epoch > record.epoch -> node[1].epoch : record.epoch)) + 1)
#endif

proctype Node(byte s) {
end: do
  /* the store's changes, in their order; the first one after a start by a list */
  :: d_step { N.up && !(N.looked && N.saw && N.told == record.epoch && (N.behind || N.epoch >= record.epoch)) ->
     if :: STARTS_BEHIND(s) || SAW(s) && N.epoch > record.epoch -> printf("node %d: the store's epoch %d is older than its own %d: serves nothing\n", s, record.epoch, N.epoch); N.behind = 1
        :: else ->
           if :: N.behind && ENDS(s) -> N.behind = 0 :: else fi;
           if :: !N.behind && record.epoch > N.epoch ->
                 printf("node %d: persists epoch %d, primary %d, in sync %d\n", s, record.epoch, record.prim, record.inSync);
                 N.epoch = record.epoch; N.prim = record.prim; N.inSync = record.inSync
              :: else fi
     fi;
     N.looked = 1; N.saw = 1; N.told = record.epoch }
  /* a refusal hands the newer record on */
  :: d_step { N.up && O.up && !cut && O.epoch > N.epoch && N.looked && !N.behind && N.prim == s ->
     printf("node %d: learns epoch %d from its peer\n", s, O.epoch); N.epoch = O.epoch; N.prim = O.prim; N.inSync = O.inSync }
  :: d_step { !calm && SERVES(s) && issued < 2 -> issued++; acked = issued; N.has = issued; if :: N.inSync -> O.has = issued :: else fi;
     printf("node %d: acknowledges write %d, in sync %d\n", s, issued, N.inSync) }
  :: d_step { !calm && downs < DOWNS && N.up -> printf("node %d: down\n", s); downs++; N.up = 0; N.looked = 0; N.saw = 0; N.behind = 0; N.told = 0 }
  :: d_step { !N.up -> printf("node %d: starts\n", s); N.up = 1 }
  od
}

proctype Controller() {
end: do
  :: d_step { (!calm && changes < CHANGES || calm && !SEC.up) && MAY_TRIP && record.inSync && AT(PRIM) ->
     printf("node %d: trips, not in sync at epoch %d\n", record.prim, record.epoch + 1); changes++; record.epoch++; record.inSync = 0;
     PRIM.epoch = record.epoch; PRIM.inSync = 0; PRIM.told = record.epoch }
  :: d_step { !calm && changes < CHANGES && MAY_ACT && record.inSync && AT(SEC) ->
     printf("user: failover to node %d at epoch %d\n", 1 - record.prim, record.epoch + 1); changes++; record.epoch++; record.inSync = 0; record.prim = 1 - record.prim;
     PRIM.epoch = record.epoch; PRIM.prim = record.prim; PRIM.inSync = 0; PRIM.told = record.epoch }
  :: d_step { !calm && changes < CHANGES && MAY_ACT && !record.inSync && AT(PRIM) && SEC.up && SEC.looked && !SEC.behind && SEC.epoch <= record.epoch && !cut ->
     printf("controller: in sync at epoch %d\n", record.epoch + 1); changes++; record.epoch++; record.inSync = 1; SEC.has = PRIM.has;
     PRIM.epoch = record.epoch; PRIM.inSync = 1; PRIM.told = record.epoch; SEC.epoch = record.epoch; SEC.prim = record.prim; SEC.inSync = 1; SEC.told = record.epoch }
  :: d_step { !calm && changes < CHANGES && MAY_ACT -> printf("user: another policy at epoch %d\n", record.epoch + 1); changes++; record.epoch++ }
  :: d_step { !calm && !copied -> printf("the store is backed up at epoch %d\n", record.epoch); copied = 1;
     copy.epoch = record.epoch; copy.prim = record.prim; copy.inSync = record.inSync; copy.recovered = record.recovered }
  :: d_step { !calm && copied && !restored && record.epoch > copy.epoch -> printf("the store is restored: epoch %d, primary %d, in sync %d\n", copy.epoch, copy.prim, copy.inSync);
     restored = 1; node[0].saw = 0; node[1].saw = 0; record.epoch = copy.epoch; record.prim = copy.prim; record.inSync = copy.inSync; record.recovered = copy.recovered }
#ifdef AWAY
  :: d_step { !calm && restored && !cut -> printf("the link is cut\n"); cut = 1 }
#endif
  :: d_step { restored && !recoveredNow && REPORTS(node[0]) && REPORTS(node[1]) -> 
     byte newest = record.epoch, at = LIFTED; byte prim = record.prim; bool inSync = record.inSync, all = 1;
#ifndef BAD_STORE_RECORD        /* else the store's own record counts */
     if :: KNOWS(node[0]) && node[0].epoch > newest -> newest = node[0].epoch; prim = node[0].prim; inSync = node[0].inSync :: else fi;
     if :: KNOWS(node[1]) && node[1].epoch > newest -> newest = node[1].epoch; prim = node[1].prim; inSync = node[1].inSync :: else fi;
#endif
     all = (node[0].epoch == newest && node[1].epoch == newest);
     recoveredNow = 1; record.epoch = at; record.recovered = at; record.prim = prim; record.inSync = (inSync && all);
     printf("operator: recovered at epoch %d, primary %d, in sync %d\n", at, prim, record.inSync);
     newest = 0; at = 0; prim = 0; inSync = 0; all = 0 }
  :: d_step { !calm -> printf("-- calm\n"); calm = 1 }
  od
}

proctype Watch() {
end: do
  :: d_step { SERVES(0) && node[0].has < acked || SERVES(1) && node[1].has < acked -> printf("watch: served without an acknowledged write\n"); assert(0) }
  :: d_step { SERVES(0) && SERVES(1) -> printf("watch: two serve\n"); assert(0) }
  od
}
#define settled (SERVES(0) || SERVES(1))
#ifdef LIVE
ltl settles { (<> calm) -> (<> [] settled) }
#endif
init {
  atomic {
    record.epoch = 1; record.inSync = 1;
    node[0].epoch = 1; node[0].inSync = 1; node[0].up = 1; node[0].looked = 1; node[0].told = 1;
    node[1].epoch = 1; node[1].inSync = 1; node[1].up = 1; node[1].looked = 1; node[1].told = 1;
    run Node(0); run Node(1); run Controller(); run Watch() }
}
