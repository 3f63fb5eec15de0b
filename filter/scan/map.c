/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See map.h.
 *
 * Flags are changed by atomic operations that return what was there before, so
 * that whoever sets a flag first knows it, and the sums stay exact without a
 * lock.  The lock guards the tables of parts.
 */

#include <stdlib.h>

#include <pthread.h>

#include "cleanup.h"
#include "map.h"

#define GRANULE_MIN_BITS 12

/* Granules are counted in groups, so that map_missing can pass over a group of
 * which nothing is missing in one step.
 */
#define GROUP_BITS 10
#define GROUPS_MAX (MAP_GRANULES_MAX >> GROUP_BITS)

/* The most granules that one answer of map_missing covers, or that are looked at with
 * the lock held, and the most parts that an answer passes over.
 */
#define GRANULES_AT_ONCE 4096
#define MISSING_PARTS_MAX 32

/* Parts of granules: ranges that don't meet, each inside one granule. */
struct parts {
  struct part {
    struct range range;         /* count is 0 if this entry is free */
    uint64_t grown;             /* when, as map->changes was then */
  } part[MAP_PARTS_MAX];
  unsigned nr;                  /* entries from here on were never used */
};

struct map {
  struct map_cells cells;       /* first: see map_meet */

  /* Atomic.  Sums are in bytes. */
  _Atomic uint64_t size;
  _Atomic uint64_t touched;     /* by a read after they had been fetched */

  pthread_mutex_t lock;         /* leaf */

  /* Protected by lock. */
  uint64_t changes;
  uint64_t covered, partly_covered, done;
  uint64_t untouched;           /* at the time that they were fetched */
  unsigned known[GROUPS_MAX];   /* granules that are fetched or read */
  struct parts fetched, done_parts, read;
  struct range flights[MAP_PARTS_MAX];
  unsigned nr_flights;
};

struct map *
map_new (void)
{
  struct map *map = calloc (1, sizeof *map);

  if (map != NULL)
    pthread_mutex_init (&map->lock, NULL);
  return map;
}

void
map_free (struct map *map)
{
  if (map == NULL)
    return;
  pthread_mutex_destroy (&map->lock);
  free (map);
}

bool
map_set_size (struct map *map, uint64_t size)
{
  unsigned bits = GRANULE_MIN_BITS;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&map->lock);

  if (atomic_load (&map->cells.bits) == 0) {
    while ((size + (UINT64_C (1) << bits) - 1) >> bits > MAP_GRANULES_MAX)
      bits++;
    atomic_store (&map->size, size);
    atomic_store (&map->cells.bits, bits);
    atomic_store (&map->cells.granules,
                  (size + (UINT64_C (1) << bits) - 1) >> bits);
  }
  return atomic_load (&map->size) == size;
}

/* -- granules -------------------------------------------------------------- */

/* The granules first .. last-1 that a range lies in, and of those whole_first
 * .. whole_last-1 that it covers.  The one place where numbers of granules are
 * made, and none is beyond the map.
 */
struct span {
  uint64_t first, last, whole_first, whole_last;
};

static struct span
span_of (struct map *map, struct range range)
{
  const uint64_t granules = atomic_load (&map->cells.granules);
  const unsigned bits = atomic_load (&map->cells.bits);
  const uint64_t granule = UINT64_C (1) << bits;
  const uint64_t size = atomic_load (&map->size);
  struct span span = { 0 };

  if (granules == 0 || range.count == 0 || range.offset >= size)
    return span;
  if (range.count > size - range.offset)
    range.count = size - range.offset;
  span.first = range.offset >> bits;
  span.last = (range_end (range) + granule - 1) >> bits;
  span.whole_first = (range.offset + granule - 1) >> bits;
  /* The last one of the disk may be short. */
  span.whole_last = range_end (range) == size
    ? span.last : range_end (range) >> bits;
  if (span.whole_first > span.whole_last)       /* in the midst of one */
    span.whole_first = span.whole_last;
  return span;
}

/* The bytes of granules first .. last-1. */
static struct range
granules_range (struct map *map, uint64_t first, uint64_t last)
{
  const unsigned bits = atomic_load (&map->cells.bits);
  const uint64_t size = atomic_load (&map->size);
  struct range range = { first << bits, (last - first) << bits };

  if (range.count > size - range.offset)
    range.count = size - range.offset;
  return range;
}

static struct range
granule_range (struct map *map, uint64_t granule)
{
  return granules_range (map, granule, granule + 1);
}

static struct range
intersection (struct range a, struct range b)
{
  const uint64_t start = a.offset > b.offset ? a.offset : b.offset;
  const uint64_t end = range_end (a) < range_end (b)
    ? range_end (a) : range_end (b);

  return (struct range) { start, end > start ? end - start : 0 };
}

