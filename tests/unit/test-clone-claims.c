/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* claims: who may fetch, store and write which absent blocks. */

#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "check.h"
#include "common/clock.h"
#include "clone/claims.h"

#define BLOCKS 100

static const struct join all = { .blocks = UINT64_MAX };
static const struct join nobody = { 0 };

static struct map *map;
static struct claims claims;

static void
begin (void)
{
  map = map_new (BLOCKS * 512, 512);
  claims_init (&claims, map);
}

static void
end (void)
{
  claims_destroy (&claims);
  map_free (map);
}

static void
test_reads (void)
{
  struct claim a, b, c;
  uint64_t stop = 20;

  begin ();
  check (claims_begin_read (&claims, &a, 10, &stop, all, 0) == CLAIM_MADE &&
         stop == 20, "the first may read");
  stop = 30;
  check (claims_begin_read (&claims, &b, 12, &stop, all, 0) == CLAIM_JOIN &&
         stop == 20 && b.number == a.number, "the second joins it");
  stop = 30;
  check (claims_begin_read (&claims, &b, 5, &stop, all, 0) == CLAIM_MADE &&
         stop == 10, "or reads what is before");
  stop = 30;
  check (claims_begin_read (&claims, &c, 12, &stop, (struct join) { .blocks = 9 },
                            0) == CLAIM_MADE &&
         stop == 30, "unless it is too large to be joined");
  claims_end (&claims, &c);
  claims_spoil (&claims, 15, 16);
  stop = 30;
  check (claims_begin_read (&claims, &c, 12, &stop, all, 0) == CLAIM_MADE,
         "or out of date");
  claims_end (&claims, &a);
  claims_end (&claims, &b);
  claims_end (&claims, &c);
  map_set (map, 12, 13);
  stop = 30;
  check (claims_begin_read (&claims, &a, 12, &stop, all, 0) == CLAIM_PRESENT,
         "what has become present is not read");
  end ();
}

/* What a read of so many blocks takes. */
static void
take (uint64_t blocks, uint64_t ns)
{
  struct claim claim;
  uint64_t stop = blocks;

  claims_begin_read (&claims, &claim, 0, &stop, nobody, 0);
  claims_end_read (&claims, &claim, ns);
}

/* Does a read of 4 blocks join this one? */
static bool
joins (uint64_t now_ns)
{
  const struct join join = { .blocks = 4, .own = 4 };
  struct claim claim;
  uint64_t stop = 54;

  if (claims_begin_read (&claims, &claim, 50, &stop, join, now_ns) ==
      CLAIM_JOIN)
    return true;
  claims_end (&claims, &claim);
  return false;
}

static void
test_joins_in_time (void)
{
  struct claim large;
  uint64_t stop = BLOCKS;

  begin ();
  claims_begin_read (&claims, &large, 0, &stop, nobody, 1000);
  check (!joins (1000), "a large read is not joined if nothing is known");
  take (4, 200);
  check (!joins (1000), "of it");
  take (80, 600);
  check (!joins (1399), "nor if it ends later than one's own would");
  check (joins (1400), "but if it ends no later");
  check (joins (1800), "also if it is a little overdue");
  check (!joins (1801), "and not if it is late by a read of one's own");
  take (4, 600);
  check (!joins (1299) && joins (1300), "the last few tell what a read takes");
  claims_end (&claims, &large);
  end ();

  begin ();
  stop = BLOCKS;
  claims_begin_read (&claims, &large, 0, &stop, nobody, 1000);
  take (80, 600);
  check (!joins (1599) && joins (1600), "what one's own takes is not known");
  take (1, 100);
  check (!joins (1499) && joins (1500), "it takes what a shorter one does");
  claims_end (&claims, &large);
  end ();
}

/* Comes back although the large read doesn't. */
static void
test_joins_in_vain (void)
{
  const struct join join = { .blocks = 4, .own = 4 };
  struct claim large, small;
  uint64_t stop = BLOCKS, now_ns;

  begin ();
  take (4, NS_PER_SECOND / 10);
  take (80, NS_PER_SECOND / 10);
  now_ns = clock_now_ns ();
  claims_begin_read (&claims, &large, 0, &stop, nobody, now_ns);
  stop = 54;
  check (claims_begin_read (&claims, &small, 50, &stop, join,
                            now_ns) == CLAIM_JOIN, "a large read is joined");
  claims_join (&claims, 50, 54, join, small.number, now_ns);
  check (clock_now_ns () - now_ns >= NS_PER_SECOND / 10,
         "for as long as one's own would take");
  stop = 54;
  check (claims_begin_read (&claims, &small, 50, &stop, nobody,
                            now_ns) == CLAIM_MADE, "and then read for oneself");
  claims_end (&claims, &small);
  claims_end (&claims, &large);
  check (claims.list == NULL, "both end");
  end ();
}

