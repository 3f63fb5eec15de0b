/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See store.h. */

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/stat.h>

#include <nbdkit-filter.h>

#include "cleanup.h"
#include "default-export.h"
#include "disk.h"
#include "escape.h"
#include "map-file.h"
#include "options.h"
#include "store.h"

/* -- open and close -------------------------------------------------------- */

static struct store *
new_store (const char *path)
{
  struct store *store = calloc (1, sizeof *store);

  if (store == NULL) {
    nbdkit_error ("clone: malloc: %m");
    return NULL;
  }
  store->fd = store->map_fd = -1;
  store->commit_number = store->commit_durable = 1;
  pthread_mutex_init (&store->asked_lock, NULL);
  pthread_mutex_init (&store->commit_lock, NULL);
  pthread_cond_init (&store->commit_ended, NULL);
  if (path == NULL)
    return store;
  store->path = strdup (path);
  if (store->path == NULL ||
      asprintf (&store->map_path, "%s" MAP_SUFFIX, path) == -1) {
    store->map_path = NULL;
    nbdkit_error ("clone: malloc: %m");
    store_close (store);
    return NULL;
  }
  return store;
}

void
store_close (struct store *store)
{
  if (store == NULL)
    return;
  if (store->kept != NULL)
    claims_destroy (&store->claims);
  if (store->map != store->kept)
    map_free (store->map);
  map_free (store->kept);
  disk_close (store->map_fd);
  disk_close (store->fd);
  pthread_cond_destroy (&store->commit_ended);
  pthread_mutex_destroy (&store->commit_lock);
  pthread_mutex_destroy (&store->asked_lock);
  free (store->export_name);
  free (store->map_path);
  free (store->path);
  free (store);
}

/* Open one file of the pair.  Sets *missing if it isn't there, and is made if create.
 * Returns -1 after nbdkit_error, or without a message if it is missing.
 */
static int
open_file (const char *path, bool create, bool *missing)
{
  int fd = disk_open (path, false);

  *missing = fd == -1 && errno == ENOENT;
  if (*missing && create) {
    fd = disk_open (path, true);
    if (fd == -1 && errno == EEXIST) { /* by now */
      fd = disk_open (path, false);
      *missing = false;
    }
  }
  if (fd != -1 || (*missing && !create))
    return fd;
  if (errno == ELOOP)
    nbdkit_error ("clone: %s is a symbolic link, which is not followed; name "
                  "the file itself", path);
  else if (errno == EINVAL || errno == ENXIO || errno == EISDIR)
    nbdkit_error ("clone: %s is not a regular file", path);
  else if (errno == DISK_FOREIGN)
    nbdkit_error ("clone: %s belongs to another user, in a folder where "
                  "anybody may have put it; name a file elsewhere, or remove "
                  "it", path);
  else
    nbdkit_error ("clone: cannot open %s: %m", path);
  return -1;
}

static bool
is_named (int fd, const char *path)
{
  struct stat open, named;

  return fstat (fd, &open) == 0 && lstat (path, &named) == 0 &&
    open.st_dev == named.st_dev && open.st_ino == named.st_ino;
}

/* Each of the pair, as one server's map may have the name of another's disk.  Whoever had
 * the lock may have removed the file; see make_files.  Returns -1 after nbdkit_error, or with
 * *busy set if somebody has it.
 */
static int
lock_file (int fd, const char *path, bool *busy)
{
  int err = disk_lock (fd);

  if (err == 0 && !is_named (fd, path))
    err = EAGAIN;
  if (err == EAGAIN && busy != NULL)
    *busy = true;
  else if (err == EAGAIN)
    nbdkit_error ("clone: %s is in use by another server or by QEMU; give each its own "
                  "file", path);
  else if (err != 0)
    nbdkit_error ("clone: cannot lock %s: %s", path, strerror (err));
  return err == 0 ? 0 : -1;
}

