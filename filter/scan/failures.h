/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* The prefetches of a scan that failed, and the reads of its clients, on their way to
 * its policy.
 */

#ifndef SCAN_FAILURES_H
#define SCAN_FAILURES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include <pthread.h>

#include "vm.h"

/* How many are kept between two questions; more widen the last. */
#define FAILURES_MAX 256

struct failures {
  /* Leaf lock; protects the rest. */
  pthread_mutex_t lock;
  struct vm_failure list[FAILURES_MAX];
  size_t len;
  bool warned;

  /* Written with the lock held, read without. */
  atomic_uint in_a_row;         /* since the last that did not fail */
  atomic_bool is_full;
};

extern void failures_init (struct failures *failures);
extern void failures_destroy (struct failures *failures);

/* Keep one, and warn of the first that is a fault of the source.  What fails
 * once a scan doesn't go on is none: what was below may be gone with the client.
 * Any thread.
 */
extern void failures_add (struct failures *failures, struct range range,
                          int err, bool goes_on);

/* Keep a client's read that failed.  Any thread. */
extern void failures_add_read (struct failures *failures, struct range range);

/* Copy all, oldest first, to out, which has room for FAILURES_MAX, and keep
 * none.  Returns how many.  Any thread.
 */
extern size_t failures_take (struct failures *failures,
                             struct vm_failure *out);

/* What the policy itself wanted to read has failed: it knows, and nobody is warned.
 * Any thread.
 */
extern void failures_count (struct failures *failures);

/* A prefetch or a read has not failed.  Any thread. */
extern void failures_end_row (struct failures *failures);

/* How long to leave the source alone, as things are: nothing for the first few
 * failures in a row, of prefetches and reads, then twice as long with each
 * FAILURES_DOUBLE more.
 */
#define FAILURES_DOUBLE 16
extern uint64_t failures_pause_ns (struct failures *failures);

/* Has the layer that keeps what is fetched run full (ENOSPC)?  Then there is no
 * use in going on; it has been said.
 */
extern bool failures_is_full (struct failures *failures);

/* Say that it has, once in the server's life.  Any thread. */
extern void failures_tell_full (void);

#endif /* SCAN_FAILURES_H */
