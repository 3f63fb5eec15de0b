/* Keeps client writes and prefetches apart.
 *
 * The cow filter reads a block from the source and then stores it in its
 * overlay; a client's write that lands in between is lost.  So a write, zero or
 * trim waits for the prefetches in flight that it overlaps, and a prefetch
 * that overlaps a write in progress is not done.  Client reads have no part in
 * this.
 *
 * There is one guard for the server, because several exports may be one disk.
 * Ranges are widened to whole blocks of the layer that keeps the data.
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

/* Widen ranges to multiples of this, a power of 2.  At start-up only. */
extern void guard_set_granule (uint64_t bytes);

/* A client's write begins: waits for the prefetches that it overlaps. */
extern void guard_begin_write (struct guard_op *op, struct range range);

/* A prefetch begins.  Returns false if a write is in the way; then there is
 * nothing to end.
 */
extern bool guard_begin_prefetch (struct guard_op *op, struct range range);

/* Either has ended. */
extern void guard_end (struct guard_op *op);

#endif /* SCAN_GUARD_H */