/* Has the map not become one yet?  Where it has a size, a crash has left it only if it is
 * one that goes with the disk, which is made before it: else it is another file, be it all
 * holes, such as the source.  Returns -1 with errno set.
 */
static int
map_is_unborn (const struct store *store)
{
  struct stat disk, map;

  if (fstat (store->map_fd, &map) == -1 ||
      (store->fd != -1 && fstat (store->fd, &disk) == -1))
    return -1;
  if (map.st_size > 0 &&
      (store->fd == -1 || !map_file_may_be_of (map.st_size, disk.st_size)))
    return 0;
  return map_file_is_unborn (store->map_fd);
}

/* Is nothing kept in these files, so that they are as good as missing?  A crash
 * may have come between making one and the other; but a disk has no size before there is
 * a file for its map, so one that has is not ours, be it all holes: it may be the source.
 * Returns -1 after nbdkit_error.
 */
static int
is_unborn (struct store *store)
{
  struct stat st;
  bool is_hole;
  int r = 1;

  if (store->map_fd != -1)
    r = map_is_unborn (store);
  if (r == -1)
    nbdkit_error ("clone: %s: %m", store->map_path);
  if (r != 1)
    return r;
  if (fstat (store->fd, &st) == -1) {
    nbdkit_error ("clone: %s: %m", store->path);
    return -1;
  }
  /* Not by its blocks: a small file may have none. */
  is_hole = disk_is_hole (store->fd);
  if (is_hole && (st.st_size == 0 || store->map_fd != -1))
    return 1;
  nbdkit_error ("clone: %s is there and %s, but %s, which says what "
                "of it is a clone, is %s; name another file, or move this "
                "one away", store->path,
                is_hole ? "is not empty" : "holds data", store->map_path,
                store->map_fd == -1 ? "missing" : "empty");
  return -1;
}

static int
check_identity (struct store *store, const struct map_identity *identity,
                const char *expect_name)
{
  char has[ESCAPE_NAME_MAX], wanted[ESCAPE_NAME_MAX];
  struct stat st;

  if (expect_name != NULL && strcmp (identity->export_name, expect_name) != 0)
    nbdkit_error ("clone: %s is a clone of the export %s, not of %s; use "
                  "clone-dir to clone several", store->path,
                  escape (ESCAPE_NAME, identity->export_name, has, sizeof has),
                  escape (ESCAPE_NAME, expect_name, wanted, sizeof wanted));
  else if (options.id != NULL && strcmp (identity->id, options.id) != 0)
    nbdkit_error ("clone: %s was made with clone-id=%s, and clone-id=%s was "
                  "given; name another file, or move both files away to begin "
                  "anew", store->path,
                  escape (ESCAPE_NAME, identity->id, has, sizeof has),
                  options.id);
  else if (options.block_size_given &&
           identity->block_size != options.block_size)
    nbdkit_error ("clone: %s was made with clone-block-size=%" PRIu32 ", and "
                  "clone-block-size=%" PRIu32 " was given; leave it out",
                  store->path, identity->block_size, options.block_size);
  else if (fstat (store->fd, &st) == -1)
    nbdkit_error ("clone: %s: %m", store->path);
  else if ((uint64_t) st.st_size != identity->size)
    nbdkit_error ("clone: %s is %" PRIi64 " bytes, and by its map it should be "
                  "%" PRIu64 "; put back a copy of both files, or move both "
                  "away to begin anew", store->path, (int64_t) st.st_size,
                  identity->size);
  else
    return 0;
  return -1;
}

