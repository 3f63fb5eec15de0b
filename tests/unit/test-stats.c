/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* stats: counters, and the map at the edges of disks of odd sizes. */

#include <stdlib.h>

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
prefetch (struct stats *stats, uint64_t offset, uint64_t count)
{
  const struct range range = { offset, count };

  stats_prefetch_begins (stats, range);
  stats_prefetch_ends (stats, range, true);
}

static void
test_size (uint64_t size, const char *name)
{
  struct stats *stats = stats_new (true);
  struct stats_totals t;
  const struct range all = { 0, size };

  stats_set_size (stats, size);
  stats_read (stats, (struct range) { 0, 1 });
  check (totals_of (stats).misses == 1, "%s: a read of nothing is a miss", name);

  stats_prefetch_begins (stats, all);
  stats_read (stats, (struct range) { size - 1, 1 });
  check (totals_of (stats).late == 1, "%s: one in flight is late", name);
  stats_prefetch_ends (stats, all, true);
  t = totals_of (stats);
  check (t.covered_bytes == size, "%s: all of it is covered", name);
  check (t.prefetched_bytes == size && t.prefetches == 1 && t.position == size,
         "%s: and counted", name);

  prefetch (stats, 0, size);
  check (totals_of (stats).covered_bytes == size, "%s: no byte twice", name);
  stats_read (stats, (struct range) { size - 1, 1 });
  stats_read (stats, all);
  t = totals_of (stats);
  check (t.hits == 2 && t.reads == 4, "%s: reads of it hit", name);
  check (t.unread_bytes == 0, "%s: nothing is unread", name);
  check (t.done_bytes <= size, "%s: no more is done than there is", name);
  stats_free (stats);
}

static void
test_part (void)
{
  struct stats *stats = stats_new (true);
  struct stats_totals t;

  stats_set_size (stats, 1 << 20);
  prefetch (stats, 0, 4095);
  check (totals_of (stats).covered_bytes == 0,
         "a granule counts once one prefetch has covered it");
  prefetch (stats, 0, 4096);
  prefetch (stats, 63 * 4096, 2 * 4096); /* two words of the map */
  t = totals_of (stats);
  check (t.covered_bytes == 3 * 4096 && t.unread_bytes == 3 * 4096,
         "across the words of the map");
  stats_read (stats, (struct range) { 63 * 4096 + 4095, 2 });
  t = totals_of (stats);
  check (t.hits == 1 && t.unread_bytes == 4096, "a read across them");
  stats_read (stats, (struct range) { 65 * 4096 - 1, 2 });
  check (totals_of (stats).misses == 1, "half of it is not enough");

  stats_prefetch_begins (stats, (struct range) { 100 * 4096, 4096 });
  stats_prefetch_ends (stats, (struct range) { 100 * 4096, 4096 }, false);
  t = totals_of (stats);
  check (t.failures == 1 && t.covered_bytes == 3 * 4096,
         "what failed is not covered");
  stats_read (stats, (struct range) { 100 * 4096, 1 });
  check (totals_of (stats).misses == 2, "nor in flight any more");
  stats_prefetch_skipped (stats);
  check (totals_of (stats).skipped == 1, "what was left out is counted");
  stats_hole (stats, (struct range) { 200 * 4096, 10 * 4096 });
  check (totals_of (stats).hole_bytes == 10 * 4096, "holes are counted");
  stats_free (stats);
}

static void
test_no_map (void)
{
  struct stats *stats = stats_new (false);
  struct stats_totals t;

  stats_set_size (stats, 65536);
  prefetch (stats, 0, 65536);
  stats_read (stats, (struct range) { 0, 512 });
  t = totals_of (stats);
  check (t.prefetched_bytes == 65536 && t.read_bytes == 512 && t.size == 65536,
         "without a map there are still the counters");
  check (t.hits + t.late + t.misses == 0 && t.covered_bytes == 0,
         "and none that need one");
  stats_free (stats);
  stats_free (NULL);
}

static void
test_unknown_size (void)
{
  struct stats *stats = stats_new (true);

  stats_read (stats, (struct range) { 0, 512 });
  prefetch (stats, 0, 512);
  check (totals_of (stats).reads == 1, "before the size is known");
  stats_set_size (stats, 0);
  stats_set_size (stats, 512);
  check (totals_of (stats).covered_bytes == 0, "an empty disk");
  stats_free (stats);
}

static void
test_states (void)
{
  struct stats *stats = stats_new (false);

  check (totals_of (stats).state == STATS_WAITING, "at first it waits");
  stats_scan_begins (stats);
  stats_scan_begins (stats);
  stats_scan_ends (stats, STATS_FINISHED);
  check (totals_of (stats).state == STATS_RUNNING, "while any scan runs");
  stats_scan_ends (stats, STATS_FAILED);
  check (totals_of (stats).state == STATS_FAILED, "then that of the last");
  stats_free (stats);
}

int
main (void)
{
  test_size (1, "1 byte");
  test_size (4095, "4095 bytes");
  test_size (4096, "4096 bytes");
  test_size (4097, "4097 bytes");
  test_size ((UINT64_C (4) << 30) - 1, "4 GiB less a byte");
  test_size (UINT64_C (4) << 30, "4 GiB");
  test_size ((UINT64_C (4) << 30) + 1, "4 GiB and a byte");
  test_size (UINT64_C (1) << 40, "1 TiB");
  test_size ((UINT64_C (1) << 40) - 512, "1 TiB less a sector");
  test_size (INT64_MAX, "2^63 - 1 bytes");
  test_part ();
  test_no_map ();
  test_unknown_size ();
  test_states ();
  return done ();
}
