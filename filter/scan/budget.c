/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See budget.h.
 *
 * The rate is held by a due time, at which all that has been taken so far is
 * paid for.  Taking moves it on; it never lies in the past, so an idle time
 * saves nothing up, and at any moment no more has been fetched than the rate
 * allows since the start.
 */

#include <stdbool.h>
#include <stdlib.h>

#include <pthread.h>

#include "budget.h"
#include "clock.h"

struct budget {
  /* Immutable. */
  uint64_t bytes_per_second;
  bool is_limited;

  /* Leaf lock. */
  pthread_mutex_t lock;
  uint64_t left_bytes;          /* of the limit */
  uint64_t due_ns;
};

struct budget *
budget_new (uint64_t bytes_per_second, uint64_t limit_bytes)
{
  struct budget *budget = calloc (1, sizeof *budget);

  if (budget == NULL)
    return NULL;
  pthread_mutex_init (&budget->lock, NULL);
  budget->bytes_per_second = bytes_per_second;
  budget->left_bytes = limit_bytes;
  budget->is_limited = limit_bytes != BUDGET_NONE;
  return budget;
}

void
budget_free (struct budget *budget)
{
  if (budget == NULL)
    return;
  pthread_mutex_destroy (&budget->lock);
  free (budget);
}

/* How long count bytes take at the rate. */
static uint64_t
price_ns (const struct budget *budget, uint32_t count)
{
  return (double) count / budget->bytes_per_second * NS_PER_SECOND;
}

uint32_t
budget_take (struct budget *budget, uint32_t count, uint64_t *wait_until_ns)
{
  *wait_until_ns = 0;
  if (budget->bytes_per_second == BUDGET_NONE && !budget->is_limited)
    return count;

  pthread_mutex_lock (&budget->lock);
  if (budget->is_limited) {
    if (count > budget->left_bytes)
      count = budget->left_bytes;
    budget->left_bytes -= count;
  }
  if (budget->bytes_per_second != BUDGET_NONE) {
    const uint64_t now = clock_now_ns ();

    if (budget->due_ns < now)
      budget->due_ns = now;
    budget->due_ns += price_ns (budget, count);
    *wait_until_ns = budget->due_ns;
  }
  pthread_mutex_unlock (&budget->lock);
  return count;
}

void
budget_give (struct budget *budget, uint32_t count)
{
  if (count == 0)
    return;
  pthread_mutex_lock (&budget->lock);
  if (budget->is_limited)
    budget->left_bytes += count;
  if (budget->bytes_per_second != BUDGET_NONE)
    budget->due_ns -= price_ns (budget, count);
  pthread_mutex_unlock (&budget->lock);
}