struct store *
store_open (const char *path, const char *expect_name, bool *missing, bool *busy)
{
  struct map_identity identity;
  char error[MAP_ERROR_MAX];
  struct store *store = new_store (path);
  bool no_map, repaired;
  int r;

  *missing = false;
  if (store == NULL)
    return NULL;
  store->fd = open_file (path, false, missing);
  if (store->fd == -1 && !*missing)
    goto error;
  if (*missing) {
    *missing = false;
    store->map_fd = open_file (store->map_path, false, missing);
    if (store->map_fd == -1)
      goto error;
    if (map_is_unborn (store) == 1)
      *missing = true;
    else
      nbdkit_error ("clone: %s is there, but %s, which it is the map of, is "
                    "missing; put it back, or move the map away to begin anew",
                    store->map_path, path);
    goto error;
  }
  if (lock_file (store->fd, path, busy) == -1)
    goto error;
  store->map_fd = open_file (store->map_path, false, &no_map);
  if (store->map_fd == -1 ? !no_map
      : lock_file (store->map_fd, store->map_path, busy) == -1)
    goto error;
  r = no_map ? 1 : map_is_unborn (store);
  if (r != 0) {
    *missing = is_unborn (store) == 1;
    goto error;
  }

  /* A server that was killed may have left what it had answered in memory only, and a
   * client that flushes relies on that.  And if a sync failed in a server before this
   * one, this one may succeed without what that could not write, and the page cache have
   * it all the same, for a while.
   */
  r = disk_sync (store->fd);
  if (r != 0) {
    nbdkit_error ("clone: %s cannot be synced: %s", path, strerror (r));
    goto error;
  }
  disk_forget_cached (store->fd);
  store->map = store->kept = map_load (store->map_fd, &identity, &repaired, error);
  if (store->map == NULL) {
    nbdkit_error ("clone: %s %s", store->map_path, error);
    goto error;
  }
  claims_init (&store->claims, store->map);
  store->size = identity.size;
  store->block_size = identity.block_size;
  store->default_askers = identity.default_askers;
  if (check_identity (store, &identity, expect_name) == -1)
    goto error;
  store->export_name = strdup (identity.export_name);
  if (store->export_name == NULL) {
    nbdkit_error ("clone: strdup: %m");
    goto error;
  }
  store->durable = map_present (store->map);
  if (repaired)
    nbdkit_error ("clone: warning: %s was damaged; what it had forgotten is "
                  "fetched again, and nothing else is lost, as no client had "
                  "written", store->map_path);
  return store;

 error:
  store_close (store);
  return NULL;
}

/* A crash when it was made leaves a file of the disk's size; one of another size is not
 * ours, be it empty.  Returns -1 after nbdkit_error.
 */
static int
check_size (const struct store *store)
{
  struct stat st;

  if (fstat (store->fd, &st) == -1)
    nbdkit_error ("clone: %s: %m", store->path);
  else if (st.st_size != 0 && (uint64_t) st.st_size != store->size)
    nbdkit_error ("clone: %s is there, is of no clone, and has %" PRIi64 " bytes, and "
                  "the disk %" PRIu64 "; name another file, or move this one away",
                  store->path, (int64_t) st.st_size, store->size);
  else
    return 0;
  return -1;
}

/* With both files open and locked. */
static int
begin_clone (struct store *store, const struct map_identity *identity)
{
  char error[MAP_ERROR_MAX];
  int err;

  /* Another server may have been here since store_open looked. */
  switch (is_unborn (store)) {
  case -1:
    return -1;
  case 0:
    nbdkit_error ("clone: %s has just been made by another server",
                  store->path);
    return -1;
  }
  /* Before there is a disk, so that none is found without a map; and before there is a
   * map: once there is, nobody asks if the names last.
   */
  err = disk_sync_folder (store->path);
  if (err != 0) {
    nbdkit_error ("clone: cannot sync the folder of %s: %s", store->path,
                  strerror (err));
    return -1;
  }
  err = disk_make_empty (store->fd, store->size, false);
  if (err == 0)
    err = disk_sync (store->fd);
  if (err != 0) {
    nbdkit_error ("clone: %s cannot be made %" PRIu64 " bytes long: %s",
                  store->path, store->size, strerror (err));
    return -1;
  }
  if (map_create (store->map, store->map_fd, identity, error) == -1) {
    nbdkit_error ("clone: %s %s", store->map_path, error);
    return -1;
  }
  return 0;
}

