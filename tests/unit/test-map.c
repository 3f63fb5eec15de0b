/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* map: disks of odd sizes, prefetches smaller than granules, what is missing; and
 * a random walk next to a model that knows each unit.
 */

#include <stdlib.h>
#include <string.h>

#include <pthread.h>

#include "check.h"
#include "map.h"

#define GIB (UINT64_C (1) << 30)
#define TIB (UINT64_C (1) << 40)

static struct map_totals
totals_of (struct map *map)
{
  struct map_totals totals;

  map_get (map, &totals);
  return totals;
}

static struct map *
map_of (uint64_t size)
{
  struct map *map = map_new ();

  if (map == NULL || !map_set_size (map, size))
    abort ();
  return map;
}

static void
prefetch (struct map *map, uint64_t offset, uint64_t count)
{
  const struct range range = { offset, count };

  map_prefetch_begins (map, range);
  map_prefetch_ends (map, range, true);
}

static enum met
meet (struct map *map, uint64_t offset, uint64_t count)
{
  return map_met (map_meet (map, offset, count));
}

/* Does map_missing say this of the whole disk?  Count 0: that there is none. */
static bool
missing_is (struct map *map, uint64_t offset, uint64_t count)
{
  struct range range = { 0, 0 };
  const bool found = map_missing (map, 0, UINT64_MAX, &range);

  return found ? range.offset == offset && range.count == count : count == 0;
}

static void
test_size (uint64_t size, const char *name)
{
  struct map *map = map_of (size);
  struct map_totals t;
  const struct range all = { 0, size };

  check (meet (map, 0, 1) == MET_MISS, "%s: a read of nothing is a miss", name);
  map_prefetch_begins (map, all);
  check (meet (map, size - 1, 1) == MET_LATE, "%s: one in flight is late",
         name);
  check (missing_is (map, 0, 0), "%s: and nothing is missing", name);
  map_prefetch_ends (map, all, true);
  t = totals_of (map);
  check (t.size == size && t.covered == size && t.partly_covered == 0,
         "%s: all of it is covered", name);
  prefetch (map, 0, size);
  check (totals_of (map).covered == size, "%s: no byte twice", name);
  check (meet (map, size - 1, 1) == MET_HIT && meet (map, 0, size) == MET_HIT &&
         meet (map, 0, 1) == MET_HIT, "%s: reads of it hit", name);
  check (totals_of (map).unread == 0, "%s: nothing is unread", name);
  map_hole (map, all);
  check (totals_of (map).holes == 0, "%s: what was fetched is no hole", name);
  check (missing_is (map, 0, 0), "%s: nothing is missing", name);
  map_free (map);
}

static void
test_whole_granules (void)
{
  struct map *map = map_of (1 << 20);
  const struct range range = { 100 * 4096, 4096 };
  struct map_totals t;

  prefetch (map, 0, 4096);
  prefetch (map, 63 * 4096, 2 * 4096);
  t = totals_of (map);
  check (t.covered == 3 * 4096 && t.unread == 3 * 4096, "three are covered");
  check (meet (map, 63 * 4096 + 4095, 2) == MET_HIT &&
         totals_of (map).unread == 4096, "a read across two");
  check (meet (map, 65 * 4096 - 1, 2) == MET_MISS, "half of it is not enough");

  map_prefetch_begins (map, range);
  map_prefetch_ends (map, range, false);
  check (totals_of (map).covered == 3 * 4096, "what failed is not covered");
  check (meet (map, 100 * 4096, 1) == MET_MISS, "nor in flight any more");
  map_hole (map, (struct range) { 200 * 4096, 10 * 4096 });
  check (totals_of (map).holes == 10 * 4096, "holes are counted");
  map_free (map);
}

