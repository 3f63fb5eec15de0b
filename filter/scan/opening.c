/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See opening.h. */

#include <errno.h>

#include <nbdkit-filter.h>

#include "cleanup.h"
#include "clock.h"
#include "opening.h"
#include "scanner-internal.h"
#include "stats.h"

/* The time between two attempts doubles from here to there. */
#define REST_MIN_NS NS_PER_SECOND
#define REST_MAX_NS (64 * NS_PER_SECOND)

/* Go into this state, unless the scan stops. */
static void
enter (struct worker *w, int state)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&w->scanner->lock);

  if (scan_phase (w->scanner) == SCAN_GOES_ON)
    w->state = state;
}

/* Returns NULL if it can't be opened, or the scan stops. */
static struct source *
open_source (struct worker *w)
{
  struct scanner *s = w->scanner;
  struct source *source = NULL;

  /* Once it is in there nobody waits for this thread; if the scan stops
   * meanwhile, it is left in that state, and only cleans up.
   */
  enter (w, WORKER_OPENING);
  if (scan_phase (s) == SCAN_GOES_ON)
    source = source_open (s->config.backend, s->config.export_name,
                          s->config.method);
  enter (w, WORKER_AT_WORK);
  return source;
}

void
opening_count (struct scanner *s)
{
  const bool all_wait = scan_phase (s) == SCAN_GOES_ON && s->outage.workers > 0 &&
    s->outage.workers == s->nr_workers - s->nr_ended;

  if (all_wait == s->outage.is_told)
    return;
  s->outage.is_told = all_wait;
  if (all_wait)
    stats_scan_ends (s->config.stats, STATS_FAILED);
  else
    stats_scan_begins (s->config.stats);
}

static void
end_waiting (struct worker *w)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&w->scanner->lock);

  w->scanner->outage.workers--;
  opening_count (w->scanner);
}

static bool
first_warning (struct scanner *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);
  const bool first = !s->outage.warned;

  s->outage.warned = true;
  return first;
}

static void
rest_longer (uint64_t *rest_ns)
{
  *rest_ns *= 2;
  if (*rest_ns < REST_MIN_NS)
    *rest_ns = REST_MIN_NS;
  if (*rest_ns > REST_MAX_NS)
    *rest_ns = REST_MAX_NS;
}

/* The scan's lock must be held. */
static void
put_off (struct outage *outage)
{
  outage->next_ns = clock_now_ns () + outage->rest_ns;
}

/* A worker begins to wait.  Returns how often opening_try_now has been called. */
static unsigned
begin_waiting (struct worker *w)
{
  struct scanner *s = w->scanner;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  if (s->outage.workers++ == 0) {
    s->outage.rest_ns = w->opening.rest_ns;
    rest_longer (&s->outage.rest_ns);
    put_off (&s->outage);
  }
  opening_count (s);
  return s->outage.calls;
}

/* Wait until it is time to try again, unless opening_try_now is called, or has been
 * since it was called so many times.  Of all that wait for the time one gets it.
 */
static void
wait_for_turn (struct worker *w, unsigned *calls)
{
  struct scanner *s = w->scanner;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  while (scan_phase (s) == SCAN_GOES_ON && s->outage.calls == *calls &&
         clock_now_ns () < s->outage.next_ns)
    clock_wait_until (&s->try_now, &s->lock, s->outage.next_ns);
  /* What all are called to is one attempt, and no reason to wait for longer. */
  if (s->outage.calls == *calls)
    rest_longer (&s->outage.rest_ns);
  put_off (&s->outage);
  *calls = s->outage.calls;
  w->opening.rest_ns = s->outage.rest_ns;
}

struct source *
opening_get (struct worker *w)
{
  struct scanner *s = w->scanner;
  struct source *source = open_source (w);
  unsigned calls;

  if (source != NULL || scan_phase (s) != SCAN_GOES_ON)
    return source;
  calls = begin_waiting (w);
  if (first_warning (s))
    nbdkit_error ("scan: warning: could not open the layer below for a scan "
                  "thread; it goes on when that can be opened, and will not "
                  "warn again");
  do {
    wait_for_turn (w, &calls);
    source = open_source (w);
  } while (source == NULL && scan_phase (s) == SCAN_GOES_ON);
  end_waiting (w);
  if (source != NULL) {
    nbdkit_debug ("scan: the layer below is there, the scan goes on");
    opening_try_now (s);
  }
  return source;
}

/* Is this what an outage looks like?  VM_SKIPPED: a write was in the way; ENOSPC: the
 * layer that keeps what is fetched has no room.
 */
static bool
is_outage (int err)
{
  return err != VM_SKIPPED && err != ENOSPC && err != ENOMEM;
}

bool
opening_again (struct worker *w, int err)
{
  struct scanner *s = w->scanner;
  struct source *source;

  if (err == 0)
    w->opening = (struct opening) { 0 };
  if (err == 0 || !s->config.background || !is_outage (err) ||
      clock_now_ns () < w->opening.not_before_ns)
    return false;

  source = opening_get (w);
  if (source == NULL)
    return false;
  /* If that was no help it will not be tried at each failure. */
  rest_longer (&w->opening.rest_ns);
  w->opening.not_before_ns = clock_now_ns () + w->opening.rest_ns;
  if (source_get_info (source)->size != s->driver.size) {
    nbdkit_error ("scan: warning: the layer below is a disk of another size "
                  "now, not scanning in the background any more");
    source_close (source);
    scan_end (s, STATS_FAILED);
    return false;
  }
  source_close (w->source);
  w->source = source;
  return true;
}

void
opening_try_now (struct scanner *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  s->outage.calls++;
  pthread_cond_broadcast (&s->try_now);
}