/* The same for one that would be waited for whatever its length: it hangs. */
static void
test_joins_what_hangs (void)
{
  const uint64_t now_ns = clock_now_ns (), begun_ns = now_ns - 10 * NS_PER_SECOND;
  struct claim hangs, own;
  uint64_t stop = 4;

  begin ();
  claims_begin_read (&claims, &hangs, 0, &stop, all, begun_ns);
  check (claims_begin_read (&claims, &own, 0, &stop, all, now_ns - 1) == CLAIM_JOIN,
         "a read is joined though it takes long");
  claims_join (&claims, 0, 4, all, own.number, now_ns - 1);
  check (claims_begin_read (&claims, &own, 0, &stop, all, now_ns) == CLAIM_MADE,
         "but not for ever");
  claims_end (&claims, &own);
  take (4, 3 * NS_PER_SECOND);
  check (claims_begin_read (&claims, &own, 0, &stop, all,
                            begun_ns + 12 * NS_PER_SECOND - 1) == CLAIM_JOIN &&
         claims_begin_read (&claims, &own, 0, &stop, all,
                            begun_ns + 12 * NS_PER_SECOND) == CLAIM_MADE,
         "unless such take long");
  claims_end (&claims, &own);
  claims_end (&claims, &hangs);
  end ();
}

static void
test_stores (void)
{
  struct map *durable = map_new (BLOCKS * 512, 512);
  struct claim read, other, store, write;
  uint64_t stop = 50;

  begin ();
  claims_begin_read (&claims, &read, 0, &stop, all, 0);
  claims_begin_write (&claims, &write, 10, 20, false);
  map_set (map, 30, 35);
  check (claims_begin_store (&claims, &store, &read, 0, 50) &&
         store.first == 0 && store.end == 10, "stored up to a write");
  claims_end (&claims, &store);
  check (claims_begin_store (&claims, &store, &read, 10, 50) &&
         store.first == 20 && store.end == 30,
         "from its end to what is present");
  stop = 50;
  claims_begin_read (&claims, &other, 0, &stop, nobody, 0);
  check (!claims_begin_store (&claims, &write, &other, 10, 30),
         "not what somebody stores or writes");
  claims_end (&claims, &store);
  check (claims_begin_store (&claims, &store, &read, 30, 50) &&
         store.first == 35 && store.end == 50, "and the rest");
  claims_end (&claims, &store);
  claims_spoil (&claims, 40, 42);
  claims_spoil (&claims, 43, 45);
  check (claims_begin_store (&claims, &store, &read, 35, 50) &&
         store.first == 35 && store.end == 40, "up to what is out of date");
  claims_end (&claims, &store);
  check (claims_begin_store (&claims, &store, &read, 40, 50) &&
         store.first == 45 && store.end == 50, "and after that, nothing of it");
  claims_end (&claims, &store);
  claims_spoil (&claims, 49, 60);
  check (!claims_begin_store (&claims, &store, &read, 45, 50),
         "nothing up to its end");
  claims_end (&claims, &other);

  stop = 95;
  claims_begin_read (&claims, &other, 80, &stop, all, 0);
  map_set (map, 70, 80);
  claims_distrust (&claims, durable);
  check (!claims_begin_store (&claims, &store, &other, 80, 95),
         "nothing that is read when a sync fails");
  claims_end (&claims, &other);
  stop = 80;
  check (claims_begin_read (&claims, &other, 70, &stop, all, 0) == CLAIM_MADE,
         "what was present before is read again then");
  claims_end (&claims, &other);
  map_free (durable);
  claims_end (&claims, &write);
  claims_end (&claims, &read);
  end ();
}

/* -- who waits ------------------------------------------------------------- */

static bool
has_waiters (struct claim *claim)
{
  bool r;

  pthread_mutex_lock (&claims.lock);
  r = claim->waiters != NULL;
  pthread_mutex_unlock (&claims.lock);
  return r;
}

static void *
write_blocks (void *alone)
{
  struct claim claim;

  claims_begin_write (&claims, &claim, 5, 15, alone != NULL);
  map_set (map, 5, 15);
  claims_end (&claims, &claim);
  return NULL;
}

static void *
join_blocks (void *number)
{
  claims_join (&claims, 0, 20, all, * (uint64_t *) number,
               clock_now_ns ());
  return NULL;
}

static void *
settle_block (void *unused)
{
  claims_settle (&claims, 10, CLOCK_NEVER);
  return NULL;
}

