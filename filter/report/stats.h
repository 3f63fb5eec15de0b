/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Counters of one export, whatever became of its size.
 *
 * All functions but stats_new and stats_free only touch atomics: no lock, no
 * allocation, no failure.  Any thread may call them.
 */

#ifndef SCAN_STATS_H
#define SCAN_STATS_H

#include <stdbool.h>
#include <stdint.h>

#include "met.h"
#include "range.h"

enum stats_state {
  STATS_WAITING,                /* no scan is running */
  STATS_RUNNING,
  STATS_FINISHED,               /* the policy has returned */
  STATS_FAILED,                 /* the policy or the source has failed */
};

struct stats;

/* A copy of the counters.  Sizes are in bytes. */
struct stats_totals {
  enum stats_state state;
  uint64_t position;            /* end of the last prefetch */
  uint64_t prefetches, prefetched_bytes, failures, skipped;
  uint64_t in_flight;           /* prefetches */
  uint64_t prefetch_ns;         /* that those took which went well, in all */
  uint64_t reads, read_bytes, hits, late, misses;
  /* While a scan runs: nanoseconds since a prefetch last began or ended, or the
   * first of the scans began.  Else 0.
   */
  uint64_t quiet_ns;
};

/* Returns NULL with errno set if memory runs out. */
extern struct stats *stats_new (void);

/* NULL is allowed. */
extern void stats_free (struct stats *stats);

/* A scan of this export starts, and has come to an end in this state.  While
 * any scan runs, the state is STATS_RUNNING; then that of the last to end.
 */
extern void stats_scan_begins (struct stats *stats);
extern void stats_scan_ends (struct stats *stats, enum stats_state state);

extern void stats_prefetch_begins (struct stats *stats);
extern void stats_prefetch_ends (struct stats *stats, struct range range,
                                 uint64_t ns, bool ok);
/* A prefetch was left out because of a write. */
extern void stats_prefetch_skipped (struct stats *stats);

/* A client read of so many bytes begins. */
extern void stats_read (struct stats *stats, uint32_t bytes, enum met met);

extern void stats_get (struct stats *stats, struct stats_totals *totals);

/* Add what was done and read, of what only grows. */
extern void stats_add (struct stats_totals *sum, const struct stats_totals *more);

#endif /* SCAN_STATS_H */
