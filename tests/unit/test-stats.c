/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* stats: the counters of an export. */

#include "check.h"
#include "stats.h"

static struct stats_totals
totals_of (struct stats *stats)
{
  struct stats_totals totals;

  stats_get (stats, &totals);
  return totals;
}

static void
test_counters (void)
{
  const struct range range = { 4096, 8192 };
  struct stats *stats = stats_new ();
  struct stats_totals t;

  stats_prefetch_begins (stats);
  stats_prefetch_begins (stats);
  check (totals_of (stats).in_flight == 2, "two prefetches are in flight");
  stats_prefetch_ends (stats, range, 1000, true);
  t = totals_of (stats);
  check (t.prefetches == 1 && t.prefetched_bytes == 8192 && t.in_flight == 1 &&
         t.position == 12288 && t.prefetch_ns == 1000, "one has ended");
  stats_prefetch_ends (stats, range, 1000, false);
  t = totals_of (stats);
  check (t.prefetches == 2 && t.failures == 1 && t.prefetched_bytes == 8192 &&
         t.prefetch_ns == 1000, "one that failed fetched nothing");
  stats_prefetch_skipped (stats);
  check (totals_of (stats).skipped == 1, "what was left out is counted");

  stats_read (stats, 8192, MET_HIT);
  stats_read (stats, 8192, MET_HIT);
  stats_read (stats, 8192, MET_LATE);
  stats_read (stats, 8192, MET_MISS);
  t = totals_of (stats);
  check (t.reads == 4 && t.read_bytes == 4 * 8192 && t.hits == 2 &&
         t.late == 1 && t.misses == 1, "reads are counted by what they met");
  stats_free (stats);
  stats_free (NULL);
}

static void
test_states (void)
{
  struct stats *stats = stats_new ();

  check (totals_of (stats).state == STATS_WAITING, "at first it waits");
  check (totals_of (stats).quiet_ns == 0, "and is not quiet");
  stats_scan_begins (stats);
  stats_scan_begins (stats);
  stats_scan_ends (stats, STATS_FINISHED);
  check (totals_of (stats).state == STATS_RUNNING, "while any scan runs");
  while (totals_of (stats).quiet_ns == 0)
    ;
  check (true, "and nothing goes on, it is quiet");
  stats_scan_ends (stats, STATS_FAILED);
  check (totals_of (stats).state == STATS_FAILED, "then that of the last");
  check (totals_of (stats).quiet_ns == 0, "quiet is only a scan that runs");
  stats_free (stats);
}

int
main (void)
{
  test_counters ();
  test_states ();
  return done ();
}
