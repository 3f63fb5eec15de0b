/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See layers.h. */

#include <inttypes.h>

#include <nbdkit-filter.h>

#include "layers.h"
#include "options.h"

/* The cache filter's default for cache-min-block-size. */
#define CACHE_BLOCK_SIZE 65536

static void
advise_of_threads (void)
{
  if (options.threads == 1)
    return;
  if (options.cache_below)
    nbdkit_error ("scan: warning: scan-threads=%u is of no use over the cache "
                  "filter, which does one thing at a time; to prefetch in "
                  "parallel, use --filter=clone in its place",
                  options.threads);
  else if (options.cow_below && options.method == SOURCE_CACHE)
    nbdkit_error ("scan: warning: scan-threads=%u is of no use over the cow "
                  "filter, which does one prefetch at a time; to prefetch in "
                  "parallel, use --filter=clone in its place, or add "
                  "cow-on-read=true scan-method=read",
                  options.threads);
}

/* This is also what comes of a scan filter below the cow filter. */
static void
advise_of_reading (void)
{
  if (options.method == SOURCE_CACHE ||
      options.cow_on_read || options.cache_on_read)
    return;
  if (options.clone_below)
    nbdkit_error ("scan: warning: scan-method=read makes writes wait and takes "
                  "memory, and the clone filter needs neither; leave it out");
  else
    nbdkit_error ("scan: warning: scan-method=read, and no cow-on-read=true or "
                  "cache-on-read=true for a filter below this one: what it "
                  "reads is kept only if the plugin keeps it, else all is read "
                  "twice; name --filter=scan first, then --filter=clone, and "
                  "leave scan-method=read out");
}

/* Not a warning: this is how the stock filter is used, and over a fast source it
 * makes no difference.
 */
static void
advise_of_pieces (void)
{
  const uint64_t piece = options.cache_min_block_size > 0
    ? options.cache_min_block_size : CACHE_BLOCK_SIZE;

  if (options.cache_below && options.method == SOURCE_CACHE &&
      piece < options.size)
    nbdkit_debug ("scan: the cache filter fetches a block of scan-size=%" PRIu32
                  " in pieces of %" PRIu64 " bytes, one after the other; "
                  "cache-min-block-size=%" PRIu32 " fetches it at once",
                  options.size, piece, options.size);
}

void
layers_advise (void)
{
  advise_of_threads ();
  advise_of_reading ();
  advise_of_pieces ();
}
