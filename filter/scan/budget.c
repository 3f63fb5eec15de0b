/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See budget.h.
 *
 * The rate is held by a due time, at which all that has been paid for so far
 * may be fetched.  Paying moves it on, so that those who wait come one after the
 * other.  It lies in the past by no more than what is being paid for takes: so
 * much of an idle time is saved up (a fetch takes time as well), and never more
 * than the time since the first payment.  So at any moment no more has been
 * fetched than the rate allows since the start.
 */

#include <stdlib.h>

#include <pthread.h>

#include "budget.h"
#include "cleanup.h"
#include "clock.h"

struct budget {
  uint64_t bytes_per_second;    /* immutable */

  /* Leaf lock; protects the rest. */
  pthread_mutex_t lock;
  uint64_t left_bytes;          /* of the limit */
  uint64_t due_ns;              /* 0 if nobody has paid yet */
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

uint64_t
budget_pay (struct budget *budget, uint32_t count, uint64_t now_ns)
{
  if (budget->bytes_per_second == BUDGET_NONE)
    return 0;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&budget->lock);
  const uint64_t price = price_ns (budget, count);

  if (budget->due_ns == 0)
    budget->due_ns = now_ns;
  else if (now_ns > price && budget->due_ns < now_ns - price)
    budget->due_ns = now_ns - price;
  budget->due_ns += price;
  return budget->due_ns;
}

void
budget_refund (struct budget *budget, uint32_t count)
{
  if (budget->bytes_per_second == BUDGET_NONE || count == 0)
    return;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&budget->lock);

  budget->due_ns -= price_ns (budget, count);
}

uint64_t
budget_left (struct budget *budget)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&budget->lock);

  return budget->left_bytes;
}

uint32_t
budget_draw (struct budget *budget, uint32_t count)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&budget->lock);

  if (count > budget->left_bytes)
    count = budget->left_bytes;
  if (budget->left_bytes != BUDGET_NONE)
    budget->left_bytes -= count;
  return count;
}
