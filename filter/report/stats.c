/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See stats.h. */

#include <stdatomic.h>
#include <stdlib.h>

#include "stats.h"

#define WORD_BITS 64
#define MAP_WORDS (STATS_MAP_BITS / WORD_BITS)
#define GRANULE_MIN_BITS 12

typedef _Atomic uint64_t word;

struct map {
  word in_flight[MAP_WORDS], fetched[MAP_WORDS];
  word hole[MAP_WORDS], read[MAP_WORDS];
};

struct stats {
  /* Immutable. */
  struct map *map;              /* NULL: no map wanted */

  /* Atomic.  granule_bits is 0 until the size is known. */
  atomic_uint granule_bits;
  atomic_uint running;          /* scans */
  atomic_uint last_state;
  word size, position;
  word prefetches, prefetched_bytes, failures, skipped;
  word reads, read_bytes, hits, late, misses;
};

static void
bump (word *counter, uint64_t n)
{
  atomic_fetch_add_explicit (counter, n, memory_order_relaxed);
}

static uint64_t
get (word *counter)
{
  return atomic_load_explicit (counter, memory_order_relaxed);
}

struct stats *
stats_new (bool want_map)
{
  struct stats *stats = calloc (1, sizeof *stats);

  if (stats == NULL)
    return NULL;
  if (want_map) {
    stats->map = calloc (1, sizeof *stats->map);
    if (stats->map == NULL) {
      free (stats);
      return NULL;
    }
  }
  return stats;
}

void
stats_free (struct stats *stats)
{
  if (stats == NULL)
    return;
  free (stats->map);
  free (stats);
}

void
stats_set_size (struct stats *stats, uint64_t size)
{
  unsigned bits = GRANULE_MIN_BITS;

  if (atomic_load (&stats->granule_bits) != 0)
    return;
  while (bits < 63 && (size >> bits) >= STATS_MAP_BITS)
    bits++;
  atomic_store (&stats->size, size);
  atomic_store (&stats->granule_bits, bits);
}

void
stats_scan_begins (struct stats *stats)
{
  atomic_fetch_add (&stats->running, 1);
}

void
stats_scan_ends (struct stats *stats, enum stats_state state)
{
  atomic_store (&stats->last_state, state);
  atomic_fetch_sub (&stats->running, 1);
}

/* The bits first .. last-1 of one word. */
static uint64_t
mask (uint64_t first, uint64_t last)
{
  const uint64_t low = UINT64_MAX << first;

  return last == WORD_BITS ? low : low & ((UINT64_C (1) << last) - 1);
}

/* For each word of a map that holds some of the bits first .. last-1: the
 * word's number in i and the bits of it in m.
 */
#define FOR_EACH_WORD(i, m, first, last)                                \
  for (uint64_t i = (first) / WORD_BITS, m;                             \
       i * WORD_BITS < (last) &&                                        \
         (m = mask (i * WORD_BITS < (first) ? (first) % WORD_BITS : 0,  \
                    (last) - i * WORD_BITS < WORD_BITS                  \
                    ? (last) - i * WORD_BITS : WORD_BITS), true);       \
       ++i)

/* The granules that lie wholly inside a range; the last one of the disk may be
 * short.
 */
static bool
granules_inside (struct stats *stats, struct range range,
                 uint64_t *first, uint64_t *last)
{
  const unsigned bits = atomic_load (&stats->granule_bits);
  const uint64_t granule = UINT64_C (1) << bits;

  if (stats->map == NULL || bits == 0)
    return false;
  *first = (range.offset + granule - 1) >> bits;
  *last = range_end (range) == get (&stats->size)
    ? (range_end (range) + granule - 1) >> bits : range_end (range) >> bits;
  return *first < *last;
}

void
stats_prefetch_begins (struct stats *stats, struct range range)
{
  uint64_t first, last;

  if (!granules_inside (stats, range, &first, &last))
    return;
  FOR_EACH_WORD (i, m, first, last)
    atomic_fetch_or (&stats->map->in_flight[i], m);
}