static bool
contains (struct range outer, struct range inner)
{
  return outer.offset <= inner.offset && range_end (inner) <= range_end (outer);
}

static uint8_t
flags_of (struct map_cells *cells, uint64_t granule)
{
  return atomic_load_explicit (&cells->flags[granule], memory_order_relaxed);
}

/* Set flags of a granule, and keep the sums.  The lock must be held. */
static void
set_flags (struct map *map, uint64_t granule, uint8_t flags)
{
  const uint8_t old = atomic_fetch_or (&map->cells.flags[granule], flags);
  const uint8_t set = flags & ~old;
  const uint64_t bytes = granule_range (map, granule).count;

  if (set & MAP_FETCHED) {
    map->covered += bytes;
    if (!(old & MAP_TOUCHED))
      map->untouched += bytes;
    if (old & MAP_PARTLY_FETCHED)
      map->partly_covered -= bytes;
  }
  if (set & MAP_DONE)
    map->done += bytes;
  if (set & MAP_PARTLY_FETCHED)
    map->partly_covered += bytes;
  if ((set & (MAP_FETCHED | MAP_READ)) && !(old & (MAP_FETCHED | MAP_READ)))
    map->known[granule >> GROUP_BITS]++;
}

/* A read has touched a granule. */
static void
touch (struct map *map, uint64_t granule)
{
  const uint8_t old = atomic_fetch_or (&map->cells.flags[granule], MAP_TOUCHED);

  if ((old & (MAP_TOUCHED | MAP_FETCHED)) == MAP_FETCHED)
    map->touched += granule_range (map, granule).count;
}

static void
clear_flags (struct map *map, uint64_t granule, uint8_t flags)
{
  atomic_fetch_and (&map->cells.flags[granule], ~flags);
}

/* -- parts of granules, with the lock held --------------------------------- */

/* A free entry, or the one that has not grown for longest. */
static struct part *
make_room (struct parts *parts)
{
  struct part *oldest = &parts->part[0];
  unsigned i;

  for (i = 0; i < parts->nr; ++i) {
    if (parts->part[i].range.count == 0)
      return &parts->part[i];
    if (parts->part[i].grown < oldest->grown)
      oldest = &parts->part[i];
  }
  return parts->nr < MAP_PARTS_MAX ? &parts->part[parts->nr++] : oldest;
}

/* Add a piece of a granule, joined with those that it meets there.  Returns
 * true if the granule is whole now, and then keeps none of it.
 */
static bool
add_part (struct map *map, struct parts *parts, struct range granule,
          struct range piece)
{
  uint64_t start = piece.offset, end = range_end (piece);
  struct range *part;
  unsigned i;

  for (i = 0; i < parts->nr; ++i) {
    part = &parts->part[i].range;
    if (part->count == 0 || !contains (granule, *part) ||
        part->offset > range_end (piece) || piece.offset > range_end (*part))
      continue;
    if (part->offset < start)
      start = part->offset;
    if (range_end (*part) > end)
      end = range_end (*part);
    part->count = 0;
  }
  if (end - start == granule.count)
    return true;
  *make_room (parts) = (struct part) {
    { start, end - start }, ++map->changes
  };
  return false;
}

/* Forget the parts inside this range, which is known otherwise now. */
static void
drop_parts (struct parts *parts, struct range range)
{
  unsigned i;

  for (i = 0; i < parts->nr; ++i)
    if (contains (range, parts->part[i].range))
      parts->part[i].range.count = 0;
}

/* Add a range: whole granules get flags, parts of one go to the table until
 * they are whole.
 */
static void
add_range (struct map *map, struct parts *parts, struct range range,
           uint8_t whole, uint8_t partly)
{
  const struct span span = span_of (map, range);
  struct range granule;
  bool is_whole;
  uint8_t flags;
  uint64_t g;

  for (g = span.first; g < span.last; ++g) {
    flags = flags_of (&map->cells, g);
    if (flags & whole)
      continue;
    is_whole = g >= span.whole_first && g < span.whole_last;
    if (!is_whole) {
      granule = granule_range (map, g);
      is_whole = add_part (map, parts, granule, intersection (granule, range));
    }
    if (is_whole) {
      set_flags (map, g, whole);
      if (flags & partly)
        clear_flags (map, g, partly);
    }
    else if (partly != 0)
      set_flags (map, g, partly);
  }
  if (parts->nr > 0 && span.whole_first < span.whole_last)
    drop_parts (parts, granules_range (map, span.whole_first, span.whole_last));
}

/* -- prefetches, holes and reads ------------------------------------------- */

