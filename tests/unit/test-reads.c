/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* reads: the queue is bounded and never loses the furthest end, whatever several
 * threads do at once; waiting and waking; idle times.
 */

#include <stdatomic.h>
#include <stdlib.h>

#include <pthread.h>
#include <sched.h>

#include "check.h"
#include "clock.h"
#include "reads.h"

static struct reads_waiter waiter_of_main;

static struct met_read batch[READS_MAX];

static struct map *map;         /* 4096 bytes are in flight, the rest is away */

/* What the read path does. */
static bool
note (struct reads *reads, uint64_t offset, uint64_t count)
{
  if (!reads_are_wanted (reads))
    return false;
  reads_begin (reads, map, offset, count);
  return true;
}

static void
test_order (void)
{
  struct reads *reads = reads_new ();
  size_t n;

  check (reads_take (reads, batch) == 0, "there are none at first");
  note (reads, 4096, 512);
  note (reads, 0, 1);
  n = reads_take (reads, batch);
  check (n == 2 && batch[0].range.offset == 4096 &&
         batch[0].range.count == 512 && batch[1].range.offset == 0 &&
         batch[1].range.count == 1, "oldest first");
  check (batch[0].met == MET_MISS && batch[1].met == MET_LATE,
         "with what each met");
  check (reads_take (reads, batch) == 0, "each is given once");
  reads_free (reads);
  reads_free (NULL);
}

static void
test_bound (void)
{
  struct reads *reads = reads_new ();
  uint64_t i, furthest = 0;
  size_t n, j;

  /* The furthest is in the middle of what doesn't fit. */
  for (i = 0; i < 3 * READS_MAX; ++i)
    note (reads, i == 2 * READS_MAX ? 1 << 30 : i, 10);
  n = reads_take (reads, batch);
  check (n == READS_MAX, "the queue is bounded");
  for (j = 0; j < n; ++j)
    if (range_end (batch[j].range) > furthest)
      furthest = range_end (batch[j].range);
  check (furthest == (1 << 30) + 10, "the furthest end is not lost");
  check (batch[0].range.offset == 0 &&
         batch[READS_MAX-2].range.offset == READS_MAX - 2,
         "the oldest reads are kept");

  /* A disk may end at 2^63 - 1. */
  note (reads, INT64_MAX - 512, 512);
  reads_take (reads, batch);
  check (range_end (batch[0].range) == INT64_MAX, "the end of the largest disk");
  reads_free (reads);
}

static void
test_failed (void)
{
  struct reads *reads = reads_new ();
  size_t n, i;

  note (reads, 4096, 512);
  check (reads_failed (reads, 4096, 512), "there is room");
  n = reads_take (reads, batch);
  check (n == 2 && !batch[0].failed && batch[1].failed &&
         batch[1].range.offset == 4096 && batch[1].range.count == 512,
         "a read that has failed, after it has begun");

  for (i = 0; i < 2 * READS_MAX; ++i)
    note (reads, i, 10);
  check (!reads_failed (reads, 1 << 30, 512), "a full queue says so");
  for (i = reads_take (reads, batch); i > 0; --i)
    check (!batch[i-1].failed, "not in a full queue");
  check (reads_failed (reads, 1 << 30, 512) && reads_take (reads, batch) == 1 &&
         batch[0].failed, "but once that is emptied");
  reads_free (reads);
}

static void
test_stop (void)
{
  struct reads *reads = reads_new ();

  check (note (reads, 0, 1), "a read is noted");
  reads_end (reads);
  reads_take (reads, batch);
  reads_stop (reads);
  check (!note (reads, 0, 1),
         "after the end of the scan it isn't");
  check (reads_take (reads, batch) == 0, "and takes no room");
  reads_free (reads);
}

static void
test_idle (void)
{
  struct reads *reads = reads_new ();
  uint64_t a, b;

  a = reads_idle_ns (reads);
  while (clock_now_ns () % 1000 == 0)
    ;
  b = reads_idle_ns (reads);
  check (a <= b && b > 0, "idle time grows");
  note (reads, 0, 1);
  check (reads_idle_ns (reads) == 0, "it is 0 while a read is in flight");
  note (reads, 0, 1);
  check (reads_in_flight (reads) == 2, "how many are in flight");
  reads_end (reads);
  check (reads_in_flight (reads) == 1, "one less when one ends");
  check (reads_idle_ns (reads) == 0, "and while any is");
  b = clock_now_ns ();
  reads_end (reads);
  check (reads_idle_ns (reads) <= clock_now_ns () - b,
         "it begins anew when the last one ends");
  reads_free (reads);
}

/* -- two threads ----------------------------------------------------------- */

#define TOTAL 200000

static void *
client (void *vp)
{
  struct reads *reads = vp;
  uint64_t i;

  for (i = 1; i <= TOTAL; ++i) {
    /* Not in order: the furthest of all is neither first nor last. */
    note (reads, (i * 7919) % TOTAL, 1);
    reads_end (reads);
  }
  return NULL;
}

/* Takes until the furthest end has come; if one could be lost, or a wake-up be
 * missed, this would never end.
 */
