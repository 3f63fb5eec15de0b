/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* budget: scan-limit is exact, scan-rate is never exceeded since the start. */

#include <stdlib.h>

#include <pthread.h>

#include "budget.h"
#include "check.h"
#include "clock.h"

static void
test_none (void)
{
  struct budget *budget = budget_new (BUDGET_NONE, BUDGET_NONE);

  check (budget_draw (budget, UINT32_MAX) == UINT32_MAX &&
         budget_left (budget) > 0, "without a limit all may be drawn");
  check (budget_pay (budget, UINT32_MAX, 5) <= 5,
         "without a rate all may be fetched at once");
  budget_refund (budget, UINT32_MAX);
  check (budget_draw (budget, UINT32_MAX) == UINT32_MAX, "again and again");
  budget_free (budget);
  budget_free (NULL);
}

static void
test_limit (void)
{
  struct budget *budget = budget_new (BUDGET_NONE, 10000);

  check (budget_draw (budget, 4096) == 4096, "a block");
  check (budget_draw (budget, 4096) == 4096, "another");
  check (budget_left (budget) > 0, "there is something left");
  check (budget_draw (budget, 4096) == 10000 - 8192, "which is drawn");
  check (budget_left (budget) == 0, "now there is not");
  check (budget_draw (budget, 4096) == 0, "and nothing more is to be had");
  budget_free (budget);
}

#define SECOND NS_PER_SECOND

static void
test_rate (void)
{
  const uint64_t start = 5 * SECOND;
  struct budget *budget = budget_new (1000000, BUDGET_NONE); /* 1 MB a second */
  uint64_t now = start, i;
  bool in_order = true;

  /* Who comes at once waits for those before. */
  for (i = 1; i <= 100; ++i)
    in_order = in_order &&
      budget_pay (budget, 1000000, start) == start + i * SECOND;
  check (in_order, "all are paid for one after the other");
  budget_refund (budget, 1000000);
  check (budget_pay (budget, 500000, start) == start + 99 * SECOND + SECOND / 2,
         "what is given back is not paid for");
  budget_free (budget);

  budget = budget_new (1, BUDGET_NONE);
  check (budget_pay (budget, 32 * 1024 * 1024, start)
         == start + 32 * 1024 * 1024 * SECOND,
         "a byte a second is a year for a block");
  budget_free (budget);

  budget = budget_new (UINT64_C (1) << 62, BUDGET_NONE);
  check (budget_pay (budget, UINT32_MAX, start) <= start + 10,
         "a huge rate is none");
  budget_free (budget);

  /* Reads of 4096 bytes that take 3 ms each, after a wait for 4.096 ms. */
  budget = budget_new (1000000, BUDGET_NONE);
  for (i = 0; i < 1000; ++i) {
    const uint64_t until = budget_pay (budget, 4096, now);

    now = (until > now ? until : now) + 3 * SECOND / 1000;
  }
  check (now - start <= 4100 * SECOND / 1000,
         "the time that a fetch takes counts: %.3f s for 4.096 MB",
         (double) (now - start) / SECOND);

  /* An hour later. */
  now += 3600 * SECOND;
  check (budget_pay (budget, 4096, now) <= now, "one is saved up");
  check (budget_pay (budget, 4096, now) > now, "and only one");
  budget_free (budget);
}

/* Never more than the rate since the start, whatever is asked for and when. */
static void
test_rate_is_never_exceeded (void)
{
  struct budget *budget = budget_new (1000000, BUDGET_NONE);
  uint64_t now = SECOND, sum = 0, state = 1;
  bool ok = true;
  int i;

  for (i = 0; i < 10000; ++i) {
    uint32_t count, used;
    uint64_t until;

    state = state * 48271 % 2147483647;
    count = state % 100000 + 1;
    used = state % 3 == 0 ? count / 2 : count;
    until = budget_pay (budget, count, now);
    if (until > now)
      now = until;
    budget_refund (budget, count - used);
    sum += used;
    ok = ok && sum <= (now - SECOND) / 1000 + 1;
    now += state % 7 * 10000000;
  }
  check (ok, "no more than the rate since the start");
  budget_free (budget);
}

static struct budget *shared;

static void *
drawer (void *vp)
{
  uint64_t *drawn = vp;
  uint32_t n;

  while ((n = budget_draw (shared, 7)) > 0)
    *drawn += n;
  return NULL;
}

static void
test_threads (void)
{
  pthread_t threads[4];
  uint64_t drawn[4] = { 0 }, sum = 0;
  int i;

  shared = budget_new (BUDGET_NONE, 100003);
  for (i = 0; i < 4; ++i)
    if (pthread_create (&threads[i], NULL, drawer, &drawn[i]) != 0)
      abort ();
  for (i = 0; i < 4; ++i) {
    pthread_join (threads[i], NULL);
    sum += drawn[i];
  }
  check (sum == 100003, "threads share the limit exactly");
  budget_free (shared);
}

int
main (void)
{
  test_none ();
  test_limit ();
  test_rate ();
  test_rate_is_never_exceeded ();
  test_threads ();
  return done ();
}
