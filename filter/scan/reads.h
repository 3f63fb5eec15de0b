/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* The client's reads, on their way from the read path to the policy.
 *
 * The read path adds to a queue of fixed size, with no lock as long as there is
 * room; the scan takes all of it at once.  When the queue is full, the newest entry
 * keeps whichever read ends further, so that the furthest end is never lost.
 * Nothing here allocates after reads_new, fails, or waits for anyone but
 * reads_wait.
 *
 * Any thread may call these functions, but one at a time reads_take.
 */

#ifndef SCAN_READS_H
#define SCAN_READS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "map.h"

/* Entries in the queue. */
#define READS_MAX 256

struct reads;

/* Returns NULL (with errno set) if memory runs out. */
extern struct reads *reads_new (void);

/* NULL is allowed. */
extern void reads_free (struct reads *reads);

/* The part of it that the read path looks at first. */
struct reads_head {
  atomic_bool stopped;
};

/* Are reads to be noted?  Once it says no, it never says yes again. */
static inline bool
reads_are_wanted (struct reads *reads)
{
  struct reads_head *head = (struct reads_head *) reads;

  return !atomic_load_explicit (&head->stopped, memory_order_relaxed);
}

/* A client read starts; it is noted here and in the map of the disk.  Returns
 * what map_meet does.  reads_end must be called when it has ended.
 */
extern uint8_t reads_begin (struct reads *reads, struct map *map,
                            uint64_t offset, uint32_t count);
extern void reads_end (struct reads *reads);

/* One that has begun and not ended has failed.  Returns false if the queue is full:
 * then it has to be emptied, or the read goes on counting as read.
 */
extern bool reads_failed (struct reads *reads, uint64_t offset, uint32_t count);

/* No more reads are wanted: the scan has finished.  One that is noted all the
 * same says nothing to anybody.
 */
extern void reads_stop (struct reads *reads);

/* Copy all queued reads, oldest first, to out, which has room for READS_MAX,
 * and empty the queue.  One that has failed is there twice: as it began, and as
 * failed.  Returns how many.
 */
extern size_t reads_take (struct reads *reads, struct met_read *out);

/* How many reads the queue had no room for since this was last called. */
extern unsigned reads_take_lost (struct reads *reads);

/* Who waits: when it last did, and the value of events then.  Begin with zeroes. */
struct reads_waiter {
  uint64_t waited_ns;
  unsigned seen;
};

/* Wait until a read has begun or ended or reads_wake was called since
 * reads_wait last returned, or until deadline_ns (see clock.h).  Reads that
 * were taken meanwhile count too: it may return early.  It returns within half a
 * millisecond of what it waits for, and not more often than that.
 */
extern void reads_wait (struct reads *reads, struct reads_waiter *waiter,
                        uint64_t deadline_ns);

/* End a reads_wait that is under way, or the next one. */
extern void reads_wake (struct reads *reads);

/* How many reads have begun and not ended.  Those are in it that the queue had no
 * room for, not those after reads_stop.
 */
extern unsigned reads_in_flight (struct reads *reads);

/* Nanoseconds since a read was last in flight, 0 while one is.  Times are kept
 * only from the first call on.
 */
extern uint64_t reads_idle_ns (struct reads *reads);

/* Is the queue half full, so that somebody should take from it? */
extern bool reads_are_many (struct reads *reads);

#endif /* SCAN_READS_H */
