/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* The file of a map, which outlives the server, and also a crash of the machine
 * at any instant: see map-file.c for its format and why.
 *
 * One thread at a time may call these for a map, but any map_dirty.
 */

#ifndef CLONE_MAP_FILE_H
#define CLONE_MAP_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "map.h"

#define MAP_ID_MAX 255          /* bytes of a clone-id */
#define MAP_EXPORT_MAX 3072     /* bytes of an export's name */
#define MAP_ERROR_MAX 512       /* bytes of a message, with the NUL */

/* What a block may have, in bytes. */
#define MAP_BLOCK_MIN 512
#define MAP_BLOCK_MAX (UINT32_C (1) << 20)

/* What a clone is a clone of.  Does not change once the map is made. */
struct map_identity {
  uint64_t size;                /* of the source, bytes */
  uint32_t block_size;          /* bytes, a power of two */
  uint32_t default_askers;      /* whose default export it was; see default-export.h */
  char id[MAP_ID_MAX + 1];      /* clone-id, or "" */
  char export_name[MAP_EXPORT_MAX + 1];
};

/* Errors are a text in error[MAP_ERROR_MAX], to follow the file's name. */

/* Has this file not become a map yet?  The machine may have stopped while it
 * was made.  Returns -1 with errno set if it can't be read.
 */
extern int map_file_is_unborn (int fd);

/* May a file of so many bytes be the map of a disk of this size, whatever its blocks
 * have?
 */
extern bool map_file_may_be_of (uint64_t bytes, uint64_t disk_size);

/* Make the file of a new map.  It is durable afterwards, but for its name. */
extern int map_create (struct map *map, int fd,
                       const struct map_identity *identity, char *error);

/* Read a map from its file.  Returns NULL if it can't be used.  *repaired is
 * set if bits were lost, which could be afforded as nothing had been written.
 */
extern struct map *map_load (int fd, struct map_identity *identity,
                             bool *repaired, char *error);

/* Are there bits that the file doesn't have?  Not for a map without a file. */
extern bool map_dirty (const struct map *map);

/* Write the bits there are at the time of the call to the file, each after
 * sync_data (opaque) has made durable the data it speaks of.  Returns 0 or an
 * errno.  After *lost is set the kernel may have dropped what was written: the
 * file must not be written any more.
 */
extern int map_commit (struct map *map, int (*sync_data) (void *opaque),
                       void *opaque, bool *lost);

/* After such a loss: put into another map, of the same size and new, the bits that
 * the last commit that went well has made durable, and those before it.  Returns false
 * if that can't be had any more.
 */
extern bool map_get_durable (const struct map *map, struct map *durable);

#endif /* CLONE_MAP_FILE_H */
