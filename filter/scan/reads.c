/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See reads.h. */

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

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
  uint8_t met;                  /* for map_met_again, or FAILED */
  atomic_uchar lap;             /* lap_of its place, once it has been filled in */
};

/* In place of what a read met, which has other flags: that it has failed. */
#define FAILED 128

/* Places in the ring; the READS_MAXth entry is the newest, which may change. */
#define RING_MAX (READS_MAX - 1)

struct reads {
  struct reads_head head;       /* first: see reads_are_wanted; atomic */

  /* The queue.  Who adds takes the place at the end, fills in the entry, and sets
   * its lap; who takes stops where that is not done, for the next time.  Neither
   * waits for the other.
   */
  struct entry ring[READS_MAX];
  atomic_uint first, end;       /* places of the oldest, and after the youngest */

  /* Leaf lock, for a few instructions, when the ring is full, and to wait. */
  pthread_mutex_t lock;
  pthread_cond_t cond;          /* something happened; with lock */

  /* When the ring is full.  Protected by lock; newest_end may be looked at without
   * it.
   */
  struct entry newest;
  unsigned after;               /* what is before this place is older */
  _Atomic uint64_t newest_end;  /* 0: there is none */

  atomic_uint lost;             /* that were left out, or made way */

  /* Atomic.  Events counts what reads_wait waits for.  Waiting and events are
   * each written before the other is read (on the two sides), so that one side
   * always notices the other.
   */
  atomic_uint events;
  atomic_uint waiting;          /* threads in reads_wait */
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

  pthread_cond_broadcast (&reads->cond);
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

/* What an entry's lap is if it is the one at this place, and not the one that was
 * there before it.
 */
static uint8_t
lap_of (unsigned place)
{
  return place / READS_MAX + 1;
}

/* Take the next place in the ring.  Returns false if it is full. */
static bool
take_place (struct reads *reads, unsigned *place)
{
  *place = atomic_load_explicit (&reads->end, memory_order_relaxed);
  do {
    /* Signed, as what was loaded may be long past. */
    if ((int) (*place - atomic_load_explicit (&reads->first,
                                              memory_order_acquire)) >= RING_MAX)
      return false;
  } while (!atomic_compare_exchange_weak_explicit (&reads->end, place, *place + 1,
                                                   memory_order_relaxed,
                                                   memory_order_relaxed));
  return true;
}

/* Add a read where there was no room for more: it becomes the newest if it ends
 * further.
 */
static void __attribute__ ((noinline))
add_to_full (struct reads *reads, struct entry entry)
{
  const uint64_t end = entry.offset + entry.count;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&reads->lock);
  const uint64_t newest_end = atomic_load_explicit (&reads->newest_end,
                                                    memory_order_relaxed);

  if (newest_end != 0)
    atomic_fetch_add_explicit (&reads->lost, 1, memory_order_relaxed);
  if (end > newest_end) {
    reads->newest = entry;
    reads->after = atomic_load_explicit (&reads->end, memory_order_relaxed);
    atomic_store_explicit (&reads->newest_end, end, memory_order_relaxed);
  }
}

/* Returns false if the ring is full. */
static inline bool
add_to_ring (struct reads *reads, uint64_t offset, uint32_t count, uint8_t met)
{
  struct entry *entry;
  unsigned place;

  if (!take_place (reads, &place))
    return false;
  entry = &reads->ring[place % READS_MAX];
  entry->offset = offset;
  entry->count = count;
  entry->met = met;
  atomic_store_explicit (&entry->lap, lap_of (place), memory_order_release);
  return true;
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
  if (!add_to_ring (reads, offset, count, met)) {
    if (atomic_load_explicit (&reads->newest_end, memory_order_relaxed) <
        offset + count)
      add_to_full (reads, (struct entry) {
                     .offset = offset, .count = count, .met = met });
    else
      atomic_fetch_add_explicit (&reads->lost, 1, memory_order_relaxed);
  }
  note_event (reads);
  return met;
}

bool
reads_failed (struct reads *reads, uint64_t offset, uint32_t count)
{
  return add_to_ring (reads, offset, count, FAILED);
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

static struct met_read
read_of (const struct entry *entry)
{
  return (struct met_read) {
    { entry->offset, entry->count }, map_met_again (entry->met),
    entry->met == FAILED
  };
}

/* Take the newest of a full ring, if there is one and all that is older has been
 * taken, up to this place.  It goes before those that found room after it: that
 * it has failed may be among them.  Returns how many.
 */
static size_t
take_newest (struct reads *reads, unsigned first, unsigned place,
             struct met_read *out)
{
  unsigned older;

  /* One that comes right now is seen next time, as if it had come a moment
   * later.
   */
  if (atomic_load_explicit (&reads->newest_end, memory_order_relaxed) == 0)
    return 0;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&reads->lock);

  if ((int) (place - reads->after) < 0)
    return 0;
  older = (int) (reads->after - first) > 0 ? reads->after - first : 0;
  memmove (&out[older+1], &out[older], (place - first - older) * sizeof *out);
  out[older] = read_of (&reads->newest);
  atomic_store_explicit (&reads->newest_end, 0, memory_order_relaxed);
  return 1;
}

size_t
reads_take (struct reads *reads, struct met_read *out)
{
  const unsigned first = atomic_load_explicit (&reads->first,
                                               memory_order_relaxed);
  unsigned place = first;
  struct entry *entry;

  for (;; ++place) {
    entry = &reads->ring[place % READS_MAX];
    if (atomic_load_explicit (&entry->lap, memory_order_acquire) != lap_of (place))
      break;
    out[place - first] = read_of (entry);
  }
  atomic_store_explicit (&reads->first, place, memory_order_release);
  return place - first + take_newest (reads, first, place, out);
}

unsigned
reads_take_lost (struct reads *reads)
{
  return atomic_exchange (&reads->lost, 0);
}

/* Wait for something new, or until this time. */
static void
wait_for_event (struct reads *reads, unsigned seen, uint64_t deadline_ns)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&reads->lock);

  atomic_fetch_add (&reads->waiting, 1);
  while (atomic_load (&reads->events) == seen) {
    if (clock_wait_until (&reads->cond, &reads->lock, deadline_ns) != 0)
      break;
  }
  atomic_fetch_sub (&reads->waiting, 1);
}

void
reads_wait (struct reads *reads, struct reads_waiter *waiter, uint64_t deadline_ns)
{
  const uint64_t rested_ns = waiter->waited_ns + WAKE_INTERVAL_NS;

  clock_sleep_until (rested_ns < deadline_ns ? rested_ns : deadline_ns);
  wait_for_event (reads, waiter->seen, deadline_ns);
  waiter->seen = atomic_load (&reads->events);
  waiter->waited_ns = clock_now_ns ();
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
  return (int) (atomic_load_explicit (&reads->end, memory_order_relaxed) -
                atomic_load_explicit (&reads->first, memory_order_relaxed)) >=
    READS_MAX / 2;
}
