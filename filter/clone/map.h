/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Which blocks of a disk are in the clone: a bit each, in memory and in a
 * file.
 *
 * In memory any thread may ask and set; bits are never cleared, and neither
 * takes a lock.  A bit is set after the data it speaks of is in the clone's
 * file, and who finds it set finds that data.
 *
 * The file outlives the server, and also a crash of the machine at any
 * instant: see map.c for its format and why.  One thread at a time may commit.
 */

#ifndef CLONE_MAP_H
#define CLONE_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MAP_ID_MAX 255          /* bytes of a clone-id */
#define MAP_EXPORT_MAX 3072     /* bytes of an export's name */
#define MAP_ERROR_MAX 512       /* bytes of a message, with the NUL */

/* What a clone is a clone of.  Does not change once the map is made. */
struct map_identity {
  uint64_t size;                /* of the source, bytes */
  uint32_t block_size;          /* bytes, a power of two */
  char id[MAP_ID_MAX + 1];      /* clone-id, or "" */
  char export_name[MAP_EXPORT_MAX + 1];
};

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

static inline bool map_complete (const struct map *map);

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

static inline bool
map_complete (const struct map *map)
{
  return map_present (map) == map_blocks (map);
}

/* -- the file -------------------------------------------------------------- */

/* Errors are a text in error[MAP_ERROR_MAX], to follow the file's name and a
 * colon.
 */

/* Has this file not become a map yet?  The machine may have stopped while it
 * was made.  Returns -1 with errno set if it can't be read.
 */
extern int map_file_is_unborn (int fd);

/* Make the file of a new map.  It is durable afterwards, but for its name. */
extern int map_create (struct map *map, int fd,
                       const struct map_identity *identity, char *error);

/* Read a map from its file.  Returns NULL if it can't be used.  *repaired is
 * set if bits were lost, which could be afforded as nothing had been written.
 */
extern struct map *map_load (int fd, struct map_identity *identity,
                             bool *repaired, char *error);

/* Are there bits that the file doesn't have? */
extern bool map_dirty (const struct map *map);

/* Write the bits there are at the time of the call to the file, each after
 * sync_data (opaque) has made durable the data it speaks of.  Returns 0 or an
 * errno.  After *lost is set the kernel may have dropped what was written: the
 * file must not be written any more.
 */
extern int map_commit (struct map *map, int (*sync_data) (void *opaque),
                       void *opaque, bool *lost);

#endif /* CLONE_MAP_H */