/* Flag what this prefetch has in flight.  The lock must be held. */
static void
set_in_flight (struct map *map, struct range range)
{
  const struct span span = span_of (map, range);
  uint64_t g;

  for (g = span.first; g < span.last; ++g)
    set_flags (map, g, g >= span.whole_first && g < span.whole_last
               ? MAP_IN_FLIGHT : MAP_PARTLY_IN_FLIGHT);
}

void
map_prefetch_begins (struct map *map, struct range range)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&map->lock);

  if (map->nr_flights < MAP_PARTS_MAX)
    map->flights[map->nr_flights++] = range;
  set_in_flight (map, range);
}

void
map_prefetch_ends (struct map *map, struct range range, bool ok)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&map->lock);
  struct span span, other;
  uint64_t g;
  unsigned i;

  /* In this order, so that a read meets one or the other. */
  if (ok) {
    add_range (map, &map->fetched, range, MAP_FETCHED, MAP_PARTLY_FETCHED);
    add_range (map, &map->done_parts, range, MAP_DONE, 0);
  }
  span = span_of (map, range);
  for (g = span.first; g < span.last; ++g)
    clear_flags (map, g, MAP_IN_FLIGHT | MAP_PARTLY_IN_FLIGHT);
  for (i = 0; i < map->nr_flights; ++i)
    if (map->flights[i].offset == range.offset &&
        map->flights[i].count == range.count) {
      map->flights[i] = map->flights[--map->nr_flights];
      break;
    }
  /* Others may be on their way to the same granules. */
  for (i = 0; i < map->nr_flights; ++i) {
    other = span_of (map, map->flights[i]);
    if (other.first < span.last && span.first < other.last)
      set_in_flight (map, map->flights[i]);
  }
}

/* Flag whole granules first .. last-1 as done, without the lock.  Returns the bytes of
 * those that were not.
 */
static uint64_t
set_done (struct map *map, uint64_t first, uint64_t last)
{
  uint64_t bytes = 0, g;

  for (g = first; g < last; ++g)
    if (!(flags_of (&map->cells, g) & MAP_DONE) &&
        !(atomic_fetch_or (&map->cells.flags[g], MAP_DONE) & MAP_DONE))
      bytes += granule_range (map, g).count;
  return bytes;
}

/* A hole may be nearly all of the disk, and a client's read may want the lock: only
 * its two ends are for that.
 */
void
map_hole (struct map *map, struct range range)
{
  const struct span span = span_of (map, range);
  const uint64_t bytes = set_done (map, span.whole_first, span.whole_last);
  const uint64_t end = range_end (range);
  struct range whole;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&map->lock);

  if (span.whole_first < span.whole_last) {
    whole = granules_range (map, span.whole_first, span.whole_last);
    map->done += bytes;
    drop_parts (&map->done_parts, whole);
    range.count = whole.offset - range.offset;
    add_range (map, &map->done_parts, range, MAP_DONE, 0);
    range.offset = range_end (whole);
    range.count = end > range.offset ? end - range.offset : 0;
  }
  add_range (map, &map->done_parts, range, MAP_DONE, 0);
}

void
map_read (struct map *map, struct range range)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&map->lock);

  add_range (map, &map->read, range, MAP_READ, 0);
}

/* A client's read may want the lock, so not all of a disk at once. */
void
map_unread (struct map *map, struct range range)
{
  const struct span span = span_of (map, range);
  uint64_t g = span.first, stop;
  uint8_t old;

  while (g < span.last) {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&map->lock);

    stop = span.last - g > GRANULES_AT_ONCE ? g + GRANULES_AT_ONCE : span.last;
    drop_parts (&map->read, granules_range (map, g, stop));
    for (; g < stop; ++g) {
      old = atomic_fetch_and (&map->cells.flags[g], (uint8_t) ~MAP_READ);
      if ((old & (MAP_FETCHED | MAP_READ)) == MAP_READ)
        map->known[g >> GROUP_BITS]--;
    }
  }
}

/* What a read meets that needs this piece of a granule of which a part is
 * fetched or in flight; at least what it meets of the whole granule.
 */
static enum met
meet_part (struct map *map, struct range piece, enum met met)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&map->lock);
  unsigned i;

  for (i = 0; met != MET_HIT && i < map->fetched.nr; ++i)
    if (contains (map->fetched.part[i].range, piece))
      met = MET_HIT;
  for (i = 0; met == MET_MISS && i < map->nr_flights; ++i)
    if (contains (map->flights[i], piece))
      met = MET_LATE;
  return met;
}

