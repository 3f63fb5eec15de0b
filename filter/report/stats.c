/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See stats.h. */

#include <stdatomic.h>
#include <stdlib.h>

#include "clock.h"
#include "stats.h"

typedef _Atomic uint64_t word;

struct stats {
  /* Atomic. */
  atomic_uint running;          /* scans */
  atomic_uint last_state;
  atomic_uint in_flight;        /* prefetches */
  word moved_ns;                /* when something last went on */
  word position;
  word prefetches, prefetched_bytes, prefetch_ns, failures, skipped;
  word read_bytes, met[MET_HIT + 1];
};

static void
bump (word *counter, uint64_t n)
{
  atomic_fetch_add_explicit (counter, n, memory_order_relaxed);
}

static void
set (word *counter, uint64_t n)
{
  atomic_store_explicit (counter, n, memory_order_relaxed);
}

static uint64_t
get (word *counter)
{
  return atomic_load_explicit (counter, memory_order_relaxed);
}

struct stats *
stats_new (void)
{
  return calloc (1, sizeof (struct stats));
}

void
stats_free (struct stats *stats)
{
  free (stats);
}

void
stats_scan_begins (struct stats *stats)
{
  set (&stats->moved_ns, clock_now_ns ());
  atomic_fetch_add (&stats->running, 1);
}

void
stats_scan_ends (struct stats *stats, enum stats_state state)
{
  atomic_store (&stats->last_state, state);
  atomic_fetch_sub (&stats->running, 1);
}

void
stats_prefetch_begins (struct stats *stats)
{
  atomic_fetch_add (&stats->in_flight, 1);
  set (&stats->moved_ns, clock_now_ns ());
}

void
stats_prefetch_ends (struct stats *stats, struct range range, uint64_t ns,
                     bool ok)
{
  atomic_fetch_sub (&stats->in_flight, 1);
  bump (&stats->prefetches, 1);
  if (ok) {
    bump (&stats->prefetched_bytes, range.count);
    bump (&stats->prefetch_ns, ns);
  }
  else
    bump (&stats->failures, 1);
  set (&stats->position, range_end (range));
  set (&stats->moved_ns, clock_now_ns ());
}

void
stats_prefetch_skipped (struct stats *stats)
{
  bump (&stats->skipped, 1);
}

void
stats_read (struct stats *stats, uint32_t bytes, enum met met)
{
  bump (&stats->met[met], 1);
  bump (&stats->read_bytes, bytes);
}

void
stats_get (struct stats *stats, struct stats_totals *totals)
{
  const uint64_t moved_ns = get (&stats->moved_ns), now_ns = clock_now_ns ();

  *totals = (struct stats_totals) {
    .state = atomic_load (&stats->running) > 0
      ? STATS_RUNNING : atomic_load (&stats->last_state),
    .position = get (&stats->position),
    .prefetches = get (&stats->prefetches),
    .prefetched_bytes = get (&stats->prefetched_bytes),
    .prefetch_ns = get (&stats->prefetch_ns),
    .failures = get (&stats->failures),
    .skipped = get (&stats->skipped),
    .in_flight = atomic_load (&stats->in_flight),
    .read_bytes = get (&stats->read_bytes),
    .hits = get (&stats->met[MET_HIT]),
    .late = get (&stats->met[MET_LATE]),
    .misses = get (&stats->met[MET_MISS]),
  };
  totals->reads = totals->hits + totals->late + totals->misses;
  if (totals->state == STATS_RUNNING && now_ns > moved_ns)
    totals->quiet_ns = now_ns - moved_ns;
}

void
stats_add (struct stats_totals *sum, const struct stats_totals *more)
{
  sum->prefetches += more->prefetches;
  sum->prefetched_bytes += more->prefetched_bytes;
  sum->prefetch_ns += more->prefetch_ns;
  sum->failures += more->failures;
  sum->skipped += more->skipped;
  sum->reads += more->reads;
  sum->read_bytes += more->read_bytes;
  sum->hits += more->hits;
  sum->late += more->late;
  sum->misses += more->misses;
}
