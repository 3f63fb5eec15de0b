/* See guard.h. */

#include <stddef.h>

#include <pthread.h>

#include "guard.h"

/* The cow filter's default block size. */
static uint64_t granule = 65536;

/* Leaf lock; guards the list and all that is on it. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t prefetch_ended = PTHREAD_COND_INITIALIZER;
static struct guard_op *ops;

void
guard_set_granule (uint64_t bytes)
{
  granule = bytes;
}

static struct range
widen (struct range range)
{
  const uint64_t start = range.offset & ~(granule - 1);
  const uint64_t end = (range_end (range) + granule - 1) & ~(granule - 1);

  return (struct range) { start, end - start };
}

static bool
is_in_way (const struct guard_op *op, bool is_write)
{
  const struct guard_op *other;

  for (other = ops; other != NULL; other = other->next)
    if (other->is_write == is_write &&
        range_overlaps (other->range, op->range))
      return true;
  return false;
}

static void
add (struct guard_op *op, struct range range, bool is_write)
{
  op->range = widen (range);
  op->is_write = is_write;
  op->next = ops;
  op->prev = &ops;
  if (ops)
    ops->prev = &op->next;
  ops = op;
}

void
guard_begin_write (struct guard_op *op, struct range range)
{
  pthread_mutex_lock (&lock);
  /* It is on the list while it waits, so that no new prefetch can start. */
  add (op, range, true);
  while (is_in_way (op, false))
    pthread_cond_wait (&prefetch_ended, &lock);
  pthread_mutex_unlock (&lock);
}

bool
guard_begin_prefetch (struct guard_op *op, struct range range)
{
  bool ok;

  op->range = widen (range);
  pthread_mutex_lock (&lock);
  ok = !is_in_way (op, true);
  if (ok)
    add (op, range, false);
  pthread_mutex_unlock (&lock);
  return ok;
}

void
guard_end (struct guard_op *op)
{
  pthread_mutex_lock (&lock);
  *op->prev = op->next;
  if (op->next)
    op->next->prev = op->prev;
  if (!op->is_write)
    pthread_cond_broadcast (&prefetch_ended);
  pthread_mutex_unlock (&lock);
}