/* What this makes and can't begin a clone with it removes again: it would count as one, and
 * be in the way of a disk of another size.  The disk goes first, as an empty map alone is as
 * good as none; and a disk that was there before may need the map now.
 */
static int
make_files (struct store *store, const struct map_identity *identity)
{
  bool is_new, map_is_new, map_is_ours;

  store->fd = open_file (store->path, true, &is_new);
  if (store->fd == -1 || lock_file (store->fd, store->path, NULL) == -1 ||
      check_size (store) == -1)
    return -1;                  /* it is another server's, though we have made it */
  store->map_fd = open_file (store->map_path, true, &map_is_new);
  map_is_ours = store->map_fd != -1 &&
    lock_file (store->map_fd, store->map_path, NULL) == 0;
  if (map_is_ours && begin_clone (store, identity) == 0)
    return 0;
  if (is_new && is_named (store->fd, store->path)) {
    unlink (store->path);
    if (map_is_new && map_is_ours && is_named (store->map_fd, store->map_path))
      unlink (store->map_path);
  }
  return -1;
}

struct store *
store_create (const char *path, const char *export_name, uint64_t size)
{
  struct map_identity identity = {
    .size = size, .block_size = options.block_size,
    .default_askers = default_export_askers (export_name),
  };
  struct store *store = new_store (path);
  int err;

  if (store == NULL)
    return NULL;
  if (strlen (export_name) > MAP_EXPORT_MAX) {
    nbdkit_error ("clone: an export's name can have %d bytes at most",
                  MAP_EXPORT_MAX);
    goto error;
  }
  strcpy (identity.export_name, export_name);
  if (options.id != NULL)
    strcpy (identity.id, options.id);

  store->size = size;
  store->block_size = identity.block_size;
  store->default_askers = identity.default_askers;
  store->export_name = strdup (export_name);
  if (store->export_name == NULL) {
    nbdkit_error ("clone: strdup: %m");
    goto error;
  }
  store->map = store->kept = map_new (size, identity.block_size);
  if (store->map == NULL) {
    nbdkit_error ("clone: the map of a disk of %" PRIu64 " bytes, in blocks of %"
                  PRIu32 ", does not fit into memory: %m; with a larger "
                  "clone-block-size it is smaller", size, identity.block_size);
    goto error;
  }
  claims_init (&store->claims, store->map);
  if (path != NULL) {
    if (make_files (store, &identity) == -1)
      goto error;
    return store;
  }
  store->fd = disk_open_temporary ();
  if (store->fd == -1)
    goto error;
  err = disk_make_empty (store->fd, size, false);
  if (err != 0) {
    nbdkit_error ("clone: the temporary file cannot be made %" PRIu64
                  " bytes long: %s", size, strerror (err));
    goto error;
  }
  return store;

 error:
  store_close (store);
  return NULL;
}

/* -- commit ---------------------------------------------------------------- */

static int
sync_data (void *opaque)
{
  struct store *store = opaque;

  if (!atomic_exchange (&store->data_dirty, false))
    return 0;
  /* A sync would not tell. */
  return store_is_cut (store) ? EIO : disk_sync (store->fd);
}

/* Whoever has removed the files, or put others in their place, may not know that they
 * are in use, and a flush still does what it says.
 */
static void
warn_if_removed (struct store *store)
{
  struct stat data, map;

  if (fstat (store->fd, &data) == -1 || fstat (store->map_fd, &map) == -1 ||
      (data.st_nlink > 0 && map.st_nlink > 0) ||
      atomic_exchange (&store->warned_removed, true))
    return;
  nbdkit_error ("clone: warning: %s has been removed while it is in use: what is in "
                "the clone, and what clients write to it, is gone when nbdkit ends; "
                "until then it can be copied from there, as with nbdcopy",
                data.st_nlink == 0 ? store->path : store->map_path);
}

/* A sync has failed.  After that the kernel may drop what it could not write, and what
 * is read then is what was there before; and the next sync succeeds without it.  So from
 * now on the file is read only where that does not matter.
 */
