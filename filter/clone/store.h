/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* The clone of one export: its file and the map beside it, or a temporary file.
 *
 * Shared by all connections to the export.  Any thread may call all of these
 * while the store is open.
 */

#ifndef CLONE_STORE_H
#define CLONE_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include <pthread.h>

#include "claims.h"
#include "counters.h"
#include "map.h"

struct store {
  /* Immutable. */
  char *path, *map_path;        /* NULL: temporary, gone when it is closed */
  int fd, map_fd;
  uint64_t size;                /* bytes, of the disk and of the file */
  uint32_t block_size;          /* bytes */
  char *export_name;
  unsigned default_askers;      /* whose default export it was; see default-export.h */

  /* Any thread, by themselves.  `map` is what reads go by, `kept` what is in the file
   * and committed.  They are one, unless a sync has failed: then `map` is what is
   * durable, and doesn't change any more.
   */
  _Atomic (struct map *) map;
  struct map *kept;             /* immutable */
  struct claims claims;
  struct counters counters;

  /* Something in the file may not be durable yet; set before the bits are. */
  atomic_bool data_dirty;
  /* Blocks that a commit has made durable; written by who commits. */
  atomic_uint_fast64_t durable;
  /* A sync has failed: the kernel may drop what is not durable, so that nothing is
   * written or kept any more.  Set before `map` is another.
   */
  atomic_bool broken;
  /* Commits that have begun, and so many of the first that went well, both from 1 on.
   * Of who commits; also asked by other threads.
   */
  atomic_uint_fast64_t commit_number, commit_durable;
  /* Once each. */
  atomic_bool warned_space, warned_store, warned_removed, warned_cut;

  /* Where the source was asked for its extents last, bytes: what is not a hole
   * there is data.  Guarded by the lock, a leaf.
   */
  pthread_mutex_t asked_lock;
  uint64_t asked_from, asked_to;

  /* One commit at a time; the others wait and share the next.  The lock guards
   * these three.
   */
  pthread_mutex_t commit_lock;
  pthread_cond_t commit_ended;
  uint64_t commits_begun, commits_ended; /* as many, or one is under way */
  int commit_result;            /* of the last that ended; errno */
  bool said_why;                /* the last has failed; whoever commits */
};

/* Open a clone that is there.  Returns NULL with *missing set if there is none
 * yet, without touching anything; with *busy, which was false, set if somebody has locked it,
 * which is an error like others if busy is NULL; else NULL after nbdkit_error.  expect_name is
 * the export that it has to be of, or NULL for any.
 */
extern struct store *store_open (const char *path, const char *expect_name,
                                 bool *missing, bool *busy);

/* Make the clone of an export, of which store_open has found none.  path NULL:
 * a temporary one.  Returns NULL after nbdkit_error.
 */
extern struct store *store_create (const char *path, const char *export_name,
                                   uint64_t size);

/* Has somebody cut the file short, so that what is behind is lost?  Says so once.  A write
 * up to the end of the disk would hide it.
 */
extern bool store_is_cut (struct store *store);

/* A client has changed these blocks, or tried to: data and bits are as they will be. */
extern void store_note_change (struct store *store, uint64_t first, uint64_t end);

/* Was any of these blocks changed by a client, and then a sync failed?  What it wrote
 * may be in the file or not, and is nowhere else.
 */
extern bool store_is_lost (const struct store *store, uint64_t first, uint64_t end);

/* How many bytes, in whole blocks, are there and would be after a crash; of a
 * temporary clone, how many are there.  Any thread.
 */
extern uint64_t store_durable (const struct store *store);

/* Without a commit.  NULL is allowed. */
extern void store_close (struct store *store);

/* Make durable all writes that have completed and all that is present.  Calls
 * that wait at the same time share one commit.  Returns 0 or an errno, after
 * nbdkit_error.
 */
extern int store_commit (struct store *store);

/* Has anything changed since the last commit began? */
extern bool store_dirty (const struct store *store);

/* Are both of its files still under their names, so that they would be found again?  Not
 * for a temporary one.
 */
extern bool store_is_named (const struct store *store);

/* May fetches take this many more bytes of the file system?  Warns once if
 * not.
 */
extern bool store_has_room (struct store *store, uint64_t bytes);

/* Keep what was fetched, of the blocks that are still to be kept and that are whole
 * in the bytes from offset on; the last block ends with the disk.  data NULL: the
 * source has a hole there, for which there is always room.  If force, the reserve
 * does not count.  Returns 0, or the errno for which it could not be kept, EIO if
 * nothing is any more; the server goes on.
 */
extern int store_keep (struct store *store, const struct claim *read,
                       const void *data, uint64_t offset, uint64_t bytes,
                       bool force);

/* Report that the file can't be read or written (that is what) at this offset. */
extern void store_report (const struct store *store, const char *what,
                          uint64_t offset, int err);

/* -- bytes and blocks ------------------------------------------------------ */

static inline uint64_t
min64 (uint64_t a, uint64_t b)
{
  return a < b ? a : b;
}

static inline uint64_t
max64 (uint64_t a, uint64_t b)
{
  return a > b ? a : b;
}

static inline uint64_t
store_block (const struct store *store, uint64_t offset)
{
  return offset / store->block_size;
}

/* The first block that begins at or after offset; the last block ends at the
 * end of the disk.
 */
static inline uint64_t
store_block_after (const struct store *store, uint64_t offset)
{
  return offset / store->block_size + (offset % store->block_size != 0);
}

/* Where a block begins; for the number after the last, where the disk ends. */
static inline uint64_t
store_offset (const struct store *store, uint64_t block)
{
  const uint64_t offset = block * store->block_size;

  return offset < store->size ? offset : store->size;
}

#endif /* CLONE_STORE_H */
