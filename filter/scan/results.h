/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* What became of a scan's prefetches, on its way to the policy: the last
 * RESULTS_MAX that it has not asked for.
 *
 * Any thread may call these functions.
 */

#ifndef SCAN_RESULTS_H
#define SCAN_RESULTS_H

#include <stddef.h>
#include <stdint.h>

#include <pthread.h>

#include "vm.h"

#define RESULTS_MAX 256

struct results {
  /* Leaf lock; protects the rest. */
  pthread_mutex_t lock;
  struct vm_result ring[RESULTS_MAX];
  uint64_t added, taken;        /* in all; those between are in the ring */
};

extern void results_init (struct results *results);
extern void results_destroy (struct results *results);

/* Keep one, in the place of the oldest if there are too many. */
extern void results_add (struct results *results, struct vm_result result);

/* Copy all, oldest first, to out, which has room for RESULTS_MAX, and keep none.
 * Returns how many.
 */
extern size_t results_take (struct results *results, struct vm_result *out);

#endif /* SCAN_RESULTS_H */
