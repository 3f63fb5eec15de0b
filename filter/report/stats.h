/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Counters of one export, and a map of what has been prefetched.
 *
 * All functions but stats_new and stats_free only touch atomics: no lock, no
 * allocation, no failure.  Any thread may call them.
 *
 * The map has a bit a granule, and at most STATS_MAP_BITS of them whatever the
 * size of the disk: granules are 4096 bytes on disks up to 4 GiB and grow with
 * the disk beyond.  A granule counts as prefetched once one prefetch has
 * covered all of it.
 */

#ifndef SCAN_STATS_H
#define SCAN_STATS_H

#include <stdbool.h>
#include <stdint.h>

#include "range.h"

#define STATS_MAP_BITS (UINT64_C (1) << 20)

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
  uint64_t size;                /* 0 until it is known */
  uint64_t position;            /* end of the last prefetch */
  uint64_t prefetches, prefetched_bytes, failures, skipped;
  uint64_t reads, read_bytes, hits, late, misses;

  /* From the map, each granule counted once; 0 without a map. */
  uint64_t covered_bytes;       /* prefetched */
  uint64_t unread_bytes;        /* prefetched and never read */
  uint64_t hole_bytes;          /* passed over as holes */
  uint64_t done_bytes;          /* any of those, or read by a client */
};

/* With a map if want_map.  Returns NULL with errno set if memory runs out. */
extern struct stats *stats_new (bool want_map);

/* NULL is allowed. */
extern void stats_free (struct stats *stats);

/* The size of the disk is known; the first call decides. */
extern void stats_set_size (struct stats *stats, uint64_t size);

/* A scan of this export starts, and has come to an end in this state.  While
 * any scan runs, the state is STATS_RUNNING; then that of the last to end.
 */
extern void stats_scan_begins (struct stats *stats);
extern void stats_scan_ends (struct stats *stats, enum stats_state state);

extern void stats_prefetch_begins (struct stats *stats, struct range range);
extern void stats_prefetch_ends (struct stats *stats, struct range range,
                                 bool ok);
/* A prefetch was left out because of a write. */
extern void stats_prefetch_skipped (struct stats *stats);

/* The policy has passed over a hole. */
extern void stats_hole (struct stats *stats, struct range range);

/* A client read begins. */
extern void stats_read (struct stats *stats, struct range range);

extern void stats_get (struct stats *stats, struct stats_totals *totals);

#endif /* SCAN_STATS_H */
