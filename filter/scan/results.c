/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See results.h. */

#include "cleanup.h"
#include "results.h"

void
results_init (struct results *results)
{
  pthread_mutex_init (&results->lock, NULL);
}

void
results_destroy (struct results *results)
{
  pthread_mutex_destroy (&results->lock);
}

void
results_add (struct results *results, struct vm_result result)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&results->lock);

  results->ring[results->added++ % RESULTS_MAX] = result;
}

size_t
results_take (struct results *results, struct vm_result *out)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&results->lock);
  size_t n = 0;

  if (results->added - results->taken > RESULTS_MAX)
    results->taken = results->added - RESULTS_MAX;
  while (results->taken < results->added)
    out[n++] = results->ring[results->taken++ % RESULTS_MAX];
  return n;
}
