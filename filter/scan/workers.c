/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* The threads of a scan, and who of them decides.  See scanner-internal.h. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "scanner-internal.h"
#include "stats.h"

static void *run_worker (void *vp);

int
worker_start (struct scanner *s)
{
  struct worker *w = &s->workers[s->nr_workers];
  int err;

  w->scanner = s;
  w->state = WORKER_AT_WORK;
  err = pthread_create (&w->thread, NULL, run_worker, w);
  if (err == 0)
    s->nr_workers++;
  return err;
}

/* Is this a thread to be waited for? */
static bool
is_to_join (struct scanner *s, const struct worker *w, bool also_opening)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  return !w->joined && (also_opening || w->state != WORKER_OPENING);
}

void
workers_join (struct scanner *s, bool also_opening)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->joining);
  unsigned i;

  /* No worker is started any more. */
  for (i = 0; i < s->nr_workers; ++i)
    if (is_to_join (s, &s->workers[i], also_opening)) {
      pthread_join (s->workers[i].thread, NULL);
      s->workers[i].joined = true;
    }
}

bool
scanner_has_ended (struct scanner *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  return s->nr_ended == s->nr_workers;
}

static bool
is_first (const struct worker *w)
{
  return w == w->scanner->workers;
}

/* Start no more workers.  Returns whether this is the first time. */
static bool
limit_workers (struct scanner *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);
  const bool first = !s->warned_of_thread;

  s->warned_of_thread = true;
  s->max_workers = s->nr_workers;
  return first;
}

/* A worker, or one that could not be started, is not to be had: say so once,
 * and go on with those there are.
 */
static void
give_up_worker (struct scanner *s, const char *why, bool is_last)
{
  if (limit_workers (s))
    nbdkit_error ("scan: warning: %s%s", why, is_last
                  ? ", not scanning" : ", scanning with fewer threads");
}

/* -- what a worker needs --------------------------------------------------- */

/* The most that one prefetch gets: as much as it may, in whole blocks of the layer
 * below, and one of these at least.
 */
static uint32_t
largest_piece (uint32_t most, uint32_t minimum)
{
  return most > minimum ? most & ~(minimum - 1) : minimum;
}

/* Give a worker that has its source what else it needs.  Returns NULL, or why it can't
 * work.
 */
static const char *
equip (struct scanner *s, struct worker *w)
{
  const bool size_is_known = !is_first (w) || !s->config.background;

  if (size_is_known &&
      source_get_info (w->source)->size != s->driver.size)
    return "the layer below was opened again for a scan thread and is a disk "
      "of another size";
  if (s->config.method == SOURCE_READ) {
    w->scratch = malloc (largest_piece (s->config.block,
                                        source_get_info (w->source)->minimum));
    if (w->scratch == NULL)
      return "out of memory for a scan thread";
  }
  return NULL;
}

/* The first worker finds out about the disk.  Returns false after a warning if
 * it can't be scanned.
 */
static bool
look_at_disk (struct scanner *s, struct worker *w)
{
  s->config.info = *source_get_info (w->source);
  s->driver.size = s->config.info.size;
  if (!map_set_size (s->config.map, s->driver.size)) {
    nbdkit_error ("scan: warning: the disk has another size than a client was "
                  "told, not scanning");
    return false;
  }
  if (s->config.method != SOURCE_CACHE || s->config.info.can_cache)
    return true;
  source_warn_no_cache ();
  return false;
}

/* Returns false if the scan stops meanwhile, or after saying why the worker can't
 * work.
 */
static bool
prepare_worker (struct scanner *s, struct worker *w)
{
  const char *why;

  w->source = s->source != NULL ? s->source : opening_get (w);
  if (scan_phase (s) != SCAN_GOES_ON && s->source == NULL)
    return false;
  why = equip (s, w);
  if (why != NULL) {
    give_up_worker (s, why, is_first (w));
    return false;
  }
  return !is_first (w) || look_at_disk (s, w);
}

static void
release_worker (struct scanner *s, struct worker *w)
{
  if (w->source != s->source)
    source_close (w->source);
  free (w->scratch);
}

/* -- the decider ----------------------------------------------------------- */

/* Wait for the decider's role.  Returns false if the scan is over. */
static bool
take_role (struct scanner *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  s->nr_idle++;
  while (s->deciding && scan_phase (s) != SCAN_OVER)
    pthread_cond_wait (&s->role_free, &s->lock);
  s->nr_idle--;
  if (scan_phase (s) == SCAN_OVER)
    return false;
  s->deciding = true;
  return true;
}

/* Pass the role on, to prefetch if something is in hand.  Returns an errno if
 * the thread that the scan wanted can't be started.
 */
