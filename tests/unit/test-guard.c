/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* guard: no write is in progress together with a prefetch near it. */

#include <stdatomic.h>
#include <stdlib.h>

#include <pthread.h>

#include "check.h"
#include "guard.h"

#define BLOCK 65536

static bool
prefetch_ok (uint64_t offset, uint64_t count)
{
  struct guard_op op;
  const bool ok = guard_begin_prefetch (&op, (struct range) { offset, count });

  if (ok)
    guard_end (&op);
  return ok;
}

static void
test_not_enabled (void)
{
  struct guard_op op;

  guard_begin_write (&op, (struct range) { 0, 512 });
  check (prefetch_ok (0, BLOCK), "nothing is guarded, nobody turned away");
  guard_end (&op);
}

static void
test_writes (void)
{
  struct guard_op a, b;

  check (prefetch_ok (0, BLOCK), "a prefetch may begin");
  guard_begin_write (&a, (struct range) { 10 * BLOCK, 512 });
  check (!prefetch_ok (10 * BLOCK, BLOCK), "not where a write is in progress");
  check (!prefetch_ok (0, 100 * BLOCK), "nor around it");
  check (!prefetch_ok (10 * BLOCK + 512, 1), "nor in the same block");
  check (!prefetch_ok (9 * BLOCK + 1, 1), "nor less than a block before");
  check (prefetch_ok (8 * BLOCK, BLOCK), "but far before it");
  check (prefetch_ok (12 * BLOCK, BLOCK), "and far after it");
  guard_begin_write (&b, (struct range) { 10 * BLOCK, 512 });
  guard_end (&a);
  check (!prefetch_ok (10 * BLOCK, 1), "two writes: not before the second ends");
  guard_end (&b);
  check (prefetch_ok (10 * BLOCK, 1), "then it may");
}

static void
test_edges (void)
{
  struct guard_op op;

  guard_begin_write (&op, (struct range) { INT64_MAX - 512, 512 });
  check (!prefetch_ok (INT64_MAX - 1, 1), "at the end of the largest disk");
  check (prefetch_ok (0, 1), "which is far from the beginning");
  guard_end (&op);
  guard_begin_write (&op, (struct range) { 0, 1 });
  check (!prefetch_ok (0, 1), "at the beginning");
  check (prefetch_ok (INT64_MAX - 512, 512), "which is far from the end");
  guard_end (&op);
}

/* -- threads --------------------------------------------------------------- */

#define ROUNDS 20000

static atomic_int writing, prefetching, together, prefetches;
static pthread_barrier_t all_here;

static void *
writer (void *vp)
{
  struct guard_op op;
  int i;

  pthread_barrier_wait (&all_here);
  for (i = 0; i < ROUNDS; ++i) {
    guard_begin_write (&op, (struct range) { i % 3 * 512, 512 });
    writing++;
    together += prefetching > 0;
    writing--;
    guard_end (&op);
  }
  return NULL;
}

static void *
prefetcher (void *vp)
{
  struct guard_op op;
  int i;

  pthread_barrier_wait (&all_here);
  /* Writers end, and then there is room at the latest. */
  for (i = 0; i < ROUNDS || prefetches == 0; ++i)
    if (guard_begin_prefetch (&op, (struct range) { 0, 4096 })) {
      prefetching++;
      together += writing > 0;
      prefetches++;
      prefetching--;
      guard_end (&op);
    }
  return NULL;
}

static void
test_threads (void)
{
  pthread_t threads[4];
  int i;

  if (pthread_barrier_init (&all_here, NULL, 4) != 0)
    abort ();
  for (i = 0; i < 4; ++i)
    if (pthread_create (&threads[i], NULL, i < 2 ? writer : prefetcher,
                        NULL) != 0)
      abort ();
  for (i = 0; i < 4; ++i)
    pthread_join (threads[i], NULL);
  pthread_barrier_destroy (&all_here);
  check (together == 0, "never a write and a prefetch together");
  check (prefetch_ok (0, 4096), "in the end nothing is in the way");
}

int
main (void)
{
  test_not_enabled ();
  guard_enable (BLOCK);
  test_writes ();
  test_edges ();
  test_threads ();
  return done ();
}
