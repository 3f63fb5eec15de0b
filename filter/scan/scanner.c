/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Starting and ending a scan, and what its policy may ask without waiting.  See
 * scanner.h.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "clock.h"
#include "scanner-internal.h"
#include "stats.h"

/* -D scan.reads=1: every client read that a policy is told of. */
NBDKIT_DLL_PUBLIC int scan_debug_reads;

/* -- what the policy may ask about ----------------------------------------- */

static size_t
driver_reads (void *opaque, const struct met_read **out)
{
  struct scanner *s = opaque;
  const size_t n = looker_take (s, s->read_batch);
  size_t i;

  if (scan_debug_reads)
    for (i = 0; i < n; ++i)
      nbdkit_debug ("scan: read offset=0x%" PRIx64 " count=0x%" PRIx64,
                    s->read_batch[i].range.offset,
                    s->read_batch[i].range.count);
  *out = s->read_batch;
  return n;
}

static size_t
driver_failures (void *opaque, const struct vm_failure **out)
{
  struct scanner *s = opaque;

  /* The client's are still among the reads. */
  looker_look (s);
  *out = s->failure_batch;
  return failures_take (&s->failures, s->failure_batch);
}

static size_t
driver_results (void *opaque, const struct vm_result **out)
{
  struct scanner *s = opaque;

  *out = s->result_batch;
  return results_take (&s->results, s->result_batch);
}

static bool
driver_missing (void *opaque, uint64_t from, uint64_t to, struct range *missing)
{
  struct scanner *s = opaque;

  /* The policy need not have asked for them. */
  looker_look (s);
  return map_missing (s->config.map, from, to, missing);
}

static uint32_t
driver_room (void *opaque)
{
  return ticket_room (opaque);
}

static unsigned
driver_reads_in_flight (void *opaque)
{
  struct scanner *s = opaque;

  return reads_in_flight (s->reads);
}

static uint64_t
driver_idle_ns (void *opaque)
{
  struct scanner *s = opaque;

  return reads_idle_ns (s->reads);
}

static bool
driver_closed (void *opaque)
{
  return scan_phase (opaque) == SCAN_LAST_TURN;
}

static bool
driver_gone (void *opaque)
{
  return scan_phase (opaque) != SCAN_GOES_ON;
}

/* -- the end of a scan ----------------------------------------------------- */

bool
scan_advance (struct scanner *s, enum scan_phase phase)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  if (phase <= scan_phase (s))
    return false;
  atomic_store (&s->phase, phase);
  pthread_cond_broadcast (&s->role_free);
  pthread_cond_broadcast (&s->landed);
  pthread_cond_broadcast (&s->stops);
  pthread_cond_broadcast (&s->try_now);
  return true;
}

void
scan_end (struct scanner *s, enum stats_state state)
{
  if (!scan_advance (s, SCAN_OVER))
    return;
  looker_policy_is_done (s);
  reads_wake (s->reads);
  stats_scan_ends (s->config.stats, state);
}

/* -- the functions of scanner.h -------------------------------------------- */

struct scanner *
scanner_start (const struct scanner_config *config)
{
  struct scanner *s = calloc (1, sizeof *s);
  int err = ENOMEM;

  if (s == NULL)
    goto err;
  s->config = *config;
  s->driver = (struct vm_driver) {
    .opaque = s,
    .size = config->info.size,
    .block = config->block,
    .export = config->export_name,
    .reads = driver_reads,
    .failures = driver_failures,
    .results = driver_results,
    .missing = driver_missing,
    .room = driver_room,
    .reads_in_flight = driver_reads_in_flight,
    .idle_ns = driver_idle_ns,
    .closed = driver_closed,
    .gone = driver_gone,
  };
  pthread_mutex_init (&s->lock, NULL);
  pthread_mutex_init (&s->joining, NULL);
  pthread_mutex_init (&s->looker.lock, NULL);
  pthread_cond_init (&s->role_free, NULL);
  pthread_cond_init (&s->landed, NULL);
  clock_cond_init (&s->stops);
  clock_cond_init (&s->try_now);
  failures_init (&s->failures);
  results_init (&s->results);
  s->max_workers = config->threads;
  s->workers = calloc (config->threads, sizeof *s->workers);
  s->reads = reads_new ();
  s->scan = vm_scan_new (config->vm, &s->driver);
  if (s->workers == NULL || s->reads == NULL || s->scan == NULL)
    goto err;
  if (config->next != NULL) {
    s->source = source_of (config->next, &config->info, config->method);
    if (s->source == NULL)
      goto err;
  }
  stats_scan_begins (config->stats);
  err = looker_start (s);
  if (err == 0) {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

    err = worker_start (s);
  }
  if (err == 0)
    return s;
  stats_scan_ends (config->stats, STATS_FAILED);

 err:
  nbdkit_error ("scan: warning: could not start a scan: %s, not scanning",
                strerror (err));
  scanner_free (s);
  return NULL;
}

void
scanner_tell_stop (struct scanner *s)
{
  scan_advance (s, SCAN_STOPS);
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

    s->left = true;
    pthread_cond_broadcast (&s->stops);
  }
  reads_wake (s->reads);
}

void
scanner_stop (struct scanner *s)
{
  scanner_tell_stop (s);
  /* Its reads are recorded before those of the client's next connection. */
  looker_look (s);
  workers_join (s, false);
}

void
scanner_join (struct scanner *s)
{
  scanner_tell_stop (s);
  workers_join (s, true);
  looker_join (s);
}

void
scanner_free (struct scanner *s)
{
  if (s == NULL)
    return;
  if (s->reads != NULL)
    scanner_join (s);
  vm_scan_free (s->scan);
  reads_free (s->reads);
  source_forget_extents (&s->extents);
  source_close (s->source);
  free (s->pread_buf);
  free (s->naming.name);
  free (s->workers);
  results_destroy (&s->results);
  failures_destroy (&s->failures);
  pthread_cond_destroy (&s->try_now);
  pthread_cond_destroy (&s->stops);
  pthread_cond_destroy (&s->landed);
  pthread_cond_destroy (&s->role_free);
  pthread_mutex_destroy (&s->looker.lock);
  pthread_mutex_destroy (&s->joining);
  pthread_mutex_destroy (&s->lock);
  free (s);
}

struct reads *
scanner_get_reads (struct scanner *s)
{
  return s->reads;
}
