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
  uint64_t until;

  check (budget_take (budget, UINT32_MAX, &until) == UINT32_MAX && until == 0,
         "without limits all may be taken at once");
  budget_give (budget, UINT32_MAX);
  budget_free (budget);
  budget_free (NULL);
}

static void
test_limit (void)
{
  struct budget *budget = budget_new (BUDGET_NONE, 10000);
  uint64_t until;

  check (budget_take (budget, 4096, &until) == 4096 && until == 0, "a block");
  check (budget_take (budget, 4096, &until) == 4096, "another");
  check (budget_take (budget, 4096, &until) == 10000 - 8192, "what is left");
  check (budget_take (budget, 4096, &until) == 0, "nothing is left");
  budget_give (budget, 0);
  check (budget_take (budget, 1, &until) == 0, "giving nothing changes nothing");
  budget_give (budget, 100);
  check (budget_take (budget, 4096, &until) == 100, "what was given back");
  budget_free (budget);
}

static void
test_rate (void)
{
  const uint64_t start = clock_now_ns ();
  struct budget *budget = budget_new (1000000, BUDGET_NONE); /* 1 MB a second */
  uint64_t until, last = 0, i;
  bool in_order = true;

  for (i = 1; i <= 100; ++i) {
    budget_take (budget, 1000000, &until);
    /* What has been taken so far is paid for, a second each. */
    in_order = in_order && until >= start + i * NS_PER_SECOND && until > last;
    last = until;
  }
  check (in_order, "no more than the rate since the start");
  check (last <= clock_now_ns () + 100 * NS_PER_SECOND, "and no less");
  budget_give (budget, 1000000);
  budget_take (budget, 500000, &until);
  check (until == last - NS_PER_SECOND / 2, "what is given back is not paid for");
  budget_free (budget);

  budget = budget_new (1, BUDGET_NONE);
  budget_take (budget, 32 * 1024 * 1024, &until);
  check (until >= start + 32 * 1024 * 1024 * NS_PER_SECOND,
         "a byte a second is a year for a block");
  budget_free (budget);

  budget = budget_new (UINT64_C (1) << 62, BUDGET_NONE);
  budget_take (budget, UINT32_MAX, &until);
  check (until <= clock_now_ns () + 10, "a huge rate is none");
  budget_free (budget);
}

static struct budget *shared;

static void *
taker (void *vp)
{
  uint64_t until, *taken = vp;
  uint32_t n;

  while ((n = budget_take (shared, 7, &until)) > 0) {
    if (n > 3) {
      budget_give (shared, 1);
      n--;
    }
    *taken += n;
  }
  return NULL;
}

static void
test_threads (void)
{
  pthread_t threads[4];
  uint64_t taken[4] = { 0 }, sum = 0;
  int i;

  shared = budget_new (BUDGET_NONE, 100003);
  for (i = 0; i < 4; ++i)
    if (pthread_create (&threads[i], NULL, taker, &taken[i]) != 0)
      abort ();
  for (i = 0; i < 4; ++i) {
    pthread_join (threads[i], NULL);
    sum += taken[i];
  }
  /* Another may have seen the limit used up before the last was given back. */
  check (sum <= 100003 && sum >= 100003 - 4, "threads share the limit exactly");
  budget_free (shared);
}

int
main (void)
{
  test_none ();
  test_limit ();
  test_rate ();
  test_threads ();
  return done ();
}
