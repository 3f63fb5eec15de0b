/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* What a scan prefetches from: everything that calls the layer below.
 *
 * A source is either the connection's own context, which all scan threads use
 * at once (the PARALLEL thread model), or a context that one scan thread has
 * opened for itself.  Offsets and counts are checked here against the size,
 * because a bad one aborts the server.
 *
 * source_prefetch and source_pread may be called by several threads at once on
 * a source made by source_of; the rest is for one thread at a time.
 */

#ifndef SCAN_SOURCE_H
#define SCAN_SOURCE_H

#include <stdbool.h>
#include <stdint.h>

#include <nbdkit-filter.h>

#include "range.h"

struct source;

enum source_method {
  SOURCE_CACHE,                 /* prefetch by .cache */
  SOURCE_READ,                  /* prefetch by reading and throwing away */
};

/* What the layer below can do.  Asked once per context, at a moment when no
 * other thread is asking on the same one.
 */
struct source_info {
  uint64_t size;                /* bytes */
  uint32_t minimum;             /* bytes, a power of two up to 64K: what all calls are
                                   multiples of */
  bool can_cache;               /* .cache is native and comes back */
  bool can_extents;
};

/* Returns -1 if the layer below gave an error (and reported it). */
extern int source_ask (nbdkit_next *next, struct source_info *info);

/* Warn that .cache can't be used, and say what can. */
extern void source_warn_no_cache (void);

/* A source over the connection's own context, which must stay valid.  Returns
 * NULL with errno set if memory runs out.
 */
extern struct source *source_of (nbdkit_next *next,
                                 const struct source_info *info,
                                 enum source_method method);

/* Open a context of our own.  Returns NULL if that fails, after the layer
 * below has reported it.
 */
extern struct source *source_open (nbdkit_backend *backend,
                                   const char *export_name,
                                   enum source_method method);

/* Close what source_open opened.  NULL is allowed. */
extern void source_close (struct source *source);

extern const struct source_info *source_get_info (const struct source *source);

/* Prefetch this range.  scratch has room for the range if the method is
 * SOURCE_READ.  Returns 0 or an errno.
 */
extern int source_prefetch (struct source *source, struct range range,
                            void *scratch);

/* The last answer about extents.  A scan keeps one for all its sources; start
 * it with zeroes.
 */
struct source_extents {
  struct nbdkit_extents *list;  /* or NULL */
  struct range known;           /* what the list covers */
};

/* The first offset at or after this one that is not in a hole; the size if
 * only holes follow; the offset itself if that can't be known.  What was
 * learnt is used again as long as offsets go upwards.  A vast hole would take
 * many calls to the layer below; after some of them *more is set, and the
 * answer is how far that came.
 */
extern uint64_t source_next_data (struct source *source,
                                  struct source_extents *extents,
                                  uint64_t offset, bool *more);

/* Free what is kept. */
extern void source_forget_extents (struct source_extents *extents);

/* Read a range.  Returns 0 or an errno. */
extern int source_pread (struct source *source, struct range range, void *buf);

#endif /* SCAN_SOURCE_H */