static int
leave_role (struct scanner *s, bool in_hand)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  s->deciding = false;
  pthread_cond_signal (&s->role_free);
  if (!in_hand)
    return 0;
  s->in_flight++;
  /* Keep one thread at hand for the next decision; but if one can't open its source,
   * another could not.
   */
  if (s->nr_idle == 0 && s->nr_workers < s->max_workers &&
      s->outage.workers == 0 && scan_phase (s) == SCAN_GOES_ON)
    return worker_start (s);
  return 0;
}

/* What one prefetch gets of a range: a block at most, and less if there is room
 * for less.  A layer that keeps what is fetched does so in blocks of its own,
 * and fetches one twice if two pieces meet in it; so a piece of a block ends
 * where theirs are likely to.
 */
static struct range
first_piece (struct scanner *s)
{
  const uint32_t minimum = s->config.info.minimum;
  const uint32_t block = largest_piece (s->config.block, minimum);
  const uint32_t most = largest_piece (s->ticket.most, minimum);
  struct range range = range_widen (s->pending, minimum, s->driver.size);
  uint64_t end;

  if (range.count > block)
    range.count = block;
  if (range.count > most) {
    end = (range.offset + most) & ~(uint64_t) (PACE_SMALLEST - 1);
    range.count = end > range.offset ? end - range.offset : most;
  }
  return range;
}

/* This much of what is pending has been prefetched. */
static void
take_off (struct scanner *s, struct range range)
{
  const uint64_t end = range_end (s->pending);

  s->pending.offset = range_end (range);
  s->pending.count = end > s->pending.offset ? end - s->pending.offset : 0;
}

/* Under a pace the pieces of a range may be long in coming; the client may have
 * read meanwhile what is left of it.
 */
static void
leave_out_what_is_there (struct scanner *s)
{
  const uint64_t end = s->pending.offset + s->pending.count;
  struct range missing;

  looker_look (s);
  if (!map_missing (s->config.map, s->pending.offset, end, &missing))
    missing.offset = end;
  s->pending = (struct range) { missing.offset, end - missing.offset };
}

/* Get the next range to prefetch, at most a block.  Returns false if the scan
 * is over.  The caller is the decider.
 */
static bool
decide (struct scanner *s, struct worker *w, struct range *range)
{
  uint32_t count;

  /* Again if it has been stopped, or the limit was reached, just now. */
  do {
    if (!steps_take_room (s))
      return false;
    if (scan_phase (s) != SCAN_GOES_ON)
      s->pending.count = 0;
    if (s->config.line != NULL && s->pending.count > 0)
      leave_out_what_is_there (s);
    if (s->pending.count == 0 && !steps_ask_policy (s, w)) {
      ticket_give (s);
      return false;
    }
    *range = first_piece (s);
    count = ticket_use (s, w, range->count);
    /* The limit has cut it short. */
    if (count < range->count) {
      count &= ~(s->config.info.minimum - 1);
      if (count == 0)
        ticket_cancel (w);
    }
    range->count = count;
  } while (count == 0);

  take_off (s, *range);
  return true;
}

/* Become the decider and get a range, or return false if the scan is over. */
static bool
get_work (struct scanner *s, struct worker *w, struct range *range)
{
  char why[128];
  bool more;
  int err;

  if (!take_role (s))
    return false;
  more = decide (s, w, range);
  /* Before another one decides, and asks what is missing. */
  if (more)
    map_prefetch_begins (s->config.map, *range);
  err = leave_role (s, more);
  if (err != 0) {
    snprintf (why, sizeof why, "could not start a scan thread: %s",
              strerror (err));
    give_up_worker (s, why, false);
  }
  return more;
}

static void
note_landed (struct scanner *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  s->in_flight--;
  pthread_cond_signal (&s->landed);
}

static void
note_end (struct worker *w)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&w->scanner->lock);

  w->state = WORKER_ENDED;
  w->scanner->nr_ended++;
  opening_count (w->scanner);
}

static void *
run_worker (void *vp)
{
  struct worker *w = vp;
  struct scanner *s = w->scanner;
  struct range range;

  pthread_setname_np (pthread_self (), "nbdkit-scan");

  if (prepare_worker (s, w)) {
    if (is_first (w) && s->driver.size == 0) {
      nbdkit_debug ("scan: finished scanning the plugin");
      scan_end (s, STATS_FINISHED);
    }
    while (get_work (s, w, &range)) {
      fetch_prefetch (s, w, range);
      note_landed (s);
    }
  }
  else if (is_first (w))
    scan_end (s, scan_phase (s) == SCAN_GOES_ON
              ? STATS_FAILED : STATS_WAITING);

  release_worker (s, w);
  note_end (w);
  return NULL;
}