void
stats_prefetch_ends (struct stats *stats, struct range range, bool ok)
{
  uint64_t first, last;

  bump (&stats->prefetches, 1);
  if (ok)
    bump (&stats->prefetched_bytes, range.count);
  else
    bump (&stats->failures, 1);
  atomic_store_explicit (&stats->position, range_end (range),
                         memory_order_relaxed);

  if (!granules_inside (stats, range, &first, &last))
    return;
  FOR_EACH_WORD (i, m, first, last) {
    if (ok)
      atomic_fetch_or (&stats->map->fetched[i], m);
    atomic_fetch_and (&stats->map->in_flight[i], ~m);
  }
}

void
stats_prefetch_skipped (struct stats *stats)
{
  bump (&stats->skipped, 1);
}

void
stats_hole (struct stats *stats, struct range range)
{
  uint64_t first, last;

  if (!granules_inside (stats, range, &first, &last))
    return;
  FOR_EACH_WORD (i, m, first, last)
    atomic_fetch_or (&stats->map->hole[i], m);
}

/* A read in the map.  Not inlined, so that stats_read without a map has nothing
 * to save and restore: it is on the path of every client read.
 */
static void __attribute__ ((noinline))
map_read (struct stats *stats, struct range range, unsigned bits)
{
  bool hit = true, late = true;
  uint64_t first, last;

  first = range.offset >> bits;
  last = (range_end (range) + (UINT64_C (1) << bits) - 1) >> bits;
  FOR_EACH_WORD (i, m, first, last) {
    const uint64_t in_flight = atomic_load (&stats->map->in_flight[i]);
    const uint64_t fetched = atomic_load (&stats->map->fetched[i]);

    hit = hit && (fetched & m) == m;
    late = late && ((fetched | in_flight) & m) == m;
    if ((atomic_load (&stats->map->read[i]) & m) != m)
      atomic_fetch_or (&stats->map->read[i], m);
  }
  bump (hit ? &stats->hits : late ? &stats->late : &stats->misses, 1);
}

void
stats_read (struct stats *stats, struct range range)
{
  bump (&stats->reads, 1);
  bump (&stats->read_bytes, range.count);
  if (stats->map != NULL) {
    const unsigned bits = atomic_load (&stats->granule_bits);

    if (bits != 0)
      map_read (stats, range, bits);
  }
}

/* What this many granules hold; the last granule of a disk may be short. */
static uint64_t
granules_bytes (uint64_t granules, unsigned bits, uint64_t size)
{
  const uint64_t bytes = granules << bits;

  return bytes < size ? bytes : size;
}

/* Fill in what the map tells. */
static void
get_map (struct stats *stats, struct stats_totals *totals)
{
  const unsigned bits = atomic_load (&stats->granule_bits);
  uint64_t covered = 0, unread = 0, holes = 0, done = 0;
  size_t i;

  if (stats->map == NULL || bits == 0)
    return;
  for (i = 0; i < MAP_WORDS; ++i) {
    const uint64_t fetched = get (&stats->map->fetched[i]);
    const uint64_t read = get (&stats->map->read[i]);
    const uint64_t hole = get (&stats->map->hole[i]);

    covered += __builtin_popcountll (fetched);
    unread += __builtin_popcountll (fetched & ~read);
    holes += __builtin_popcountll (hole);
    done += __builtin_popcountll (fetched | read | hole);
  }
  totals->covered_bytes = granules_bytes (covered, bits, totals->size);
  totals->unread_bytes = granules_bytes (unread, bits, totals->size);
  totals->hole_bytes = granules_bytes (holes, bits, totals->size);
  totals->done_bytes = granules_bytes (done, bits, totals->size);
}

void
stats_get (struct stats *stats, struct stats_totals *totals)
{
  *totals = (struct stats_totals) {
    .state = atomic_load (&stats->running) > 0
      ? STATS_RUNNING : atomic_load (&stats->last_state),
    .size = get (&stats->size),
    .position = get (&stats->position),
    .prefetches = get (&stats->prefetches),
    .prefetched_bytes = get (&stats->prefetched_bytes),
    .failures = get (&stats->failures),
    .skipped = get (&stats->skipped),
    .reads = get (&stats->reads),
    .read_bytes = get (&stats->read_bytes),
    .hits = get (&stats->hits),
    .late = get (&stats->late),
    .misses = get (&stats->misses),
  };
  get_map (stats, totals);
}
