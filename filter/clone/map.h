/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Which blocks of a disk are in the clone: a bit each, in memory.  What is kept
 * of them on disk is in map-file.h.
 *
 * Any thread may ask and set; bits are never cleared, and neither takes a lock.
 * A bit is set after the data it speaks of is in the clone's file, and who finds
 * it set finds that data.
 */

#ifndef CLONE_MAP_H
#define CLONE_MAP_H

#include <stdbool.h>
#include <stdint.h>

struct map;

/* A map of a disk of which nothing is present, with no file.  NULL with errno
 * set if memory is short.
 */
extern struct map *map_new (uint64_t size, uint32_t block_size);

/* NULL is allowed.  Does not close the file. */
extern void map_free (struct map *map);

/* -- blocks ---------------------------------------------------------------- */

/* Blocks are counted from 0; ranges are first <= block < end. */

extern uint64_t map_blocks (const struct map *map);
extern uint64_t map_present (const struct map *map);

/* Are all of them present? */
extern bool map_has (const struct map *map, uint64_t first, uint64_t end);

/* The first block that is, or isn't, present; end if there is none. */
extern uint64_t map_find (const struct map *map, uint64_t first, uint64_t end,
                          bool present);

/* Their data is in the clone's file. */
extern void map_set (struct map *map, uint64_t first, uint64_t end);

/* A client is about to write: from now on a bit that is lost could lose what it
 * wrote.
 */
extern void map_note_write (struct map *map);
extern bool map_written (const struct map *map);

/* A client has changed these blocks.  The time is any number but 0 that doesn't go
 * back; no lock either.
 */
extern void map_note_change (struct map *map, uint64_t first, uint64_t end,
                             uint64_t when);

/* When any of them, or of those near them, was last changed; 0: never. */
extern uint64_t map_last_change (const struct map *map, uint64_t first, uint64_t end);

static inline bool
map_complete (const struct map *map)
{
  return map_present (map) == map_blocks (map);
}

#endif /* CLONE_MAP_H */