/* Two prefetches of one granule at once: the one that ends first may fail. */
static void
test_two_in_flight (void)
{
  struct map *map = map_of (1 << 20);
  const struct range one = { 0, 8192 }, other = { 4096, 8192 };

  map_prefetch_begins (map, one);
  map_prefetch_begins (map, other);
  map_prefetch_ends (map, one, false);
  check (meet (map, 4096, 4096) == MET_LATE, "the other is still on its way");
  check (meet (map, 0, 4096) == MET_MISS, "but not for the rest");
  map_prefetch_ends (map, other, true);
  check (meet (map, 4096, 8192) == MET_HIT, "and comes");
  check (missing_is (map, 0, 4096), "the rest is missing");
  map_free (map);
}

/* On a disk of 6 TiB a granule has 8 MiB. */
static void
test_parts (void)
{
  const uint64_t mib = 1 << 20;
  struct map *map = map_of (6 * TIB);
  struct range range;
  unsigned i;

  prefetch (map, 5 * GIB, 2 * mib);
  check (totals_of (map).covered == 2 * mib, "a part is covered");
  check (totals_of (map).partly_covered == 8 * mib, "of a granule");
  check (totals_of (map).unread == 2 * mib, "and unread");
  check (meet (map, 5 * GIB + mib, mib) == MET_HIT, "a read of it hits");
  check (totals_of (map).unread == 0, "and has read it");
  check (meet (map, 5 * GIB + mib, 2 * mib) == MET_MISS, "but not beyond it");
  range = (struct range) { 5 * GIB + 4 * mib, 2 * mib };
  map_prefetch_begins (map, range);
  check (meet (map, 5 * GIB + 4 * mib, mib) == MET_LATE, "a part in flight");
  map_prefetch_ends (map, range, true);
  prefetch (map, 5 * GIB + 6 * mib, 2 * mib);
  check (totals_of (map).covered == 6 * mib, "parts that don't meet");
  prefetch (map, 5 * GIB + mib, 3 * mib);
  check (totals_of (map).covered == 8 * mib &&
         totals_of (map).partly_covered == 0, "make a granule when they do");

  for (i = 0; i < 512; ++i)
    prefetch (map, i * 2 * mib, 2 * mib);
  check (totals_of (map).covered == GIB + 8 * mib, "in a row");
  check (meet (map, 0, GIB) == MET_HIT, "it all hits");
  map_free (map);

  map = map_of (6 * TIB);
  map_hole (map, (struct range) { 0, 3 * mib });
  prefetch (map, 3 * mib, 5 * mib);
  check (totals_of (map).covered == 5 * mib && totals_of (map).holes == 3 * mib,
         "half hole, half data");
  map_free (map);
}

/* More parts than there is room for: what was forgotten is not made up. */
static void
test_many_parts (void)
{
  const uint64_t granule = 8 << 20;
  struct map *map = map_of (6 * TIB);
  struct map_totals t;
  unsigned i, hits = 0;

  for (i = 0; i < 3 * MAP_PARTS_MAX; ++i)
    prefetch (map, i * granule, 4096);
  t = totals_of (map);
  check (t.covered == MAP_PARTS_MAX * 4096, "as many parts as have room");
  check (t.partly_covered == 3 * MAP_PARTS_MAX * granule, "all are told of");
  for (i = 0; i < 3 * MAP_PARTS_MAX; ++i)
    hits += meet (map, i * granule, 4096) == MET_HIT;
  check (hits == MAP_PARTS_MAX, "the rest is forgotten");
  prefetch (map, 0, 3 * MAP_PARTS_MAX * granule);
  t = totals_of (map);
  check (t.covered == 3 * MAP_PARTS_MAX * granule && t.partly_covered == 0,
         "whole granules take their place");
  map_free (map);
}

