/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* What a clone has done, in numbers.  Any thread counts, without a lock. */

#ifndef CLONE_COUNTERS_H
#define CLONE_COUNTERS_H

#include <stdatomic.h>
#include <stdint.h>

enum counter {
  COUNT_HITS,                   /* client reads of what was present */
  COUNT_MISSES,                 /* that had to read from the source */
  COUNT_JOINS,                  /* that waited for somebody else's fetch */
  COUNT_FETCHES,                /* reads of the source, that went well */
  COUNT_FETCHED_BYTES,
  COUNT_FETCH_FAILURES,
  COUNT_KEPT_BYTES,             /* of what was fetched */
  COUNT_NOT_KEPT,               /* fetches, or a part of them */
  COUNT_HOLE_BYTES,             /* present because the source has holes there */
  COUNT_WRITTEN_BYTES,          /* by clients, zeroes and trims too */
  COUNT_COMMITS,
  NR_COUNTERS
};

struct counters {
  _Atomic uint64_t values[NR_COUNTERS];
};

static inline void
count (struct counters *counters, enum counter which, uint64_t n)
{
  atomic_fetch_add_explicit (&counters->values[which], n,
                             memory_order_relaxed);
}

#endif /* CLONE_COUNTERS_H */