static void
distrust (struct store *store)
{
  struct map *durable = map_new (store->size, store->block_size);

  atomic_store (&store->broken, true);
  if (durable == NULL || !map_get_durable (store->kept, durable)) {
    map_free (durable);
    atomic_store (&store->commit_durable, 0); /* all may be lost */
    return;
  }
  /* In this order, as a walk goes on only once both say that its blocks are there. */
  claims_distrust (&store->claims, durable);
  atomic_store (&store->map, durable);
}

void
store_note_change (struct store *store, uint64_t first, uint64_t end)
{
  if (store->path != NULL)      /* else it is never committed */
    map_note_change (store->kept, first, end, atomic_load (&store->commit_number));
}

bool
store_is_lost (const struct store *store, uint64_t first, uint64_t end)
{
  return atomic_load_explicit (&store->broken, memory_order_acquire) &&
    map_last_change (store->kept, first, end) >= atomic_load (&store->commit_durable);
}

static int
do_commit (struct store *store)
{
  const uint64_t present = map_present (store->kept);
  bool lost = false;
  uint64_t number;
  int err;

  if (atomic_load (&store->broken))
    return EIO;
  if (!store_dirty (store))
    return 0;
  warn_if_removed (store);
  /* What was changed at an earlier time is all in this commit, data and bits. */
  number = atomic_fetch_add (&store->commit_number, 1) + 1;
  err = map_commit (store->kept, sync_data, store, &lost);
  /* What was written over present blocks, of which no bit tells. */
  if (err == 0) {
    err = sync_data (store);
    lost = err != 0;
  }
  if (err == 0) {
    store->said_why = false;
    atomic_store (&store->durable, present);
    atomic_store (&store->commit_durable, number);
    count (&store->counters, COUNT_COMMITS, 1);
  }
  else if (lost) {
    distrust (store);
    nbdkit_error ("clone: %s or its map cannot be made durable: %s; until nbdkit is "
                  "started again every write and flush fails, nothing is kept, and "
                  "what clients have written last cannot be read",
                  store->path, strerror (err));
  }
  else if (!store->said_why) {
    store->said_why = true;
    nbdkit_error ("clone: %s cannot be written: %s", store->map_path,
                  strerror (err));
  }
  return err;
}

uint64_t
store_durable (const struct store *store)
{
  return store_offset (store, store->path != NULL ? atomic_load (&store->durable)
                       : map_present (store->map));
}

bool
store_dirty (const struct store *store)
{
  return store->path != NULL &&
    (atomic_load (&store->data_dirty) || map_dirty (store->kept));
}

bool
store_is_named (const struct store *store)
{
  return is_named (store->fd, store->path) &&
    is_named (store->map_fd, store->map_path);
}

int
store_commit (struct store *store)
{
  uint64_t mine;
  int err;

  if (store->path == NULL)
    return 0;                   /* it does not outlive us */

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&store->commit_lock);
  /* One that begins from now on has everything. */
  mine = store->commits_begun + 1;
  while (store->commits_ended < mine) {
    if (store->commits_ended < store->commits_begun) {
      pthread_cond_wait (&store->commit_ended, &store->commit_lock);
      continue;
    }
    store->commits_begun++;
    pthread_mutex_unlock (&store->commit_lock);
    err = do_commit (store);
    pthread_mutex_lock (&store->commit_lock);
    store->commits_ended = store->commits_begun;
    store->commit_result = err;
    pthread_cond_broadcast (&store->commit_ended);
  }
  return store->commit_result;
}

/* -- messages -------------------------------------------------------------- */

static const char *
shown_name (const struct store *store)
{
  return store->path != NULL ? store->path : "the temporary file";
}

void
store_report (const struct store *store, const char *what, uint64_t offset,
              int err)
{
  nbdkit_error ("clone: cannot %s %s at offset %" PRIu64 ": %s", what,
                shown_name (store), offset, strerror (err));
}

