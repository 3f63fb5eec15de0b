/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See layers.h. */

#include <inttypes.h>
#include <link.h>
#include <stdio.h>
#include <string.h>

#include <nbdkit-filter.h>

#include "layers.h"
#include "options.h"

/* The cache filter's default for cache-min-block-size. */
#define CACHE_BLOCK_SIZE 65536

struct search {
  char file_name[64];
  bool found;
};

/* True if one of the object's segments holds this address. */
static bool
holds (const struct dl_phdr_info *object, const void *address)
{
  const ElfW(Addr) a = (ElfW(Addr)) address;
  ElfW(Half) i;

  for (i = 0; i < object->dlpi_phnum; ++i) {
    const ElfW(Phdr) *segment = &object->dlpi_phdr[i];
    const ElfW(Addr) start = object->dlpi_addr + segment->p_vaddr;

    if (segment->p_type == PT_LOAD && a >= start &&
        a - start < segment->p_memsz)
      return true;
  }
  return false;
}

/* Called for each object in the order in which they were loaded, until it
 * returns something other than 0.
 */
static int
look_at (struct dl_phdr_info *object, size_t size, void *opaque)
{
  struct search *search = opaque;
  const char *slash = strrchr (object->dlpi_name, '/');

  if (holds (object, look_at))
    return 1;                   /* ourselves: the rest is above */
  if (slash && strcmp (slash + 1, search->file_name) == 0)
    search->found = true;
  return search->found;
}

/* Is nbdkit's filter (or plugin) of this name below us?  False if in doubt. */
static bool
is_below (const char *name, const char *type)
{
  struct search search = { .found = false };

  snprintf (search.file_name, sizeof search.file_name,
            "nbdkit-%s-%s.so", name, type);
  dl_iterate_phdr (look_at, &search);
  return search.found;
}

void
layers_advise (void)
{
  const bool cow = is_below ("cow", "filter");
  const bool cache = is_below ("cache", "filter");
  uint64_t cache_block = options.cache_min_block_size;

  if (options.threads > 1 && cache)
    nbdkit_error ("scan: warning: scan-threads=%u is of no use over the cache "
                  "filter, which does one thing at a time; to prefetch in "
                  "parallel, use --filter=cow cow-on-read=true "
                  "scan-method=read in its place", options.threads);
  else if (options.threads > 1 && cow && options.method == SOURCE_CACHE)
    nbdkit_error ("scan: warning: scan-threads=%u is of no use over the cow "
                  "filter, which does one prefetch at a time; to prefetch in "
                  "parallel, add cow-on-read=true scan-method=read",
                  options.threads);

  if (options.method == SOURCE_READ && (cow || cache) &&
      !(cow && options.cow_on_read) && !(cache && options.cache_on_read))
    nbdkit_error ("scan: warning: scan-method=read is of no use over the %s "
                  "filter, which does not keep what is read; add "
                  "%s-on-read=true", cow ? "cow" : "cache",
                  cow ? "cow" : "cache");

  /* Not a warning: this is how the stock filter is used, and over a fast
   * source it makes no difference.
   */
  if (cache_block == 0)
    cache_block = CACHE_BLOCK_SIZE;
  if (cache && options.method == SOURCE_CACHE && cache_block < options.size)
    nbdkit_debug ("scan: the cache filter fetches a block of scan-size=%" PRIu32
                  " in pieces of %" PRIu64 " bytes, one after the other; "
                  "cache-min-block-size=%" PRIu32 " fetches it at once",
                  options.size, cache_block, options.size);
}

bool
layers_cache_hangs (void)
{
  return is_below ("split", "plugin") && !is_below ("cache", "filter");
}
