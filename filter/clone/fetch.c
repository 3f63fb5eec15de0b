/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See fetch.h.
 *
 * A request goes over its blocks once, from file or plugin, and passes by what
 * others have in flight.  For that it waits afterwards, then goes over it a
 * second time, joining nobody: so a fetch that fails is tried again by each who
 * had joined it, side by side, and nobody waits twice.
 *
 * A read of the source that asked for more than had to be may have failed for that:
 * what it was of is gone over again *exactly*, with no read of what isn't needed, be
 * it the rest of a block, which is not kept then.  So a failure costs one read more at
 * the most.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "clock.h"
#include "disk.h"
#include "extents.h"
#include "fetch.h"
#include "opening.h"
#include "options.h"
#include "range.h"

/* A read joins another of up to this many bytes, or as many as its own.  It may
 * wait for that much more to arrive than it asked for: at 100 Mbit/s a round
 * trip's worth.  A larger one, such as a prefetch of 2M, it joins only if that
 * should be there as soon as its own would, and waits no longer; else it reads for
 * itself.
 */
#define JOIN_BYTES (256 * 1024)

/* Blocks that are present between two absent ones are read again, if they are
 * no more than this, rather than asking twice: at 100 Mbit/s that is 5 ms.
 */
#define GAP_BYTES (64 * 1024)

/* How often a prefetch is made, if what it brings is out of date each time. */
#define CACHE_ROUNDS 4

/* -D clone.joins=1: a line for each request that waits for somebody else's fetch. */
NBDKIT_DLL_PUBLIC int clone_debug_joins;

struct walk {
  struct request *req;
  enum { WALK_READ, WALK_CACHE, WALK_KEEP } purpose;
  char *buf;                    /* WALK_READ: for the client */
  uint64_t offset, count;       /* bytes that the client wants */
  struct join join;

  /* What was passed by; first == end: nothing. */
  uint64_t joined_first, joined_end;
  uint64_t joined_number;       /* of the last of these claims */
  bool fetched;
  int source_err;               /* of the last read of the source, or 0 */
  int keep_err;                 /* why something was not kept, or 0 */
};

/* Give the client what the file has of these blocks, if it wants any of that. */
static int
read_present (const struct walk *w, uint64_t first, uint64_t end)
{
  const struct store *store = w->req->store;
  const uint64_t lo = max64 (store_offset (store, first), w->offset);
  const uint64_t hi = min64 (store_offset (store, end), w->offset + w->count);
  int err;

  if (w->purpose != WALK_READ || lo >= hi)
    return 0;
  err = disk_read (store->fd, w->buf + (lo - w->offset), hi - lo, lo);
  if (err != 0)
    store_report (store, "read", lo, err);
  return err;
}

/* The most that one read of the source asks for, in units that it takes. */
static uint32_t
most_of_source (const struct walk *w)
{
  const struct source *const source = w->req->source;

  return max64 (min64 (source->maximum, options.fetch_size)
                / source->minimum * source->minimum, source->minimum);
}

/* From an absent block on, how far to read in one go: over gaps of this many bytes,
 * and to the last absent block that fits.
 */
static uint64_t
end_of_run (const struct walk *w, uint64_t first, uint64_t end, uint32_t gap_bytes)
{
  const struct store *store = w->req->store;
  const struct source *const source = w->req->source;
  /* Where it may end, as it is widened to what the source wants. */
  const uint64_t limit = store_offset (store, first)
    / source->minimum * source->minimum + most_of_source (w);
  const uint64_t gap = gap_bytes / store->block_size;
  uint64_t stop = first, next;

  end = min64 (end, max64 (store_block (store, limit), first + 1));
  do {
    stop = map_find (store->map, stop, end, true);
    next = map_find (store->map, stop, end, false);
    if (next == end || next - stop > gap)
      break;
    stop = next;
  } while (stop < end);
  return stop;
}

