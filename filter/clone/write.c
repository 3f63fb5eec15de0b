/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See write.h. */

#include <errno.h>

#include "disk.h"
#include "options.h"
#include "write.h"

/* What is to be written, and the blocks that it touches and covers. */
struct change {
  const char *data;             /* NULL: zeroes */
  uint64_t offset, count;       /* bytes */
  uint32_t flags;
  uint64_t first, end;          /* touched */
  uint64_t whole_first, whole_end; /* covered; may be none */
};

static struct change
change_of (const struct store *store, const void *data, uint32_t count_, uint64_t offset,
           uint32_t flags)
{
  struct change ch = {
    .data = data, .offset = offset, .count = count_, .flags = flags,
    .first = store_block (store, offset),
    .end = store_block_after (store, offset + count_),
    .whole_first = store_block_after (store, offset),
    .whole_end = offset + count_ == store->size ? map_blocks (store->map)
      : store_block (store, offset + count_),
  };

  if (ch.whole_end < ch.whole_first) /* within one block */
    ch.whole_end = ch.whole_first;
  return ch;
}

/* Also one that fails may have written some of it, which is read then. */
static int
put (struct store *store, const struct change *ch, uint64_t from, uint64_t to)
{
  const bool quick = ch->flags & NBDKIT_FLAG_FAST_ZERO;
  int err;

  if (from >= to)
    return 0;
  if (to == store->size && store_is_cut (store))
    return EIO;
  if (ch->data != NULL)
    err = disk_write (store->fd, ch->data + (from - ch->offset), to - from,
                      from);
  else
    err = disk_zero (store->fd, to - from, from,
                     ch->flags & NBDKIT_FLAG_MAY_TRIM ? DISK_PUNCH
                     : DISK_ALLOCATE, quick);
  atomic_store (&store->data_dirty, true);
  /* Who wants it quick or not at all is prepared for that. */
  if (err != 0 && !(quick && err == EOPNOTSUPP))
    store_report (store, "write", from, err);
  return err;
}

/* Is a part of this block, at an edge, to be written, and the block absent? */
static bool
is_needed (const struct store *store, const struct change *ch, uint64_t edge)
{
  return (edge < ch->whole_first || edge >= ch->whole_end) &&
    !map_has (store->map, edge, edge + 1);
}

/* The blocks at the edges, of which only a part is written, have to be present
 * for that.
 */
static int
fetch_edges (struct request *req, const struct change *ch)
{
  const struct store *const store = req->store;
  const uint64_t edges[2] = { ch->first, ch->end - 1 };
  int i, err = 0;

  for (i = 0; i < 2 && err == 0; ++i)
    if (is_needed (store, ch, edges[i]))
      err = ch->flags & NBDKIT_FLAG_FAST_ZERO
        ? EOPNOTSUPP : fetch_block (req, edges[i]);
  return err;
}

static int
write_local (struct request *req, const struct change *ch)
{
  struct store *const store = req->store;
  struct claim claim;
  int err = fetch_edges (req, ch);

  if (err != 0)
    return err;
  if (map_has (store->map, ch->first, ch->end))
    err = put (store, ch, ch->offset, ch->offset + ch->count);
  else {
    claims_begin_write (&store->claims, &claim, ch->whole_first, ch->whole_end,
                        false);
    err = put (store, ch, ch->offset, ch->offset + ch->count);
    if (err == 0)
      map_set (store->kept, ch->whole_first, ch->whole_end);
    claims_end (&store->claims, &claim);
  }
  store_note_change (store, ch->first, ch->end);
  return err;
}

/* -- clone-write=through --------------------------------------------------- */

static int
write_source (const struct request *req, const struct change *ch)
{
  nbdkit_next *const next = req->next;
  const uint32_t flags =
    ch->flags & ~(req->source->can_fua == NBDKIT_FUA_NONE
                  ? NBDKIT_FLAG_FUA : 0);
  int err = 0;

  if ((ch->data != NULL
       ? next->pwrite (next, ch->data, ch->count, ch->offset, flags, &err)
       : next->zero (next, ch->count, ch->offset, flags, &err)) == 0 &&
      (flags == ch->flags || !req->source->can_flush ||
       next->flush (next, 0, &err) == 0))
    return 0;
  return err != 0 ? err : EIO;
}

/* Put what of an edge is written into the file, if its block is present.  If it
 * isn't, it is left to be fetched: the source has it.
 */
static int
put_edge (struct store *store, const struct change *ch, uint64_t block)
{
  const uint64_t from = store_offset (store, block);
  const uint64_t to = store_offset (store, block + 1);
  const uint64_t end = ch->offset + ch->count;

  if ((block >= ch->whole_first && block < ch->whole_end) ||
      !map_has (store->map, block, block + 1))
    return 0;
  return put (store, ch, from > ch->offset ? from : ch->offset,
              to < end ? to : end);
}

/* Overlapping writes come one after the other, so that the source and the file
 * end up with the same one.
 */
static int
write_through (struct request *req, const struct change *ch)
{
  struct store *const store = req->store;
  const uint32_t unit = req->source->minimum;
  struct change here = *ch;
  struct claim claim;
  int err;

  /* What the source has done has to be done here too, quick or not. */
  here.flags &= ~NBDKIT_FLAG_FAST_ZERO;

  claims_begin_write (&store->claims, &claim, ch->first, ch->end, true);
  err = write_source (req, ch);
  if (err == 0) {
    err = put (store, &here, store_offset (store, ch->whole_first),
               store_offset (store, ch->whole_end));
    if (err == 0)
      err = put_edge (store, &here, ch->first);
    if (err == 0 && ch->end - 1 != ch->first)
      err = put_edge (store, &here, ch->end - 1);
    if (err == 0)
      map_set (store->kept, ch->whole_first, ch->whole_end);
    store_note_change (store, ch->first, ch->end);
  }
  /* What others read of the source meanwhile may be what was there before.
   * They read, and keep, whole units of what it wants.
   */
  claims_spoil (&store->claims, store_block (store, ch->offset / unit * unit),
                store_block_after (store, (ch->offset + ch->count + unit - 1)
                                   / unit * unit));
  claims_end (&store->claims, &claim);
  return err;
}

/* -------------------------------------------------------------------------- */

int
write_disk (struct request *req, const void *data, uint32_t count_,
            uint64_t offset, uint32_t flags)
{
  struct store *const store = req->store;
  const struct change ch = change_of (store, data, count_, offset, flags);
  int err;

  /* It could be gone at once, and a reader could tell. */
  if (atomic_load (&store->broken))
    return EIO;
  if (flags & NBDKIT_FLAG_FAST_ZERO && options.through && !req->source->can_fast_zero)
    return EOPNOTSUPP;
  map_note_write (store->kept);
  count (&store->counters, COUNT_WRITTEN_BYTES, count_);
  err = (options.through ? write_through : write_local) (req, &ch);
  if (err == 0 && flags & NBDKIT_FLAG_FUA)
    err = store_commit (store);
  /* The server dies of this error if it was not asked to be fast.  The source may
   * fail with it when an edge is read.
   */
  return err == EOPNOTSUPP && !(flags & NBDKIT_FLAG_FAST_ZERO) ? EIO : err;
}

int
write_flush (const struct request *req)
{
  int err = 0;

  if (options.through && req->source->can_flush &&
      req->next->flush (req->next, 0, &err) == -1)
    return err != 0 ? err : EIO;
  return store_commit (req->store);
}