uint8_t
map_meet_slowly (struct map_cells *cells, struct range range)
{
  struct map *map = (struct map *) cells;
  const struct span span = span_of (map, range);
  enum met met = span.last > span.first ? MET_HIT : MET_MISS, one;
  bool again = met == MET_HIT, read = again;
  uint64_t g;
  uint8_t flags;

  for (g = span.first; g < span.last; ++g) {
    flags = flags_of (cells, g);
    one = map_met (flags);
    if (one != MET_HIT && (flags & (MAP_PARTLY_FETCHED | MAP_PARTLY_IN_FLIGHT)))
      one = meet_part (map, intersection (granule_range (map, g), range), one);
    again = again && (one == MET_HIT || (flags & MAP_READ));
    read = read && (flags & MAP_READ);
    if (one < met)
      met = one;
    if (!(flags & MAP_TOUCHED))
      touch (map, g);
  }
  return (met == MET_HIT ? MAP_FETCHED : met == MET_LATE ? MAP_IN_FLIGHT : 0) |
    ((met == MET_HIT ? read : again) ? MAP_READ : 0);
}

/* -- what is missing ------------------------------------------------------- */

#define KNOWN (MAP_FETCHED | MAP_IN_FLIGHT | MAP_READ)

/* The first granule from g on, before last, that isn't known as a whole. */
static uint64_t
skip_known (struct map *map, uint64_t g, uint64_t last)
{
  const uint64_t group = UINT64_C (1) << GROUP_BITS;

  while (g < last) {
    if (g % group == 0 && map->known[g >> GROUP_BITS] == group) {
      g += group;
      continue;
    }
    if (!(flags_of (&map->cells, g) & KNOWN))
      return g;
    g++;
  }
  return last;
}

/* If one of these holds the byte at pos, return where it ends, else 0; *next
 * becomes the start of the first one after pos.
 */
static uint64_t
end_of_known (const struct range *range, uint64_t pos, uint64_t *next)
{
  if (range->count == 0)
    return 0;
  if (range->offset <= pos && pos < range_end (*range))
    return range_end (*range);
  if (range->offset > pos && range->offset < *next)
    *next = range->offset;
  return 0;
}

/* The same for all tables.  The lock must be held. */
static uint64_t
end_of_part (struct map *map, uint64_t pos, uint64_t *next)
{
  uint64_t end = 0;
  unsigned i;

  for (i = 0; end == 0 && i < map->nr_flights; ++i)
    end = end_of_known (&map->flights[i], pos, next);
  for (i = 0; end == 0 && i < map->fetched.nr; ++i)
    end = end_of_known (&map->fetched.part[i].range, pos, next);
  for (i = 0; end == 0 && i < map->read.nr; ++i)
    end = end_of_known (&map->read.part[i].range, pos, next);
  return end;
}

bool
map_missing (struct map *map, uint64_t from, uint64_t to,
             struct range *missing)
{
  unsigned parts = 0;
  struct span span;
  uint64_t g, start, end, next;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&map->lock);
  const unsigned bits = atomic_load (&map->cells.bits);
  const uint64_t size = atomic_load (&map->size);

  if (to > size)
    to = size;
  while (from < to) {
    span = span_of (map, (struct range) { from, to - from });
    g = skip_known (map, span.first, span.last);
    if (g == span.last)
      return false;
    start = g << bits;
    if (start < from)
      start = from;
    next = to;
    end = end_of_part (map, start, &next);
    if (end != 0 && ++parts <= MISSING_PARTS_MAX) {
      from = end;
      continue;
    }
    /* Up to what is known next. */
    if (span.last > g + GRANULES_AT_ONCE)
      span.last = g + GRANULES_AT_ONCE;
    while (g < span.last && !(flags_of (&map->cells, g) & KNOWN))
      g++;
    end = g << bits;
    if (end > next)
      end = next;
    *missing = (struct range) { start, end - start };
    return true;
  }
  return false;
}

/* -- sums ------------------------------------------------------------------ */

static uint64_t
sum_parts (const struct parts *parts)
{
  uint64_t sum = 0;
  unsigned i;

  for (i = 0; i < parts->nr; ++i)
    sum += parts->part[i].range.count;
  return sum;
}

void
map_get (struct map *map, struct map_totals *totals)
{
  const struct part *part;
  uint64_t done;
  unsigned i;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&map->lock);
  const unsigned bits = atomic_load (&map->cells.bits);

  *totals = (struct map_totals) {
    .size = atomic_load (&map->size),
    .covered = map->covered + sum_parts (&map->fetched),
    .partly_covered = map->partly_covered,
    .unread = map->untouched - atomic_load (&map->touched),
  };
  for (i = 0; i < map->fetched.nr; ++i) {
    part = &map->fetched.part[i];
    if (part->range.count > 0 &&
        !(flags_of (&map->cells, part->range.offset >> bits) & MAP_TOUCHED))
      totals->unread += part->range.count;
  }
  done = map->done + sum_parts (&map->done_parts);
  totals->holes = done > totals->covered ? done - totals->covered : 0;
}