static void
test_two_threads (void)
{
  struct reads *reads = reads_new ();
  uint64_t furthest = 0, taken = 0;
  pthread_t thread;
  size_t n, i;

  if (pthread_create (&thread, NULL, client, reads) != 0)
    abort ();
  while (furthest < TOTAL) {
    reads_wait (reads, &waiter_of_main, CLOCK_NEVER);
    n = reads_take (reads, batch);
    taken += n;
    for (i = 0; i < n; ++i)
      if (range_end (batch[i].range) > furthest)
        furthest = range_end (batch[i].range);
  }
  pthread_join (thread, NULL);
  check (furthest == TOTAL, "the furthest end arrives");
  check (taken <= TOTAL, "nothing arrives twice");
  reads_free (reads);
}

/* Clients that read at once: each in order, from a place of its own. */
#define CLIENTS 4
#define CLIENT_READS 50000

struct client {
  struct reads *reads;
  unsigned number;
};

static void *
one_of_many (void *vp)
{
  struct client *c = vp;
  uint64_t i;

  for (i = 0; i < CLIENT_READS; ++i) {
    note (c->reads, (uint64_t) c->number * CLIENT_READS + i, c->number + 1);
    reads_end (c->reads);
  }
  return NULL;
}

/* What there is no room for is counted; all else arrives once, whole, and in the
 * order in which each client has read.  But for the newest of a full queue.
 */
static void
test_many_threads (void)
{
  struct reads *reads = reads_new ();
  struct client clients[CLIENTS];
  pthread_t threads[CLIENTS];
  uint64_t next[CLIENTS] = { 0 };
  uint64_t taken = 0, lost = 0, at;
  unsigned i, of, torn = 0, back = 0;
  size_t n, j;

  for (i = 0; i < CLIENTS; ++i) {
    clients[i] = (struct client) { reads, i };
    if (pthread_create (&threads[i], NULL, one_of_many, &clients[i]) != 0)
      abort ();
  }
  do {
    n = reads_take (reads, batch);
    lost += reads_take_lost (reads);
    taken += n;
    for (j = 0; j < n; ++j) {
      of = batch[j].range.offset / CLIENT_READS;
      at = batch[j].range.offset % CLIENT_READS;
      if (of >= CLIENTS || batch[j].range.count != of + 1) {
        torn++;
        continue;
      }
      /* A place in the ring may have been had again since this was put aside. */
      back += at < next[of] && j < n - 1;
      if (at >= next[of])
        next[of] = at + 1;
    }
  } while (taken + lost < CLIENTS * CLIENT_READS);
  for (i = 0; i < CLIENTS; ++i)
    pthread_join (threads[i], NULL);
  n = reads_take (reads, batch);
  lost += reads_take_lost (reads);
  check (torn == 0, "each is whole");
  check (back == 0, "in order");
  check (n == 0 && taken + lost == CLIENTS * CLIENT_READS,
         "none is missing, none arrives twice");
  reads_free (reads);
}

/* Two threads wait, as a scan's decider and its looker do. */
#define PASSES 500

static struct often {
  struct reads *reads;
  atomic_uint passes;
} often[2];

static void *
wait_often (void *vp)
{
  struct often *o = vp;
  struct reads_waiter own = { 0 };

  while (o->passes < PASSES) {
    reads_wait (o->reads, &own, CLOCK_NEVER);
    o->passes++;
  }
  return NULL;
}

static void
test_wake (void)
{
  struct reads *reads = reads_new ();
  pthread_t threads[2];
  uint64_t begin;
  unsigned before[2], n;

  /* Before the wait, and in it. */
  reads_wake (reads);
  reads_wait (reads, &waiter_of_main, CLOCK_NEVER);
  check (true, "a wake-up before the wait counts");

  begin = clock_now_ns ();
  reads_wait (reads, &waiter_of_main, begin + 1000000);
  check (clock_now_ns () >= begin + 1000000, "without one, the time is waited");
  reads_wait (reads, &waiter_of_main, 0);
  check (true, "a time in the past is not");

  note (reads, 0, 1);
  reads_wait (reads, &waiter_of_main, CLOCK_NEVER);
  reads_end (reads);
  reads_wait (reads, &waiter_of_main, CLOCK_NEVER);
  check (true, "the beginning and the end of a read wake");

  /* However fast they come. */
  begin = clock_now_ns ();
  reads_wake (reads);
  reads_wait (reads, &waiter_of_main, CLOCK_NEVER);
  for (n = 0; n < 20; ++n) {
    reads_wake (reads);
    reads_wait (reads, &waiter_of_main, CLOCK_NEVER);
  }
  check (clock_now_ns () >= begin + 20 * 500000, "waits do not end too often");

  for (n = 0; n < 2; ++n) {
    often[n].reads = reads;
    if (pthread_create (&threads[n], NULL, wait_often, &often[n]) != 0)
      abort ();
  }
  while (often[0].passes < PASSES || often[1].passes < PASSES) {
    for (n = 0; n < 2; ++n)
      before[n] = often[n].passes;
    reads_wake (reads);
    for (n = 0; n < 2; ++n)
      while (often[n].passes == before[n] && before[n] < PASSES)
        sched_yield ();
  }
  for (n = 0; n < 2; ++n)
    pthread_join (threads[n], NULL);
  check (true, "no wake-up is missed by either of two in five hundred");
  reads_free (reads);
}

int
main (void)
{
  map = map_new ();
  map_set_size (map, 1 << 20);
  map_prefetch_begins (map, (struct range) { 0, 4096 });
  test_order ();
  test_bound ();
  test_failed ();
  test_stop ();
  test_idle ();
  test_two_threads ();
  test_many_threads ();
  test_wake ();
  map_free (map);
  return done ();
}