bool
store_is_cut (struct store *store)
{
  struct stat st;

  if (fstat (store->fd, &st) == -1 || (uint64_t) st.st_size >= store->size)
    return false;
  /* For the next commit to see. */
  atomic_store (&store->data_dirty, true);
  if (!atomic_exchange (&store->warned_cut, true))
    nbdkit_error ("clone: %s is %" PRIi64 " bytes, and should be %" PRIu64
                  "; somebody has cut it short while it is in use", shown_name (store),
                  (int64_t) st.st_size, store->size);
  return true;
}

/* -- keep what was fetched ------------------------------------------------- */

bool
store_has_room (struct store *store, uint64_t bytes)
{
  uint64_t free_bytes, size, reserve = options.reserve;

  if (disk_space (store->fd, &free_bytes, &size) != 0)
    return true;                /* then it will be seen by trying */
  if (reserve == RESERVE_DEFAULT) {
    reserve = size / 100 * RESERVE_PERCENT;
    if (reserve > RESERVE_MOST)
      reserve = RESERVE_MOST;
  }
  if (free_bytes >= reserve && free_bytes - reserve >= bytes)
    return true;
  if (!atomic_exchange (&store->warned_space, true))
    nbdkit_error ("clone: warning: %s: what is fetched is not kept until its "
                  "file system has more room: %" PRIu64 " bytes are free, and "
                  "clone-reserve keeps %" PRIu64 " of them for what clients "
                  "write", shown_name (store), free_bytes, reserve);
  return false;
}

static void
warn_not_kept (struct store *store, int err)
{
  count (&store->counters, COUNT_NOT_KEPT, 1);
  if (!atomic_exchange (&store->warned_store, true))
    nbdkit_error ("clone: warning: %s: what was fetched cannot be kept: %s",
                  shown_name (store), strerror (err));
}

/* Store what may be stored of the blocks in this range; data is of the first of
 * them, or NULL for zeroes.
 */
static int
store_blocks (struct store *store, const struct claim *read, const char *data,
              uint64_t first, uint64_t end)
{
  const uint64_t base = store_offset (store, first);
  struct claim claim;
  uint64_t offset, bytes;
  int err = 0;

  for (; err == 0 &&
         claims_begin_store (&store->claims, &claim, read, first, end);
       first = claim.end) {
    offset = store_offset (store, claim.first);
    bytes = store_offset (store, claim.end) - offset;
    /* Also a hole is made sure of: a write that failed, or that a crash has
     * made forgotten, may have left its data here.
     */
    err = data != NULL
      ? disk_write_sparse (store->fd, data + (offset - base), bytes, offset)
      : disk_zero (store->fd, bytes, offset, DISK_PUNCH, false);
    if (err == 0) {
      atomic_store (&store->data_dirty, true);
      map_set (store->kept, claim.first, claim.end);
      count (&store->counters,
             data != NULL ? COUNT_KEPT_BYTES : COUNT_HOLE_BYTES, bytes);
    }
    claims_end (&store->claims, &claim);
  }
  if (err != 0)
    warn_not_kept (store, err);
  return err;
}

int
store_keep (struct store *store, const struct claim *read, const void *data,
            uint64_t offset, uint64_t bytes, bool force)
{
  const uint64_t first = store_block_after (store, offset);
  const uint64_t end = offset + bytes == store->size ? map_blocks (store->map)
    : store_block (store, offset + bytes);
  const char *whole = data;

  if (first >= end)             /* a part of one block */
    return 0;
  if (atomic_load (&store->broken) ||
      (end == map_blocks (store->map) && store_is_cut (store)))
    return EIO;
  if (data != NULL && !force && !store_has_room (store, bytes)) {
    count (&store->counters, COUNT_NOT_KEPT, 1);
    return ENOSPC;
  }
  if (data != NULL)
    whole += store_offset (store, first) - offset;
  return store_blocks (store, read, whole, first, end);
}
