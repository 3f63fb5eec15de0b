/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See line.h. */

#include <inttypes.h>
#include <stdlib.h>

#include <pthread.h>

#include <nbdkit-filter.h>

#include "cleanup.h"
#include "clock.h"
#include "line.h"
#include "reads.h"

/* -D scan.pace=1: how much may be on its way. */
NBDKIT_DLL_PUBLIC int scan_debug_pace;

struct line {
  struct line_clients *clients; /* immutable */

  /* Leaf lock; protects the rest. */
  pthread_mutex_t lock;
  pthread_cond_t has_room;      /* a transfer has ended */
  struct pace pace;
};

struct line *
line_new (uint32_t largest, struct line_clients *clients)
{
  struct line *line = calloc (1, sizeof *line);

  if (line == NULL)
    return NULL;
  pthread_mutex_init (&line->lock, NULL);
  clock_cond_init (&line->has_room);
  line->clients = clients;
  pace_init (&line->pace, largest);
  return line;
}

void
line_free (struct line *line)
{
  if (line == NULL)
    return;
  pthread_cond_destroy (&line->has_room);
  pthread_mutex_destroy (&line->lock);
  free (line);
}

/* In this order, what has ended is never more than what has begun. */
static struct pace_client
look_at_clients (struct line *line)
{
  const uint64_t ended = atomic_load (&line->clients->ended);

  return (struct pace_client) {
    .begun = atomic_load (&line->clients->begun),
    .ended = ended,
    .reads = atomic_load (&line->clients->reads),
    .hits = atomic_load (&line->clients->hits),
    .hit_bytes = atomic_load (&line->clients->hit_bytes),
  };
}

uint32_t
line_take (struct line *line, struct pace_transfer *transfer,
           const atomic_int *stop, struct reads *reads)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&line->lock);
  uint64_t now_ns;
  uint32_t count;

  while (atomic_load (stop) == 0) {
    now_ns = clock_now_ns ();
    count = pace_take (&line->pace, transfer, look_at_clients (line), now_ns);
    if (count > 0)
      return count;
    if (reads != NULL && reads_are_many (reads))
      break;
    clock_wait_until (&line->has_room, &line->lock,
                      pace_retry_ns (&line->pace, now_ns));
  }
  return 0;
}

void
line_give (struct line *line, struct pace_transfer *transfer)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&line->lock);

  pace_give (&line->pace, transfer);
  pthread_cond_broadcast (&line->has_room);
}

void
line_begin (struct line *line, struct pace_transfer *transfer)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&line->lock);

  pace_begin (&line->pace, transfer, look_at_clients (line), clock_now_ns ());
}

/* Returns whether another level is in force since. */
static bool
end (struct line *line, struct pace_transfer *transfer, uint32_t count,
     struct pace *pace)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&line->lock);
  const uint64_t level_id = line->pace.level_id;

  pace_end (&line->pace, transfer, count, clock_now_ns ());
  pthread_cond_broadcast (&line->has_room);
  *pace = line->pace;
  return pace->level_id != level_id;
}

void
line_end (struct line *line, struct pace_transfer *transfer, uint32_t count)
{
  struct pace pace;

  if (end (line, transfer, count, &pace) && scan_debug_pace)
    nbdkit_debug ("scan: pace: %s: level %.0f, pieces of %" PRIu32 "; window "
                  "%.0f, %.0f bytes a second, latency %.1f ms",
                  pace_phase_name (pace.phase), pace.level, pace.piece,
                  pace.window, pace.bandwidth * NS_PER_SECOND,
                  pace_latency_ns (&pace) * 1000 / NS_PER_SECOND);
}

void
line_get (struct line *line, struct line_state *state)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&line->lock);

  *state = (struct line_state) {
    .window = line->pace.window,
    .piece = line->pace.piece,
    .bandwidth = line->pace.bandwidth * NS_PER_SECOND,
    .latency_ns = pace_latency_ns (&line->pace),
  };
}