static void
test_missing (void)
{
  struct map *map = map_of (1 << 20);
  struct range range;
  uint64_t bytes;

  check (missing_is (map, 0, 1 << 20), "all is missing");
  prefetch (map, 0, 65536);
  check (missing_is (map, 65536, (1 << 20) - 65536),
         "from the end of a prefetch");
  map_read (map, (struct range) { 65536, 512 });
  check (missing_is (map, 66048, (1 << 20) - 66048), "what was read is not");
  map_read (map, (struct range) { 66048, 65536 });
  check (meet (map, 65536, 65536) == MET_MISS &&
         map_met_again (map_meet (map, 65536, 65536)) == MET_HIT &&
         map_met_again (map_meet (map, 65536 + 4096, 512)) == MET_HIT &&
         map_met_again (map_meet (map, 61440, 8192)) == MET_HIT &&
         map_met_again (map_meet (map, 65536, 131072)) == MET_MISS,
         "what was read and is read again");
  check (map_was_of_use (map_meet (map, 0, 4096)) &&
         map_was_of_use (map_meet (map, 0, 4096)) &&
         !map_was_of_use (map_meet (map, 65536, 4096)) &&
         !map_was_of_use (map_meet (map, 61440, 8192)),
         "what was fetched is of use until it has been read");
  map_read (map, (struct range) { 0, 8192 });
  check (!map_was_of_use (map_meet (map, 0, 4096)) &&
         !map_was_of_use (map_meet (map, 0, 8192)) &&
         map_was_of_use (map_meet (map, 0, 12288)),
         "or some of it has not");
  map_read (map, (struct range) { 262144, 8192 + 512 });
  map_unread (map, (struct range) { 262144 + 4096, 4096 + 512 });
  check (map_missing (map, 262144, 1 << 20, &range) &&
         range.offset == 262144 + 4096, "a read that failed");
  map_unread (map, (struct range) { 65536, 131072 });
  map_unread (map, (struct range) { 0, 1 << 20 });
  map_unread (map, (struct range) { 0, 1 << 20 });
  check (missing_is (map, 65536, (1 << 20) - 65536),
         "only what was prefetched is there");
  map_free (map);

  map = map_of (16 << 20);
  map_read (map, (struct range) { 0, 16 << 20 });
  check (missing_is (map, 0, 0), "all was read");
  map_unread (map, (struct range) { 5 << 20, 4096 });
  check (missing_is (map, 5 << 20, 4096), "one of many that are known");
  map_read (map, (struct range) { 5 << 20, 4096 });
  check (missing_is (map, 0, 0), "and all again");
  map_free (map);

  /* More than is done at once. */
  map = map_of (64 << 20);
  map_read (map, (struct range) { 512, (63 << 20) - 1024 });
  map_unread (map, (struct range) { 0, 64 << 20 });
  for (bytes = 0; map_missing (map, bytes, 64 << 20, &range); bytes += range.count)
    if (range.offset != bytes)
      break;
  check (bytes == 64 << 20, "none of many, nor of the parts at both ends");
  map_free (map);

  map = map_of (1 << 20);
  prefetch (map, 0, 65536);
  map_read (map, (struct range) { 65536, 512 });
  map_prefetch_begins (map, (struct range) { 70000, 4096 });
  check (missing_is (map, 66048, 70000 - 66048), "up to what is in flight");
  check (map_missing (map, 70000, 80000, &range) && range.offset == 74096 &&
         range.count == 80000 - 74096, "within the bounds asked for");
  check (!map_missing (map, 0, 65536, &range), "none in what was fetched");
  check (!map_missing (map, 1 << 20, UINT64_MAX, &range) &&
         !map_missing (map, 10, 10, &range), "none in nothing");
  map_hole (map, (struct range) { 74096, 4096 });
  check (map_missing (map, 70000, 80000, &range) && range.offset == 74096,
         "a hole is missing");
  map_free (map);

  /* Far more than one answer covers. */
  map = map_of (64 * TIB);
  range = (struct range) { 0, 0 };
  prefetch (map, 0, 32 * TIB);
  check (map_missing (map, 0, 64 * TIB, &range) && range.offset == 32 * TIB,
         "far away");
  while (map_missing (map, range_end (range), 64 * TIB, &range))
    ;
  check (range_end (range) == 64 * TIB, "in several answers up to the end");
  map_free (map);
}

