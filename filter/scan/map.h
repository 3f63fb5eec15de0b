/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* What became of each part of one disk of one size: in flight, fetched, read,
 * or passed over as a hole.
 *
 * The disk is divided into at most MAP_GRANULES_MAX granules: of 4096 bytes up
 * to 4 GiB, larger beyond.  Each has a cell of flags.  Where a prefetch or a
 * read ends in the middle of a granule, the part is kept in a table until
 * others that it meets make the granule whole; so prefetches may be smaller than
 * granules.  Tables are bounded: the part that has not grown for longest is
 * forgotten when there are too many.  All of a map takes
 * little more than 1 MiB, and less in use for a small disk.
 *
 * How exact it is.  What is said to be fetched or read has been.  A read that
 * touches a granule makes all of it count as not unread.  Bytes of forgotten
 * parts are said to be missing, and a read of them to have missed; on disks up
 * to 4 GiB, with requests aligned to 4096 bytes, nothing is ever forgotten.
 * map_meet is exact as of the moment that the read begins, but for parts: what a
 * read needs of one granule counts as a miss if it is partly here and partly on
 * its way, or if it was forgotten.
 *
 * Any thread may call these functions, and none allocates or fails after
 * map_new.  map_meet is for the path of client reads: it takes no lock but where
 * a granule is partly fetched or partly in flight, and then a leaf lock that is
 * held for a bounded number of steps.
 */

#ifndef SCAN_MAP_H
#define SCAN_MAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "met.h"
#include "range.h"

#define MAP_GRANULES_MAX (UINT64_C (1) << 20)

/* Parts that are kept of each kind, and prefetches known to be in flight. */
#define MAP_PARTS_MAX 256

struct map;

/* Bytes, each counted once. */
struct map_totals {
  uint64_t size;                /* 0 until it is known */
  uint64_t covered;             /* prefetched */
  uint64_t partly_covered;      /* in granules of which a part was prefetched */
  uint64_t unread;              /* prefetched and never read */
  uint64_t holes;               /* passed over as holes, and not prefetched */
};

/* A map of a disk whose size is not known yet: nothing is noted in it, and all
 * reads miss.  Returns NULL with errno set if memory runs out.
 */
extern struct map *map_new (void);

/* NULL is allowed. */
extern void map_free (struct map *map);

/* The size of the disk is known.  The first call decides; returns false if the
 * size is another one than that.
 */
extern bool map_set_size (struct map *map, uint64_t size);

/* A prefetch of this range is on its way; and has ended. */
extern void map_prefetch_begins (struct map *map, struct range range);
extern void map_prefetch_ends (struct map *map, struct range range, bool ok);

/* The policy has passed over a hole. */
extern void map_hole (struct map *map, struct range range);

/* The client has read this.  Needed for map_missing only; the scan says it
 * when it takes the reads from their queue.
 */
extern void map_read (struct map *map, struct range range);

/* A read of this has failed: nothing of the granules that it touched counts as
 * read any more.
 */
extern void map_unread (struct map *map, struct range range);

/* The first range in from .. to-1 that was neither fetched nor read and is not
 * in flight; false if there is none.  A long one may be cut short: go on where
 * it ends.  Looks at some thousand words at most.
 */
extern bool map_missing (struct map *map, uint64_t from, uint64_t to,
                         struct range *missing);

extern void map_get (struct map *map, struct map_totals *totals);

/* -- on the path of client reads ------------------------------------------- */

/* Flags of a granule's cell. */
enum {
  MAP_IN_FLIGHT = 1,            /* all of it, in one prefetch */
  MAP_FETCHED = 2,
  MAP_DONE = 4,                 /* fetched or a hole */
  MAP_TOUCHED = 8,              /* a client's read needs or needed some of it */
  MAP_READ = 16,                /* all of it was read */
  MAP_PARTLY_FETCHED = 32,
  MAP_PARTLY_IN_FLIGHT = 64,
};

/* The part of a map that map_meet looks at. */
struct map_cells {
  /* Zero until the size is known; bits is set before granules. */
  _Atomic uint64_t granules;
  atomic_uint bits;             /* a granule has 2^bits bytes */
  _Atomic uint8_t flags[MAP_GRANULES_MAX];
};

extern uint8_t map_meet_slowly (struct map_cells *cells, struct range range);

/* A client's read begins: note that it has touched what it needs.  Returns what
 * it meets, for the functions below.  The range is given as two numbers,
 * because a struct goes through memory.
 */
static inline uint8_t
map_meet (struct map *map, uint64_t offset, uint64_t count)
{
  struct map_cells *cells = (struct map_cells *) map;
  const uint64_t granules = atomic_load_explicit (&cells->granules,
                                                  memory_order_acquire);
  const unsigned bits = atomic_load_explicit (&cells->bits,
                                              memory_order_relaxed);
  const uint64_t granule = offset >> bits;
  uint8_t flags;

  if (granule == (offset + count - 1) >> bits && granule < granules) {
    flags = atomic_load_explicit (&cells->flags[granule],
                                  memory_order_relaxed);
    /* The usual cases, for which this is all. */
    if ((flags & (MAP_TOUCHED | MAP_PARTLY_FETCHED | MAP_PARTLY_IN_FLIGHT)) ==
        MAP_TOUCHED)
      return flags;
  }
  return map_meet_slowly (cells, (struct range) { offset, count });
}

/* By what was prefetched, which is what the scan is measured by. */
static inline enum met
map_met (uint8_t flags)
{
  return flags & MAP_FETCHED ? MET_HIT
    : flags & MAP_IN_FLIGHT ? MET_LATE : MET_MISS;
}

/* For policies, what was read before is as good; if all of the granules was,
 * and the scan had been told.
 */
static inline enum met
map_met_again (uint8_t flags)
{
  return flags & MAP_READ ? MET_HIT : map_met (flags);
}

/* Is it a hit only because of the scan?  What was read before, and the scan has been
 * told so, the clone keeps in any case.
 */
static inline bool
map_was_of_use (uint8_t flags)
{
  return (flags & (MAP_FETCHED | MAP_READ)) == MAP_FETCHED;
}

#endif /* SCAN_MAP_H */
