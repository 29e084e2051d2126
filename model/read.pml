/* read.pml: what a read may give out while a write to the same place is under way, and at the end of a synchronization.

   One block, writes 1 and 2 one after the other, one reader at the primary. A write is applied here and at the secondary
   in any order and acknowledged when both have it. A read copies the block, then settles: it waits until every write that
   overlapped it is acknowledged, and then asks for a lease, which the secondary ends before it takes over. Bad is: a read
   gives out data older than a write that was acknowledged before it began, or data that a failover takes back.

   In a synchronization the primary has reported two-sided (-DCOPYING): the commit may be there before it reads of it, so
   from its report on it is under the same rules. NO_F7: it is not. */
#include "rules.h"
byte mine, theirs;            /* the block's value on both sides */
byte issued, acked;            /* newest write of each */
bool inFlight;
bool reading, copied; byte got, floorOfRead;
byte givenOut;                 /* newest value that a reader has seen */
bool lease = 1, over, reported, committed;
#ifdef COPYING
#define RULES_OF_IN_SYNC (RULE_F7 && reported)
#else
#define RULES_OF_IN_SYNC 1
#endif
#ifdef BAD_NO_WAIT
#define SETTLED 1
#else
#define SETTLED (!inFlight)
#endif
#define LEASED (!RULES_OF_IN_SYNC || lease)
bool newWrite;

init {
end: do
  :: d_step { !over && issued < 2 && !inFlight -> issued++; inFlight = 1; printf("guest: writes %d\n", issued) }
  :: d_step { inFlight && mine < issued -> mine = issued }
  :: d_step { inFlight && theirs < issued && !over -> theirs = issued }
  :: d_step { inFlight && mine == issued && theirs == issued -> printf("primary: acknowledges %d\n", issued); acked = issued; inFlight = 0 }
#ifdef COPYING
  :: d_step { inFlight && mine == issued && !reported -> printf("primary: acknowledges %d one-sided\n", issued); acked = issued; inFlight = 0; theirs = issued }
  :: d_step { !inFlight && !reported -> printf("primary: answers: two-sided\n"); reported = 1 }
  :: d_step { reported && !committed -> committed = 1 }
#endif
  :: d_step { !reading -> reading = 1; copied = 0; floorOfRead = acked; if :: newWrite -> floorOfRead = 9 :: else fi }
  :: d_step { reading && !copied -> copied = 1; got = mine }
  :: d_step { reading && copied && SETTLED && LEASED -> printf("primary: a read gives out %d\n", got);
     assert(got >= floorOfRead); if :: got > givenOut -> givenOut = got :: else fi;
     assert(!over || got <= theirs); reading = 0; copied = 0; got = 0; floorOfRead = 0 }
  :: d_step { reading -> reading = 0; copied = 0; got = 0; floorOfRead = 0 }
  /* failover: the lease has run out before the other side serves */
#ifdef COPYING
  :: d_step { lease && committed -> lease = 0 }
#else
  :: d_step { lease -> lease = 0 }
#endif
  :: d_step { !lease && !over -> printf("failover, the new primary has %d\n", theirs); over = 1;
     assert(theirs >= acked); assert(givenOut <= theirs) }
  :: d_step { over && !newWrite -> printf("the new primary acknowledges a write\n"); newWrite = 1 }
  od
}
