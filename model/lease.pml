/* lease.pml: no read returns old data. Time in ticks.

   A primary answers reads under a lease that its secondary grants. Requests and grants take any time and may be lost;
   two may be under way. The primary counts from the moment it sent the request, and its clock may be slow by DRIFT ticks
   for each lease; the secondary counts from the moment it granted, plus MARGIN. A failover moves the record on; the
   secondary, as the new primary, serves after it has waited, and then changes the data: a read that begins after that
   at the old primary and is answered from there is the bug. The check of a read against the clock comes after the
   request arrived: `reading` is a request that is under way in the old primary.

   -DONE_SIDED: the old primary is alone, of the policy `strict`, and its lease is an answer of the store to its own
   read [F16]; a forced failover waits for that lease instead, or for the old primary's word.
   Deadlock is no question here: the clock ends at TICKS. */
#include "rules.h"
#ifndef TICKS
#define TICKS 9
#endif
#define TTL 2
#define DRIFT 1
#define MARGIN 1
#ifndef REQUESTS
#define REQUESTS 2
#endif
#define SLOTS 2

mtype = { free, asked, granted };
typedef Request { mtype at; byte sent };

byte now = 1;
Request request[SLOTS];
byte requests;
byte primaryEpoch = 1, leaseUntil = 3, lastSent = 1;
bool reading, flag = 1;
byte secondaryEpoch = 1, lastGrant = 1;
bool remembers = 1;             /* the secondary knows when it granted last: memory, gone with the process */
bool serves;                    /* the secondary, as the new primary */
byte recordEpoch = 1, committedAt;
bool heldAnswer;                /* the old primary has confirmed the newer epoch: it answers no read [F20] */
bool changed;                   /* the new primary has acknowledged a write */
byte restarts;
bool oldView;                   /* BAD_CACHED_LEASE: the read's answer was true some time ago */

#ifdef BAD_FROM_RECEIPT
#define EXPIRY (now + TTL)
#else
#ifdef BAD_UNMATCHED                    /* an answer is taken for that to the newest request */
#define EXPIRY (lastSent + TTL)
#else
#define EXPIRY (request[k].sent + TTL)
#endif
#endif
#ifdef ONE_SIDED
#define GRANTS (!RULE_F16 || recordEpoch == 1)                  /* [F16] */
#else
#ifdef BAD_NODE_LEASE                   /* heartbeats that know nodes, not groups and epochs */
#define GRANTS (!serves)
#else
#define GRANTS (secondaryEpoch == 1 && !serves)
#endif
#endif
#ifdef BAD_NO_MARGIN
#define WAIT TTL
#else
#define WAIT (TTL + MARGIN)
#endif
#define LEASED (now < leaseUntil && (!RULE_F20 || primaryEpoch == 1))

proctype Heartbeat(byte k) {
end: do
  :: d_step { request[k].at == free && requests < REQUESTS && primaryEpoch == 1 ->
     request[k].at = asked; request[k].sent = now; lastSent = now; requests++ }
  :: d_step { request[k].at == asked && GRANTS -> printf("%d: lease granted\n", now);
     request[k].at = granted;
#ifdef BAD_NODE_LEASE
     if :: secondaryEpoch == 1 -> lastGrant = now; remembers = 1 :: else fi
#else
     lastGrant = now; remembers = 1
#endif
     }
  :: d_step { request[k].at == granted && primaryEpoch == 1 ->  /* the clock of the primary may be slow */
     if :: leaseUntil < EXPIRY -> leaseUntil = EXPIRY :: else fi; flag = 1; request[k].at = free; request[k].sent = 0 }
  :: d_step { request[k].at == granted && primaryEpoch == 1 ->
     if :: leaseUntil < EXPIRY + DRIFT -> leaseUntil = EXPIRY + DRIFT :: else fi; flag = 1; request[k].at = free; request[k].sent = 0 }
  :: d_step { request[k].at != free -> request[k].at = free; request[k].sent = 0 }
  od
}

proctype OldPrimary() {
  bool sawChange;                       /* when the read began, a newer write was acknowledged */
end: do
  :: d_step { !reading -> reading = 1; sawChange = changed }
#ifdef BAD_FLAG                         /* a timer keeps a flag that reads look at; a paused process looks at an old one */
  :: d_step { reading && flag && primaryEpoch == 1 -> printf("%d: the old primary answers a read\n", now); assert(!sawChange); reading = 0 }
  :: d_step { flag && now >= leaseUntil -> flag = 0 }
#else
  :: d_step { reading && LEASED -> printf("%d: the old primary answers a read\n", now); assert(!sawChange); reading = 0; sawChange = 0 }
#endif
  :: d_step { reading -> reading = 0; sawChange = 0 }
#ifdef BAD_SUSPENDED_CLOCK              /* a clock that stands still while the machine sleeps */
  :: d_step { now < TICKS && now < leaseUntil -> now++; leaseUntil++ }
#endif
  :: d_step { recordEpoch == 2 && primaryEpoch == 1 -> printf("%d: the old primary persists failovering, holds\n", now); primaryEpoch = 2 }
  :: d_step { primaryEpoch == 2 && !heldAnswer -> heldAnswer = 1 }
#ifdef BAD_UNPERSISTED
  :: d_step { primaryEpoch == 2 && restarts < 1 -> restarts++; primaryEpoch = 1 }
#endif
  od
}

proctype NewPrimary() {
end: do
  :: d_step { recordEpoch == 1 -> printf("%d: failover\n", now); recordEpoch = 2; committedAt = now }
  :: d_step { recordEpoch == 2 && secondaryEpoch == 1 -> secondaryEpoch = 2 }
#ifdef ONE_SIDED
  :: d_step { secondaryEpoch == 2 && !serves && (heldAnswer || now >= (RULE_F16 -> committedAt : lastGrant) + WAIT) ->
     printf("%d: the new primary serves\n", now); serves = 1 }
#else
  :: d_step { secondaryEpoch == 2 && !serves && (heldAnswer || !remembers || now >= lastGrant + WAIT) ->
     printf("%d: the new primary serves\n", now); serves = 1 }
#endif
  :: d_step { serves && !changed -> printf("%d: the new primary acknowledges a write\n", now); changed = 1 }
  :: d_step { restarts < 1 -> printf("%d: the secondary's process restarts\n", now); restarts++; serves = 0;
     if :: RULE_F15 -> lastGrant = now; remembers = 1           /* [F15] as if it had granted every lease just now */
        :: else -> remembers = 0 fi }
  :: d_step { now < TICKS -> now++ }
  od
}

init { atomic { request[0].at = free; request[1].at = free; run Heartbeat(0); run Heartbeat(1); run OldPrimary(); run NewPrimary() } }