/* Where there is data in the clone already it is that which counts for the client. */
static int
overlay_present (const struct walk *w, struct range range)
{
  const struct store *const store = w->req->store;
  const uint64_t end = store_block_after (store, range_end (range));
  uint64_t first = store_block (store, range.offset), stop;
  int err = 0;

  for (; err == 0 && (first = map_find (store->map, first, end, true)) < end;
       first = stop) {
    stop = map_find (store->map, first, end, false);
    err = read_present (w, first, stop);
  }
  return err;
}

/* Read the source, and nothing else: at once, unless one block is more than that, as a
 * clone's may be that was made with others.  Returns an errno.
 */
static int
read_source (const struct walk *w, char *data, uint64_t offset, uint64_t bytes)
{
  struct store *store = w->req->store;
  const uint32_t most = most_of_source (w);
  uint32_t n;
  int err;

  for (; bytes > 0; bytes -= n, offset += n, data += n) {
    n = min64 (bytes, most);
    err = 0;
    if (w->req->next->pread (w->req->next, data, n, offset, 0, &err) == -1) {
      count (&store->counters, COUNT_FETCH_FAILURES, 1);
      return err != 0 ? err : EIO;
    }
    count (&store->counters, COUNT_FETCHES, 1);
    count (&store->counters, COUNT_FETCHED_BYTES, n);
  }
  return 0;
}

/* What is read of the source for these blocks; exactly: of what a client wants of them.
 * The source may want requests in larger units.
 */
static struct range
bytes_to_read (const struct walk *w, uint64_t first, uint64_t end, bool exact)
{
  const struct store *const store = w->req->store;
  const uint32_t unit = w->req->source->minimum;
  uint64_t lo = store_offset (store, first), hi = store_offset (store, end);

  if (exact && w->purpose == WALK_READ) {
    lo = max64 (lo, w->offset);
    hi = min64 (hi, w->offset + w->count);
  }
  lo = lo / unit * unit;
  hi = min64 ((hi + unit - 1) / unit * unit, store->size);
  return (struct range) { lo, hi - lo };
}

/* Can this error be one of the place that was read?  Where the source is out of reach,
 * another read is only one more to wait for.
 */
static bool
is_of_a_place (int err)
{
  switch (err) {
  case ESHUTDOWN:
  case ENOTCONN:
  case EPIPE:
  case ETIMEDOUT:
  case ECONNREFUSED:
  case ECONNRESET:
  case ECONNABORTED:
  case ENETDOWN:
  case ENETUNREACH:
  case EHOSTDOWN:
  case EHOSTUNREACH:
    return false;
  default:
    return true;
  }
}

/* A read of the source for these blocks has failed.  Would it be asked for less if they
 * were gone over exactly?  So it is, too, if somebody has written there meanwhile.
 */
static bool
may_do_with_less (const struct walk *w, uint64_t first, uint64_t end)
{
  const uint64_t stop = end_of_run (w, first, end, 0);

  return is_of_a_place (w->source_err) &&
    (stop == first || bytes_to_read (w, first, stop, true).count
     < bytes_to_read (w, first, end, false).count);
}

/* Where the client's buffer has all of this; NULL if it hasn't. */
static char *
place_in_buffer (const struct walk *w, struct range range)
{
  return w->purpose == WALK_READ && range.offset >= w->offset &&
    range_end (range) <= w->offset + w->count
    ? w->buf + (range.offset - w->offset) : NULL;
}

static void
copy_to_buffer (const struct walk *w, const char *data, struct range range)
{
  const uint64_t from = max64 (range.offset, w->offset);
  const uint64_t to = min64 (range_end (range), w->offset + w->count);

  memcpy (w->buf + (from - w->offset), data + (from - range.offset), to - from);
}

/* Fetch the blocks of a claim, give the client its part and keep those that are whole.
 */
