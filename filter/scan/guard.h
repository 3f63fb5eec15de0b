/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Keeps client writes and prefetches apart, where one may be lost.
 *
 * The cow filter reads a block from the source and then stores it in its
 * overlay; a client's write that lands in between is lost.  It does so when it
 * is read (scan-method=read) and when it is told to keep what is cached
 * (cow-on-cache=true).  Then a write, zero or trim waits for the prefetches in
 * flight that it overlaps, and a prefetch that overlaps a write in progress is
 * not done.  Client reads have no part in this.  Elsewhere there is nothing to
 * guard, and no write waits.
 *
 * There is one guard for the server, because the cow filter has one overlay for
 * all exports: what is written to one, scanned or not, is lost by a prefetch of
 * another.
 * What counts is whether both touch one block of the layer that keeps the data.
 * Where its blocks begin can't be known, for a filter in between may shift
 * offsets; so ranges that are less than a block apart count as overlapping.
 *
 * Any thread may call these functions.
 */

#ifndef SCAN_GUARD_H
#define SCAN_GUARD_H

#include <stdbool.h>

#include "range.h"

/* One write or prefetch in progress; lives on its thread's stack. */
struct guard_op {
  struct guard_op *next, **prev;
  struct range range;
  bool is_write;
};

/* There is something to guard: until then nobody waits or is turned away.  block is the
 * size of the blocks below, 0 if that is the cow filter's default.  At start-up only.
 */
extern void guard_enable (uint64_t block);

/* A client's write begins: waits for the prefetches that it overlaps. */
extern void guard_begin_write (struct guard_op *op, struct range range);

/* A prefetch begins.  Returns false if a write is in the way; then there is
 * nothing to end.
 */
extern bool guard_begin_prefetch (struct guard_op *op, struct range range);

/* Either has ended. */
extern void guard_end (struct guard_op *op);

#endif /* SCAN_GUARD_H */
