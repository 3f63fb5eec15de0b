/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See reads.h. */

#include <stdatomic.h>
#include <stdlib.h>

#include <pthread.h>

#include "cleanup.h"
#include "clock.h"
#include "reads.h"

/* A client of a fast source would wake its scan at each read, and that costs both
 * of them.  So a wait ends at least this long after the one before, and until then
 * nobody has to wake it.  Reads that are worth a prefetch take longer.
 */
#define WAKE_INTERVAL_NS (NS_PER_SECOND / 2000)

/* A read in the queue, in little room. */
struct entry {
  uint64_t offset;
  uint32_t count;
  uint8_t met;                  /* for map_met_again */
};

static uint64_t
entry_end (const struct entry *entry)
{
  return entry->offset + entry->count;
}

struct reads {
  struct reads_head head;       /* first: see reads_are_wanted; atomic */

  /* Leaf lock, for a few instructions. */
  pthread_mutex_t lock;
  pthread_cond_t cond;          /* something happened; with lock */

  /* Protected by lock; len and full_end may be looked at without it. */
  struct entry queue[READS_MAX];
  atomic_size_t len;
  _Atomic uint64_t full_end;    /* of the newest, when the queue was last full */

  atomic_uint lost;             /* that were left out, or made way */

  /* Decider only: when reads_wait last returned, and the value of events then. */
  uint64_t waited_ns;
  unsigned seen;

  /* Atomic.  Events counts what reads_wait waits for.  Waiting and events are
   * each written before the other is read (on the two sides), so that one side
   * always notices the other.
   */
  atomic_uint events;
  atomic_bool waiting;
  atomic_bool keep_time;        /* someone asks for idle times */
  atomic_uint in_flight;
  atomic_uint_fast64_t last_ns; /* when a read was last in flight */
};

struct reads *
reads_new (void)
{
  struct reads *reads = calloc (1, sizeof *reads);

  if (reads == NULL)
    return NULL;
  pthread_mutex_init (&reads->lock, NULL);
  clock_cond_init (&reads->cond);
  return reads;
}

void
reads_free (struct reads *reads)
{
  if (reads == NULL)
    return;
  pthread_cond_destroy (&reads->cond);
  pthread_mutex_destroy (&reads->lock);
  free (reads);
}

/* Not inlined, nor is what follows: it is rare, and would cost the usual path
 * registers.
 */
static void __attribute__ ((noinline))
wake (struct reads *reads)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&reads->lock);

  pthread_cond_signal (&reads->cond);
}

static void __attribute__ ((noinline))
note_time (struct reads *reads)
{
  atomic_store (&reads->last_ns, clock_now_ns ());
}

static void
note_event (struct reads *reads)
{
  atomic_fetch_add (&reads->events, 1);
  if (atomic_load (&reads->waiting))
    wake (reads);
}

/* Add a read to the queue. */
static void __attribute__ ((noinline))
add (struct reads *reads, struct entry entry)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&reads->lock);
  size_t len = atomic_load_explicit (&reads->len, memory_order_relaxed);

  if (len < READS_MAX) {
    reads->queue[len++] = entry;
    atomic_store_explicit (&reads->len, len, memory_order_relaxed);
  }
  else {
    atomic_fetch_add_explicit (&reads->lost, 1, memory_order_relaxed);
    if (entry_end (&reads->queue[READS_MAX-1]) < entry_end (&entry))
      reads->queue[READS_MAX-1] = entry;
  }
  if (len == READS_MAX)
    atomic_store_explicit (&reads->full_end,
                           entry_end (&reads->queue[READS_MAX-1]),
                           memory_order_relaxed);
}

uint8_t
reads_begin (struct reads *reads, struct map *map,
             uint64_t offset, uint32_t count)
{
  const uint8_t met = map_meet (map, offset, count);

  atomic_fetch_add (&reads->in_flight, 1);

  /* A full queue has no use for a read that ends before its newest: it is as if
   * it had come a moment earlier or later than what changes that meanwhile.
   */
  if (atomic_load_explicit (&reads->len, memory_order_relaxed) < READS_MAX ||
      atomic_load_explicit (&reads->full_end, memory_order_relaxed) <
      offset + count)
    add (reads, (struct entry) { offset, count, met });
  else
    atomic_fetch_add_explicit (&reads->lost, 1, memory_order_relaxed);
  note_event (reads);
  return met;
}

void
reads_end (struct reads *reads)
{
  if (atomic_load_explicit (&reads->keep_time, memory_order_relaxed))
    note_time (reads);
  atomic_fetch_sub (&reads->in_flight, 1);
  note_event (reads);
}

void
reads_stop (struct reads *reads)
{
  atomic_store (&reads->head.stopped, true);
}

/* The lock must be held. */
static size_t
copy_queue (struct reads *reads, struct met_read *out)
{
  const size_t len = atomic_load_explicit (&reads->len, memory_order_relaxed);
  const struct entry *entry;
  size_t i;

  for (i = 0; i < len; ++i) {
    entry = &reads->queue[i];
    *out++ = (struct met_read) {
      { entry->offset, entry->count }, map_met_again (entry->met)
    };
  }
  return len;
}

/* The common case.  A read that is being queued right now is seen next time, as
 * if it had come a moment later.
 */
static bool
is_empty (struct reads *reads)
{
  return atomic_load_explicit (&reads->len, memory_order_relaxed) == 0;
}

size_t
reads_take (struct reads *reads, struct met_read *out)
{
  if (is_empty (reads))
    return 0;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&reads->lock);
  const size_t n = copy_queue (reads, out);

  atomic_store_explicit (&reads->len, 0, memory_order_relaxed);
  return n;
}

unsigned
reads_take_lost (struct reads *reads)
{
  return atomic_exchange (&reads->lost, 0);
}

/* Wait for something new, or until this time. */
static void
wait_for_event (struct reads *reads, uint64_t deadline_ns)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&reads->lock);

  atomic_store (&reads->waiting, true);
  while (atomic_load (&reads->events) == reads->seen) {
    if (clock_wait_until (&reads->cond, &reads->lock, deadline_ns) != 0)
      break;
  }
  atomic_store (&reads->waiting, false);
}

void
reads_wait (struct reads *reads, uint64_t deadline_ns)
{
  const uint64_t rested_ns = reads->waited_ns + WAKE_INTERVAL_NS;

  clock_sleep_until (rested_ns < deadline_ns ? rested_ns : deadline_ns);
  wait_for_event (reads, deadline_ns);
  reads->seen = atomic_load (&reads->events);
  reads->waited_ns = clock_now_ns ();
}

void
reads_wake (struct reads *reads)
{
  note_event (reads);
}

unsigned
reads_in_flight (struct reads *reads)
{
  return atomic_load (&reads->in_flight);
}

uint64_t
reads_idle_ns (struct reads *reads)
{
  uint64_t now, last;

  if (!atomic_exchange (&reads->keep_time, true))
    atomic_store (&reads->last_ns, clock_now_ns ());
  if (atomic_load (&reads->in_flight) > 0)
    return 0;
  now = clock_now_ns ();
  last = atomic_load (&reads->last_ns);
  return now > last ? now - last : 1;   /* 0 says that one is in flight */
}

bool
reads_are_many (struct reads *reads)
{
  return atomic_load_explicit (&reads->len, memory_order_relaxed) >=
    READS_MAX / 2;
}