static int
fetch_claimed (struct walk *w, const struct claim *claim, bool exact)
{
  struct store *const store = w->req->store;
  struct range range = bytes_to_read (w, claim->first, claim->end, exact);
  CLEANUP_FREE char *bounce = NULL;
  char *data = place_in_buffer (w, range);
  int err;

  w->fetched = true;
  w->source_err = 0;
  if (data == NULL) {
    data = bounce = malloc (range.count);
    if (data == NULL) {
      range = bytes_to_read (w, claim->first, claim->end, true);
      data = place_in_buffer (w, range);
    }
    if (data == NULL) {
      nbdkit_error ("clone: malloc: %m");
      return ENOMEM;
    }
  }

  err = w->source_err = read_source (w, data, range.offset, range.count);
  if (err != 0)
    return err;
  if (w->purpose == WALK_READ) {
    if (bounce != NULL)
      copy_to_buffer (w, data, range);
    err = overlay_present (w, range);
    if (err != 0)
      return err;
  }
  err = store_keep (store, claim, data, range.offset, range.count,
                    w->purpose == WALK_KEEP);
  if (err != 0)
    w->keep_err = err;
  return 0;
}

/* Claim to fetch a run of blocks; *stop is moved to where the claim ends.  Nobody joins
 * one that is gone over exactly, as some of it may not be kept.
 */
static enum claim_result
begin_run (const struct walk *w, struct claim *claim, uint64_t first, uint64_t *stop,
           bool exact)
{
  struct claims *const claims = &w->req->store->claims;

  if (!exact)
    return claims_begin_read (claims, claim, first, stop, w->join, clock_now_ns ());
  if (*stop == first)
    return CLAIM_PRESENT;
  claims_begin_ask (claims, claim, first, *stop);
  return CLAIM_MADE;
}

/* Why a prefetch is of no use, or 0.  A scan knows ENOSPC: a quota, and a limit for the
 * size of files, are no different for it.
 */
static int
why_not_kept (const struct walk *w)
{
  return w->keep_err == EDQUOT || w->keep_err == EFBIG ? ENOSPC : w->keep_err;
}

/* Something is absent, and the source may have been away when the client came.  Returns an
 * errno if it still is.
 */
static int
need_source (struct request *req)
{
  const struct below *below;

  if (req->next != NULL)
    return 0;
  below = req->opening != NULL ? opening_get (req->opening) : NULL;
  if (below == NULL) {
    count (&req->store->counters, COUNT_FETCH_FAILURES, 1);
    return EIO;
  }
  req->next = below->next;
  req->source = &below->source;
  return 0;
}

/* Once over these blocks.  Returns an errno. */
static int
walk_once (struct walk *w, uint64_t first, uint64_t end)
{
  struct store *const store = w->req->store;
  uint64_t exact_end = first;   /* the blocks before it are gone over exactly */
  struct claim claim;
  uint64_t stop;
  bool exact;
  int err;

  for (; first < end; first = stop) {
    stop = map_find (store->map, first, end, false);
    if (stop > first) {
      err = read_present (w, first, stop);
      if (err != 0)
        return err;
      continue;
    }
    err = need_source (w->req);
    if (err != 0)
      return err;
    exact = first < exact_end;
    stop = exact ? end_of_run (w, first, exact_end, 0)
      : end_of_run (w, first, end, GAP_BYTES);
    /* Who only wants it kept has no use for it otherwise. */
    if (w->purpose == WALK_CACHE &&
        !store_has_room (store, bytes_to_read (w, first, stop, exact).count))
      return ENOSPC;
    switch (begin_run (w, &claim, first, &stop, exact)) {
    case CLAIM_MADE:
      err = fetch_claimed (w, &claim, exact);
      if (err == 0 && !exact)
        claims_end_read (&store->claims, &claim, clock_now_ns ());
      else
        claims_end (&store->claims, &claim);
      if (w->source_err != 0 && !exact && may_do_with_less (w, first, stop)) {
        exact_end = stop;
        stop = first;
        break;
      }
      if (err == 0 && w->purpose == WALK_CACHE)
        err = why_not_kept (w);
      if (err != 0)
        return err;
      break;
    case CLAIM_PRESENT:
      stop = first;
      break;
    case CLAIM_JOIN:
      if (w->joined_first == w->joined_end)
        w->joined_first = first;
      w->joined_end = stop;
      w->joined_number = max64 (w->joined_number, claim.number);
      break;
    }
  }
  return 0;
}