/* Does such a thread wait for this claim?  Ends the claim. */
static bool
waits (struct claim *claim, void *(*run) (void *), void *arg)
{
  pthread_t thread;

  pthread_create (&thread, NULL, run, arg);
  while (!has_waiters (claim))
    sched_yield ();
  claims_end (&claims, claim);
  pthread_join (thread, NULL);
  return true;
}

static void
test_waits (void)
{
  struct claim read, store, write;
  uint64_t stop = 20;

  begin ();
  claims_begin_read (&claims, &read, 0, &stop, all, 0);
  write_blocks (NULL);
  check (map_has (map, 5, 15), "a write does not wait for a read");
  claims_end (&claims, &read);
  end ();

  begin ();
  stop = 20;
  claims_begin_read (&claims, &read, 0, &stop, all, 0);
  claims_begin_store (&claims, &store, &read, 0, 20);
  check (waits (&store, write_blocks, NULL), "it waits for who stores");
  claims_begin_write (&claims, &write, 0, 20, false);
  write_blocks (NULL);
  check (true, "not for who writes");
  check (waits (&write, write_blocks, &write), "unless it is to be alone");
  claims_begin_write (&claims, &write, 0, 20, false);
  check (waits (&write, settle_block, NULL), "a block is waited for");
  claims_end (&claims, &read);
  end ();

  begin ();
  stop = 20;
  claims_begin_read (&claims, &read, 0, &stop, all, clock_now_ns ());
  check (waits (&read, join_blocks, &read.number), "a read is waited for");
  stop = 20;
  claims_begin_read (&claims, &read, 0, &stop, all, clock_now_ns ());
  join_blocks (&(uint64_t) { read.number - 1 });
  check (true, "but no later one");
  map_set (map, 0, 20);
  join_blocks (&read.number);
  check (true, "nor one of what is present");
  claims_end (&claims, &read);
  end ();
}

/* -- many ------------------------------------------------------------------ */

#define ROUNDS 20000
#define THREADS 4

/* Who is at each block; what they are must not meet. */
static atomic_int storing[BLOCKS], writing[BLOCKS];
static atomic_int met, unset;

static void
be_there (atomic_int *here, const atomic_int *others, const struct claim *claim,
          int most)
{
  uint64_t i;

  for (i = claim->first; i < claim->end; ++i)
    met += ++here[i] > most || others[i] > 0;
  for (i = claim->first; i < claim->end; ++i)
    here[i]--;
}

static void *
do_many (void *seed_)
{
  unsigned seed = (uintptr_t) seed_;
  struct claim read, claim;
  uint64_t first, stop, end_, at;
  int i;

  for (i = 0; i < ROUNDS; ++i) {
    first = rand_r (&seed) % BLOCKS;
    end_ = first + 1 + rand_r (&seed) % 10;
    stop = end_ = end_ > BLOCKS ? BLOCKS : end_;
    if (rand_r (&seed) % 4 == 0) {
      claims_begin_write (&claims, &claim, first, end_, false);
      be_there (writing, storing, &claim, THREADS);
      claims_end (&claims, &claim);
      continue;
    }
    switch (claims_begin_read (&claims, &read, first, &stop, all, clock_now_ns ())) {
    case CLAIM_MADE:
      for (at = first;
           claims_begin_store (&claims, &claim, &read, at, stop);
           at = claim.end) {
        be_there (storing, writing, &claim, 1);
        /* Rarely, so that there is something to do for all rounds. */
        if (i % (ROUNDS / 20) == 0)
          map_set (map, claim.first, claim.first + 1);
        claims_end (&claims, &claim);
      }
      claims_end (&claims, &read);
      break;
    case CLAIM_JOIN:
      claims_join (&claims, first, end_, all, read.number,
                   clock_now_ns ());
      break;
    case CLAIM_PRESENT:
      unset += !map_has (map, first, first + 1);
      break;
    }
  }
  return NULL;
}

static void
test_many (void)
{
  pthread_t threads[THREADS];
  uintptr_t i;

  begin ();
  for (i = 0; i < THREADS; ++i)
    pthread_create (&threads[i], NULL, do_many, (void *) (i + 1));
  for (i = 0; i < THREADS; ++i)
    pthread_join (threads[i], NULL);
  check (met == 0, "nobody stores where somebody stores or writes (%d)", met);
  check (unset == 0, "what is said to be present is (%d)", unset);
  check (claims.list == NULL, "no claim is left, and nobody hangs");
  end ();
}

int
main (void)
{
  test_reads ();
  test_joins_in_time ();
  test_joins_in_vain ();
  test_joins_what_hangs ();
  test_stores ();
  test_waits ();
  test_many ();
  return done ();
}
