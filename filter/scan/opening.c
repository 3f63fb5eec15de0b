/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See opening.h. */

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

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

/* Wait until there is a name to open.  It lasts as long as the scan. */
static const char *
get_name (struct scanner *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  while (s->config.waits_for_name && s->naming.name == NULL &&
         scan_phase (s) == SCAN_GOES_ON)
    pthread_cond_wait (&s->try_now, &s->lock);
  return s->naming.name != NULL ? s->naming.name : s->config.export_name;
}

/* Something has been opened under this name.  If it was the first, all else is too,
 * also if a client was told another one meanwhile.
 */
static void
keep_name (struct scanner *s, const char *name)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  if (!s->naming.is_final && s->naming.name != name) {
    free (s->naming.name);
    s->naming.name = NULL;
  }
  s->naming.is_final = true;
}

void
scanner_set_name (struct scanner *s, const char *name)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  if (s->naming.is_final || s->naming.name != NULL ||
      (!s->config.waits_for_name && strcmp (name, s->config.export_name) == 0))
    return;
  s->naming.name = strdup (name);
  if (s->naming.name != NULL)
    pthread_cond_broadcast (&s->try_now);
}

bool
scanner_is_of (struct scanner *s, const char *name)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  return s->naming.name == NULL ? !s->config.waits_for_name
    : strcmp (s->naming.name, name) == 0;
}

/* Sources that scan threads are opening now, of all scans. */
static atomic_uint nr_opening;

/* Is there a file descriptor to spare?  Each source has at least one, and without any the
 * server could not accept a client, so half of those that it may have are left to
 * clients.  Tells how many those are.
 */
static bool
has_descriptors (uint64_t *most)
{
  struct rlimit limit;
  int fd;

  if (getrlimit (RLIMIT_NOFILE, &limit) == -1)
    return true;
  *most = limit.rlim_cur;
  /* The lowest that is free, so all below are in use. */
  fd = eventfd (0, EFD_CLOEXEC);
  if (fd == -1)
    return false;
  close (fd);
  return (uint64_t) fd + atomic_load (&nr_opening) <= *most / 2;
}

/* Open a source.  Returns NULL if it can't be opened, with `most` above 0 if that is for
 * want of descriptors.
 */
static struct source *
try_to_open (struct worker *w, const char *name, uint64_t *most)
{
  const struct scanner_config *config = &w->scanner->config;
  struct source *source = NULL;

  atomic_fetch_add (&nr_opening, 1);
  if (has_descriptors (most)) {
    *most = 0;
    source = source_open (config->backend, name, config->method);
  }
  atomic_fetch_sub (&nr_opening, 1);
  return source;
}

/* Returns NULL if it can't be opened, as from try_to_open, or the scan stops. */
static struct source *
open_source (struct worker *w, uint64_t *most)
{
  struct scanner *s = w->scanner;
  const char *name = get_name (s);
  struct source *source = NULL;

  *most = 0;

  /* Once it is in there nobody waits for this thread; if the scan stops
   * meanwhile, it is left in that state, and only cleans up.
   */
  enter (w, WORKER_OPENING);
  if (scan_phase (s) == SCAN_GOES_ON)
    source = try_to_open (w, name, most);
  if (source != NULL)
    keep_name (s, name);
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

/* Say once why a source could not be opened; most is as from open_source. */
static void
warn (struct scanner *s, uint64_t most)
{
  if (!first_warning (s))
    return;
  if (most > 0)
    nbdkit_error ("scan: warning: half of the %" PRIu64 " file descriptors that "
                  "the server may have are in use, so no more are opened for scan "
                  "threads; raise that limit (ulimit -n) or lower scan-threads",
                  most);
  else
    nbdkit_error ("scan: warning: could not open the layer below for a scan "
                  "thread; it goes on when that can be opened, and will not "
                  "warn again");
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

/* A worker begins to wait.  Returns how often scanner_try_now has been called. */
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

/* Wait until it is time to try again, unless scanner_try_now is called, or has been
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
  uint64_t most;
  struct source *source = open_source (w, &most);
  unsigned calls;

  if (source != NULL || scan_phase (s) != SCAN_GOES_ON)
    return source;
  calls = begin_waiting (w);
  warn (s, most);
  do {
    wait_for_turn (w, &calls);
    source = open_source (w, &most);
  } while (source == NULL && scan_phase (s) == SCAN_GOES_ON);
  end_waiting (w);
  if (source != NULL) {
    nbdkit_debug ("scan: the layer below is there, the scan goes on");
    scanner_try_now (s);
  }
  return source;
}

/* The layer that keeps what is fetched has no room for it: wait, as for a source.  Returns
 * false if the scan stops.
 */
static bool
wait_for_room (struct worker *w)
{
  struct scanner *s = w->scanner;
  unsigned calls;

  failures_tell_full ();
  atomic_store (&s->outage.is_full, true);
  calls = begin_waiting (w);
  wait_for_turn (w, &calls);
  end_waiting (w);
  return scan_phase (s) == SCAN_GOES_ON;
}

/* Something was kept.  If there was no room before, what clients have read meanwhile may
 * not be: the policy goes over all of it, of which what is present costs next to nothing.
 */
static void
look_for_what_is_left (struct scanner *s)
{
  const struct range all = { 0, s->driver.size };

  if (!atomic_load (&s->outage.is_full) || !atomic_exchange (&s->outage.is_full, false))
    return;
  looker_look (s);
  map_unread (s->config.map, all);
  failures_add_read (&s->failures, all);
}

/* Is this what an outage looks like?  VM_SKIPPED: a write was in the way. */
static bool
is_outage (int err)
{
  return err != VM_SKIPPED && err != ENOMEM;
}

bool
opening_again (struct worker *w, int err)
{
  struct scanner *s = w->scanner;
  struct source *source;

  if (err == 0) {
    w->opening = (struct opening) { 0 };
    look_for_what_is_left (s);
  }
  if (err == 0 || !s->config.background || !is_outage (err))
    return false;
  if (err == ENOSPC)
    return wait_for_room (w);
  if (clock_now_ns () < w->opening.not_before_ns)
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
scanner_try_now (struct scanner *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  s->outage.calls++;
  pthread_cond_broadcast (&s->try_now);
}