static void
test_no_size (void)
{
  struct map *map = map_new ();
  struct range range;

  check (meet (map, 0, 512) == MET_MISS && meet (map, 1 << 30, 512) == MET_MISS,
         "before the size is known all is missed");
  prefetch (map, 0, 512);
  check (totals_of (map).covered == 0 && !map_missing (map, 0, 512, &range),
         "and nothing is noted");
  check (map_set_size (map, 0), "an empty disk");
  check (map_set_size (map, 0), "is one of that size");
  check (!map_set_size (map, 512), "and of no other");
  check (meet (map, 0, 512) == MET_MISS && totals_of (map).size == 0,
         "of which nothing is read");
  prefetch (map, 0, 512);
  map_free (map);
  map_free (NULL);
}

/* Ranges that are no part of the disk touch nothing. */
static void
test_outside (void)
{
  struct map *map = map_of (GIB);

  prefetch (map, 5 * GIB, 2 << 20);
  prefetch (map, 6 * TIB, 2 << 20);
  prefetch (map, INT64_MAX - 4096, 4096);
  check (meet (map, 5 * GIB, 512) == MET_MISS, "a read beyond the end");
  check (meet (map, INT64_MAX - 512, 512) == MET_MISS, "or far beyond");
  check (totals_of (map).covered == 0, "nothing is covered");
  prefetch (map, GIB - 4096, 1 << 20);
  check (totals_of (map).covered == 4096, "no more than there is");
  map_free (map);
}

/* A random walk over the first units of a disk; four or less to a granule. */

#define UNITS 64

static struct {
  bool fetched[UNITS], read[UNITS], in_flight[UNITS], touched[UNITS];
} model;

static unsigned failures_of_walk;

static void
expect (bool ok)
{
  failures_of_walk += !ok;
}

static void
compare (struct map *map, uint64_t unit, unsigned per_granule)
{
  const struct map_totals t = totals_of (map);
  uint64_t covered = 0, unread = 0, pos = 0;
  bool seen[UNITS] = { false };
  struct range range;
  unsigned i, g;

  for (i = 0; i < UNITS; ++i) {
    g = i / per_granule * per_granule;
    covered += model.fetched[i];
    unread += model.fetched[i] &&
      memchr (&model.touched[g], true, per_granule) == NULL;
  }
  for (i = 0; i < UNITS; ++i)
    expect ((meet (map, i * unit, 1) == MET_HIT) == model.fetched[i]);
  memset (model.touched, true, UNITS);
  expect (t.covered == covered * unit);
  expect (t.unread == unread * unit);

  while (map_missing (map, pos, UNITS * unit, &range)) {
    expect (range.count > 0 && range.offset >= pos);
    for (i = range.offset / unit; i * unit < range_end (range); ++i)
      seen[i] = true;
    pos = range_end (range);
  }
  for (i = 0; i < UNITS; ++i)
    expect (seen[i] == !(model.fetched[i] || model.read[i] ||
                         model.in_flight[i]));
}

