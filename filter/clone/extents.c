/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See extents.h. */

#include <errno.h>

#include "cleanup.h"
#include "disk.h"
#include "extents.h"

/* How far ahead to ask for extents: a scan asks once for many pieces. */
#define ASK_BYTES (UINT64_C (64) << 20)

/* Ask the source for its extents; the list is of just this range.  The holes are
 * present afterwards.
 */
static int
ask_source (const struct request *req, uint32_t count_, uint64_t offset,
            struct nbdkit_extents *extents, int *err)
{
  struct store *const store = req->store;
  const uint32_t unit = req->source->minimum;
  /* Widened to what the source wants; what is too much the server cuts off. */
  const uint64_t lo = offset / unit * unit;
  const uint64_t most = lo + UINT32_MAX / unit * unit;
  const uint64_t hi = min64 ((offset + count_ + unit - 1) / unit * unit,
                             min64 (store->size, most));
  struct nbdkit_extent e;
  struct claim claim;
  size_t i;
  int r;

  claims_begin_ask (&store->claims, &claim, store_block (store, offset),
                    store_block_after (store, offset + count_));
  r = req->next->extents (req->next, hi - lo, lo, 0, extents, err);
  for (i = 0; r == 0 && i < nbdkit_extents_count (extents); ++i) {
    e = nbdkit_get_extent (extents, i);
    if (e.type & NBDKIT_EXTENT_ZERO)
      store_keep (store, &claim, NULL, e.offset, e.length, false);
  }
  claims_end (&store->claims, &claim);
  return r;
}

void
extents_learn (const struct request *req, uint64_t first, uint64_t end)
{
  struct store *const store = req->store;
  const uint64_t from = store_offset (store, first);
  const uint64_t to = store_offset (store, end);
  /* What a count can say; the blocks of the largest prefetch are more. */
  const uint64_t most = UINT32_MAX / store->block_size * store->block_size;
  struct nbdkit_extents *extents;
  uint32_t ask;
  size_t n;
  int err;

  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&store->asked_lock);

    ask = from >= store->asked_from && to <= store->asked_to ? 0
      : min64 (min64 (max64 (to - from, ASK_BYTES), most), store->size - from);
  }
  if (ask == 0)
    return;

  extents = nbdkit_extents_new (from, from + ask);
  if (extents == NULL)
    return;
  /* A failure only means that holes are fetched like data. */
  if (ask_source (req, ask, from, extents, &err) == 0 &&
      (n = nbdkit_extents_count (extents)) > 0) {
    const struct nbdkit_extent last = nbdkit_get_extent (extents, n - 1);
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&store->asked_lock);

    store->asked_from = from;
    store->asked_to = last.offset + last.length;
  }
  nbdkit_extents_free (extents);
}

/* -- what clients are told ------------------------------------------------- */

/* Of what is present: where the clone's file has data. */
static int
add_present (const struct store *store, uint64_t offset, uint64_t end,
             bool one, struct nbdkit_extents *extents)
{
  uint64_t stop;
  bool is_hole;

  for (; offset < end; offset = stop) {
    stop = disk_extent (store->fd, offset, end, &is_hole);
    if (nbdkit_add_extent (extents, offset, stop - offset,
                           is_hole ? NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO
                           : 0) == -1)
      return -1;
    if (one)
      break;
  }
  return 0;
}

/* What the source has said in the course of one question. */
struct answer {
  bool is_asked;
  struct nbdkit_extents *list;  /* NULL: nothing */
  size_t next;                  /* those before this one are done with */
  uint64_t end;                 /* how far it goes */
};

/* Ask from offset to end, once. */
static void
ask_for_answer (const struct request *req, uint64_t offset, uint64_t end,
                struct answer *answer)
{
  struct nbdkit_extents *list;
  struct nbdkit_extent last;
  size_t n;
  int err;

  answer->is_asked = true;
  list = nbdkit_extents_new (offset, end);
  if (list == NULL)
    return;
  if (ask_source (req, end - offset, offset, list, &err) == -1 ||
      (n = nbdkit_extents_count (list)) == 0) {
    nbdkit_extents_free (list);
    return;
  }
  last = nbdkit_get_extent (list, n - 1);
  answer->end = last.offset + last.length;
  answer->list = list;
}

/* Of what is absent: what the source says, and data if it says nothing, or fails: that is
 * true of anything, and the client wants to know of what is present, too.  *to is how far
 * that goes.  What has to be asked is asked up to `ahead`, as more that is absent may
 * follow what is present.
 */
static int
add_absent (const struct request *req, uint64_t offset, uint64_t *to,
            uint64_t ahead, struct answer *answer, struct nbdkit_extents *extents)
{
  struct nbdkit_extent e;
  uint64_t end;

  if (req->source->can_extents && !answer->is_asked)
    ask_for_answer (req, offset, ahead, answer);
  if (answer->list == NULL)
    return nbdkit_add_extent (extents, offset, *to - offset, 0);
  *to = min64 (*to, answer->end);
  while (offset < *to) {
    e = nbdkit_get_extent (answer->list, answer->next);
    end = min64 (e.offset + e.length, *to);
    if (end > offset) {
      if (nbdkit_add_extent (extents, offset, end - offset, e.type) == -1)
        return -1;
      offset = end;
    }
    if (end == e.offset + e.length)
      answer->next++;
  }
  return 0;
}

int
extents_tell (const struct request *req, uint32_t count_, uint64_t offset,
              bool one, struct nbdkit_extents *extents, int *err)
{
  const struct store *const store = req->store;
  /* One for all: if it is found out meanwhile that a sync has failed, what a client has
   * written is absent in the other.
   */
  const struct map *const map = store->map;
  const uint64_t end = offset + count_;
  const uint64_t first_block = store_block (store, offset);
  const uint64_t end_block = store_block_after (store, end);
  const bool is_lost = store_is_lost (store, first_block, end_block);
  struct answer answer = { 0 };
  uint64_t block, stop, to;
  int r = 0;

  /* What can't be read must not be taken for a hole. */
  if (is_lost) {
    r = nbdkit_add_extent (extents, offset, count_, 0);
    offset = end;
  }
  for (; r == 0 && offset < end; offset = to) {
    block = store_block (store, offset);
    stop = map_find (map, block, end_block, false);
    if (stop > block) {
      to = min64 (store_offset (store, stop), end);
      r = add_present (store, offset, to, one, extents);
    }
    /* One question for one: where the layer below answers little at a time, much of
     * the disk would take long, and a client goes on from what it was told.
     */
    else if (answer.list != NULL && offset >= answer.end)
      break;
    else {
      stop = map_find (map, block, end_block, true);
      to = min64 (store_offset (store, stop), end);
      r = add_absent (req, offset, &to, one ? to : end, &answer, extents);
    }
    if (one)
      break;
  }
  /* The file may have had a hole by now; what was told can't be taken back. */
  if (r == 0 && !is_lost && store_is_lost (store, first_block, end_block)) {
    errno = EIO;
    r = -1;
  }
  if (r == -1)
    *err = errno != 0 ? errno : EIO;
  nbdkit_extents_free (answer.list);
  return r;
}
