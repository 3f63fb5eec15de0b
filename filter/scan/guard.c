/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See guard.h. */

#include <inttypes.h>
#include <stddef.h>

#include <pthread.h>

#include <nbdkit-filter.h>

#include "cleanup.h"
#include "guard.h"

/* The cow filter's default. */
#define DEFAULT_BLOCK 65536

/* Of the blocks below; 0: there is nothing to guard.  Written at start-up only. */
static uint64_t block;

/* Leaf lock; guards the list and all that is on it. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t prefetch_ended = PTHREAD_COND_INITIALIZER;
static struct guard_op *ops;

void
guard_enable (uint64_t bytes)
{
  block = bytes > 0 ? bytes : DEFAULT_BLOCK;
}

/* Every byte that can be in one block with a byte of the range.  Ranges end
 * below 2^63, so there is room for a block above.
 */
static struct range
widen (struct range range)
{
  const uint64_t reach = block - 1;
  const uint64_t start = range.offset > reach ? range.offset - reach : 0;

  return (struct range) { start, range_end (range) + reach - start };
}

static bool
is_in_way (struct range range, bool is_write)
{
  const struct range touched = widen (range);
  const struct guard_op *other;

  for (other = ops; other != NULL; other = other->next)
    if (other->is_write == is_write && range_overlaps (other->range, touched))
      return true;
  return false;
}

static void
add (struct guard_op *op, struct range range, bool is_write)
{
  op->range = range;
  op->is_write = is_write;
  op->next = ops;
  op->prev = &ops;
  if (ops)
    ops->prev = &op->next;
  ops = op;
}

/* Put a write on the list, where it is while it waits, so that no new prefetch
 * can start.  Returns whether it has to wait.
 */
static bool
announce_write (struct guard_op *op, struct range range)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lock);

  add (op, range, true);
  return is_in_way (range, false);
}

static void
wait_for_prefetches (struct range range)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lock);

  while (is_in_way (range, false))
    pthread_cond_wait (&prefetch_ended, &lock);
}

void
guard_begin_write (struct guard_op *op, struct range range)
{
  if (block == 0)
    return;
  if (!announce_write (op, range))
    return;
  nbdkit_debug ("scan: a write at offset %" PRIu64 " waits for a prefetch",
                range.offset);
  wait_for_prefetches (range);
}

bool
guard_begin_prefetch (struct guard_op *op, struct range range)
{
  if (block == 0)
    return true;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lock);

  if (is_in_way (range, true))
    return false;
  add (op, range, false);
  return true;
}

void
guard_end (struct guard_op *op)
{
  if (block == 0)
    return;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lock);

  *op->prev = op->next;
  if (op->next)
    op->next->prev = op->prev;
  if (!op->is_write)
    pthread_cond_broadcast (&prefetch_ended);
}
