/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See source.h. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "options.h"
#include "plugin.h"
#include "source.h"

/* The most that is asked of .extents at once: nearly all that a count can say,
 * for many layers answer no more than they are asked; a multiple of 32M, for
 * some want whole blocks.
 */
#define EXTENTS_MAX_COUNT (UINT32_MAX & ~UINT32_C (0x1ffffff))

/* A walk over a vast hole comes back after so many calls, or after the first
 * that ends later than this.
 */
#define WALK_CALLS 64
#define WALK_NS (NS_PER_SECOND / 100)

struct source {
  /* Immutable. */
  nbdkit_next *next;
  bool own;                     /* from source_open: prepared, must be closed */
  enum source_method method;
  struct source_info info;
};

/* Would a .cache never come back?  The split plugin's loops for ever, whoever asks (seen
 * with nbdkit 1.32.5), and a server with a scan in there can't be ended.
 * tests/upstream/split-cache-hang tells whether that is mended.
 *
 * The cache and clone filters read, and do not pass .cache on; one is between us and the
 * plugin if a parameter of its has passed by.
 */
static bool
cache_hangs (void)
{
  return strcmp (plugin_name (), "split") == 0 && !options.cache_below &&
    !options.clone_below;
}

int
source_ask (nbdkit_next *next, struct source_info *info)
{
  const int64_t size = next->get_size (next);
  uint32_t preferred, maximum;
  int r;

  if (size == -1)
    return -1;
  info->size = size;
  if (next->block_size (next, &info->minimum, &preferred, &maximum) == -1)
    return -1;
  if (info->minimum == 0)
    info->minimum = 1;
  r = next->can_cache (next);
  if (r == -1)
    return -1;
  info->can_cache = r == NBDKIT_CACHE_NATIVE && !cache_hangs ();
  r = next->can_extents (next);
  if (r == -1)
    return -1;
  info->can_extents = r == 1 && !plugin_extents_are_broken ();
  return 0;
}

void
source_warn_no_cache (void)
{
  if (cache_hangs ())
    nbdkit_error ("scan: warning: the .cache of the split plugin never comes "
                  "back, not scanning; add --filter=clone after this filter, "
                  "with clone-file=FILE");
  else
    nbdkit_error ("scan: warning: underlying plugin does not support "
                  "NBD_CMD_CACHE, not scanning; try adding --filter=clone "
                  "after this filter");
}

struct source *
source_of (nbdkit_next *next, const struct source_info *info,
           enum source_method method)
{
  struct source *source = calloc (1, sizeof *source);

  if (source == NULL)
    return NULL;
  source->next = next;
  source->info = *info;
  source->method = method;
  return source;
}

struct source *
source_open (nbdkit_backend *backend, const char *export_name,
             enum source_method method)
{
  struct source_info info;
  struct source *source;
  nbdkit_next *next;

  /* Read-only: a scan never writes.  Shared: this thread belongs to no
   * connection, and the server allows a connection one context only.
   */
  next = nbdkit_next_context_open (backend, 1, export_name, 1);
  if (next == NULL)
    return NULL;
  /* What is farther down may have been prepared before one failed. */
  if (next->prepare (next) == -1 ||
      source_ask (next, &info) == -1)
    goto error;
  source = source_of (next, &info, method);
  if (source == NULL) {
    nbdkit_error ("scan: %m");
    goto error;
  }
  source->own = true;
  return source;

 error:
  next->finalize (next);
  nbdkit_next_context_close (next);
  return NULL;
}

void
source_close (struct source *source)
{
  if (source == NULL)
    return;
  if (source->own) {
    source->next->finalize (source->next);
    nbdkit_next_context_close (source->next);
  }
  free (source);
}

const struct source_info *
source_get_info (const struct source *source)
{
  return &source->info;
}

/* True if this range can be passed to the layer below. */
static bool
is_valid (const struct source *source, struct range range)
{
  return range.count > 0 && range.count <= UINT32_MAX &&
    range.offset <= source->info.size &&
    range.count <= source->info.size - range.offset;
}