/* Go over the blocks of a walk, joining others where that is no slower. */
static int
walk_blocks (struct walk *w, uint64_t first, uint64_t end)
{
  struct store *const store = w->req->store;
  int err;

  err = walk_once (w, first, end);
  if (err != 0 || w->joined_first == w->joined_end)
    return err;
  count (&store->counters, COUNT_JOINS, 1);
  if (clone_debug_joins)
    nbdkit_debug ("clone: blocks %" PRIu64 " to %" PRIu64 ": waiting for a "
                  "fetch in flight", w->joined_first, w->joined_end);
  /* Only for those that there were: who tries again after a failure is not
   * waited for in turn.
   */
  claims_join (&store->claims, w->joined_first, w->joined_end, w->join,
               w->joined_number, clock_now_ns ());
  w->join = (struct join) { 0 };
  return walk_once (w, w->joined_first, w->joined_end);
}

static struct join
whom_to_join (const struct store *store, uint64_t blocks)
{
  return (struct join) {
    .blocks = max64 (JOIN_BYTES / store->block_size, blocks), .own = blocks,
  };
}

int
fetch_read (struct request *req, void *buf, uint32_t count_, uint64_t offset)
{
  struct store *const store = req->store;
  const uint64_t first = store_block (store, offset);
  const uint64_t end = store_block_after (store, offset + count_);
  struct walk w = {
    .req = req, .purpose = WALK_READ, .buf = buf,
    .offset = offset, .count = count_,
    .join = whom_to_join (store, end - first),
  };
  int r;

  if (store_is_lost (store, first, end))
    return EIO;
  if (map_has (store->map, first, end)) {
    count (&store->counters, COUNT_HITS, 1);
    r = read_present (&w, first, end);
  }
  else
    r = walk_blocks (&w, first, end);
  /* If it was found out meanwhile, what a client has written may have been taken for
   * absent, and what the source has for that.
   */
  if (r == 0 && store_is_lost (store, first, end))
    r = EIO;
  if (w.fetched)
    count (&store->counters, COUNT_MISSES, 1);
  return r;
}

int
fetch_block (struct request *req, uint64_t block)
{
  struct store *const store = req->store;
  int r;

  while (!map_has (store->map, block, block + 1)) {
    struct walk w = {
      .req = req, .purpose = WALK_KEEP,
      .join = whom_to_join (store, 1),
    };

    r = walk_blocks (&w, block, block + 1);
    if (r == 0 && w.keep_err != 0) {
      r = w.keep_err;
      store_report (store, "write", store_offset (store, block), r);
    }
    if (r != 0)
      return r;
    /* If it could not be stored, as somebody writes it, it will be there once
     * they have.
     */
    claims_settle (&store->claims, block, CLOCK_NEVER);
  }
  return 0;
}

/* The first block that is absent, and that nobody is about to store or write, unless they
 * hang.
 */
static uint64_t
find_left_out (struct store *store, uint64_t first, uint64_t end)
{
  const uint64_t deadline_ns = clock_now_ns () + CLAIMS_HANGS_NS;

  while ((first = map_find (store->map, first, end, false)) < end) {
    claims_settle (&store->claims, first, deadline_ns);
    if (!map_has (store->map, first, first + 1))
      break;
  }
  return first;
}

int
fetch_cache (struct request *req, uint32_t count_, uint64_t offset)
{
  struct store *const store = req->store;
  const uint64_t end = store_block_after (store, offset + count_);
  uint64_t first = map_find (store->map, store_block (store, offset), end, false);
  unsigned round;
  int r = 0;

  if (first == end)
    return 0;
  if (atomic_load (&store->broken))
    return EIO;
  r = need_source (req);
  if (r == 0 && req->source->can_extents)
    extents_learn (req, first, end);
  /* With clone-write=through what is written while it is being fetched is not kept. */
  for (round = 0; r == 0 && first < end; ++round) {
    struct walk w = {
      .req = req, .purpose = WALK_CACHE, .join = { .blocks = UINT64_MAX },
    };

    r = round < CACHE_ROUNDS ? walk_blocks (&w, first, end) : EIO;
    if (r == 0)
      first = find_left_out (store, first, end);
  }
  return r;
}