static void
test_walk (uint64_t size, uint64_t unit, unsigned per_granule,
           const char *name)
{
  struct map *map = map_of (size);
  struct range flight = { 0, 0 };
  unsigned step, i, first, n;

  memset (&model, 0, sizeof model);
  failures_of_walk = 0;
  for (step = 0; step < 2000; ++step) {
    if (step % 100 == 0) {
      map_free (map);
      map = map_of (size);
      memset (&model, 0, sizeof model);
      flight.count = 0;
    }
    first = rand () % UNITS;
    n = 1 + rand () % 6;
    if (first + n > UNITS)
      n = UNITS - first;
    const struct range range = { first * unit, n * unit };

    switch (rand () % 4) {
    case 0:
      prefetch (map, range.offset, range.count);
      memset (&model.fetched[first], true, n);
      break;
    case 1:
      map_read (map, range);
      memset (&model.read[first], true, n);
      break;
    case 2:
      if (flight.count == 0) {
        flight = range;
        map_prefetch_begins (map, range);
        memset (&model.in_flight[first], true, n);
      }
      break;
    case 3:
      if (flight.count != 0) {
        const bool ok = rand () % 2;

        map_prefetch_ends (map, flight, ok);
        for (i = flight.offset / unit; i < range_end (flight) / unit; ++i) {
          model.in_flight[i] = false;
          model.fetched[i] = model.fetched[i] || ok;
        }
        flight.count = 0;
      }
      break;
    }
    compare (map, unit, per_granule);
  }
  check (failures_of_walk == 0, "%s: map and model agree", name);
  map_free (map);
}

/* -- what a read may have to wait for --------------------------------------- */

/* While there is a map here, how many of its granules were done when its lock was
 * taken, and the most that became so while it was held.
 */
static const struct map_cells *watched;
static uint64_t done_at_lock, most_done;

static uint64_t
nr_done (void)
{
  uint64_t n = 0, g;

  for (g = 0; g < watched->granules; ++g)
    n += (watched->flags[g] & MAP_DONE) != 0;
  return n;
}

extern int __real_pthread_mutex_lock (pthread_mutex_t *lock);
extern int __real_pthread_mutex_unlock (pthread_mutex_t *lock);
extern int __wrap_pthread_mutex_lock (pthread_mutex_t *lock);
extern int __wrap_pthread_mutex_unlock (pthread_mutex_t *lock);

int
__wrap_pthread_mutex_lock (pthread_mutex_t *lock)
{
  const int r = __real_pthread_mutex_lock (lock);

  if (watched != NULL)
    done_at_lock = nr_done ();
  return r;
}

int
__wrap_pthread_mutex_unlock (pthread_mutex_t *lock)
{
  if (watched != NULL && nr_done () - done_at_lock > most_done)
    most_done = nr_done () - done_at_lock;
  return __real_pthread_mutex_unlock (lock);
}

/* A hole that is the whole disk has a million granules. */
static void
test_vast_hole (void)
{
  struct map *map = map_of (4 * GIB);

  prefetch (map, 4096, 4096);
  map_hole (map, (struct range) { 10 * 4096 + 512, 512 });
  watched = (const struct map_cells *) map;
  map_hole (map, (struct range) { 512, 4 * GIB - 1024 });
  check (nr_done () == MAP_GRANULES_MAX - 2, "all but the ends of a hole are done");
  watched = NULL;
  check (most_done <= 2, "a read doesn't wait for all of a vast hole");
  check (totals_of (map).holes == 4 * GIB - 1024 - 4096,
         "and no byte of it counts twice");
  map_hole (map, (struct range) { 0, 4 * GIB });
  check (totals_of (map).holes == 4 * GIB - 4096, "its ends are holes at last");
  map_free (map);
}

int
main (void)
{
  test_vast_hole ();
  test_size (1, "1 byte");
  test_size (4095, "4095 bytes");
  test_size (4096, "4096 bytes");
  test_size (4097, "4097 bytes");
  test_size (4 * GIB - 1, "4 GiB less a byte");
  test_size (4 * GIB, "4 GiB");
  test_size (4 * GIB + 1, "4 GiB and a byte");
  test_size (TIB, "1 TiB");
  test_size (TIB - 512, "1 TiB less a sector");
  test_size (INT64_MAX, "2^63 - 1 bytes");
  test_whole_granules ();
  test_two_in_flight ();
  test_parts ();
  test_many_parts ();
  test_missing ();
  test_no_size ();
  test_outside ();
  test_walk (UNITS * 4096, 4096, 1, "small disk");
  test_walk (6 * TIB, 2 << 20, 4, "large disk");
  return done ();
}