/* The errno of a call that has failed; some layers leave it at 0. */
static int
check_errno (int err)
{
  return err != 0 ? err : EIO;
}

int
source_prefetch (struct source *source, struct range range, void *scratch)
{
  nbdkit_next *next = source->next;
  int err = 0, r;

  if (!is_valid (source, range))
    return EINVAL;
  if (source->method == SOURCE_READ)
    r = next->pread (next, scratch, range.count, range.offset, 0, &err);
  else
    r = next->cache (next, range.count, range.offset, 0, &err);
  return r == -1 ? check_errno (err) : 0;
}

int
source_pread (struct source *source, struct range range, void *buf)
{
  nbdkit_next *next = source->next;
  int err = 0;

  if (!is_valid (source, range))
    return EINVAL;
  if (next->pread (next, buf, range.count, range.offset, 0, &err) == -1)
    return check_errno (err);
  return 0;
}

void
source_forget_extents (struct source_extents *extents)
{
  if (extents->list)
    nbdkit_extents_free (extents->list);
  extents->list = NULL;
}

/* Ask for the extents from this offset on.  The answer may reach further than
 * what was asked.  Returns -1 if there is none.
 */
static int
ask_extents (struct source *source, struct source_extents *extents,
             uint64_t offset)
{
  nbdkit_next *next = source->next;
  /* In whole blocks of the layer. */
  const uint64_t from = offset & ~(uint64_t) (source->info.minimum - 1);
  const uint64_t left = source->info.size - from;
  const uint32_t count = left < EXTENTS_MAX_COUNT ? left : EXTENTS_MAX_COUNT;
  struct nbdkit_extent last;
  int err = 0;
  size_t n;

  source_forget_extents (extents);
  extents->list = nbdkit_extents_new (from, source->info.size);
  if (extents->list == NULL)
    return -1;
  if (next->extents (next, count, from, 0, extents->list, &err) == 0 &&
      (n = nbdkit_extents_count (extents->list)) > 0) {
    last = nbdkit_get_extent (extents->list, n-1);
    extents->known.offset = from;
    extents->known.count = last.offset + last.length - from;
    if (range_end (extents->known) > offset)
      return 0;                 /* it may tell of less than one of its blocks */
  }
  source_forget_extents (extents);
  return -1;
}

/* The index of the extent that holds this offset, which is known. */
static size_t
find_extent (const struct nbdkit_extents *list, uint64_t offset)
{
  size_t low = 0, high = nbdkit_extents_count (list) - 1;

  while (low < high) {
    const size_t mid = low + (high - low) / 2;
    const struct nbdkit_extent e = nbdkit_get_extent (list, mid);

    if (e.offset + e.length <= offset)
      low = mid + 1;
    else
      high = mid;
  }
  return low;
}

uint64_t
source_next_data (struct source *source, struct source_extents *extents,
                  uint64_t offset, bool *more)
{
  const uint64_t until_ns = clock_now_ns () + WALK_NS;
  unsigned calls = 0;
  size_t i, n;

  *more = false;
  if (!source->info.can_extents)
    return offset;
  while (offset < source->info.size) {
    if (extents->list == NULL ||
        offset < extents->known.offset ||
        offset >= range_end (extents->known)) {
      if (calls == WALK_CALLS || (calls > 0 && clock_now_ns () > until_ns)) {
        *more = true;
        return offset;
      }
      calls++;
      if (ask_extents (source, extents, offset) == -1)
        return offset;
    }
    n = nbdkit_extents_count (extents->list);
    for (i = find_extent (extents->list, offset); i < n; ++i) {
      const struct nbdkit_extent e = nbdkit_get_extent (extents->list, i);

      if (!(e.type & NBDKIT_EXTENT_HOLE))
        return e.offset > offset ? e.offset : offset;
    }
    offset = range_end (extents->known);
  }
  return offset;
}
