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
#include "debug.h"
#include "scanner-internal.h"
#include "stats.h"

/* -- what the policy may ask about ----------------------------------------- */

static size_t
driver_reads (void *opaque, const struct range **out)
{
  struct scanner *s = opaque;
  const size_t n = reads_take (s->reads, s->read_batch);
  size_t i;

  if (scan_debug_reads)
    for (i = 0; i < n; ++i)
      nbdkit_debug ("scan: read offset=0x%" PRIx64 " count=0x%" PRIx64,
                    s->read_batch[i].offset, s->read_batch[i].count);
  *out = s->read_batch;
  return n;
}

static size_t
driver_failures (void *opaque, const struct vm_failure **out)
{
  struct scanner *s = opaque;

  *out = s->failure_batch;
  return failures_take (&s->failures, s->failure_batch);
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

void
scan_advance (struct scanner *s, enum scan_phase phase)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  if (phase <= scan_phase (s))
    return;
  atomic_store (&s->phase, phase);
  pthread_cond_broadcast (&s->role_free);
  pthread_cond_broadcast (&s->landed);
  pthread_cond_broadcast (&s->stops);
}

void
scan_end (struct scanner *s, enum stats_state state)
{
  scan_advance (s, SCAN_OVER);
  reads_stop (s->reads);
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
    .reads_in_flight = driver_reads_in_flight,
    .idle_ns = driver_idle_ns,
    .closed = driver_closed,
    .gone = driver_gone,
  };
  pthread_mutex_init (&s->lock, NULL);
  pthread_cond_init (&s->role_free, NULL);
  pthread_cond_init (&s->landed, NULL);
  clock_cond_init (&s->stops);
  failures_init (&s->failures);
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
  {
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
scanner_stop (struct scanner *s)
{
  unsigned i;

  scan_advance (s, SCAN_STOPS);
  reads_wake (s->reads);

  /* No worker is started any more. */
  for (i = 0; i < s->nr_workers; ++i)
    pthread_join (s->workers[i].thread, NULL);
  s->nr_workers = 0;
}

void
scanner_free (struct scanner *s)
{
  if (s == NULL)
    return;
  if (s->reads != NULL)
    scanner_stop (s);
  vm_scan_free (s->scan);
  reads_free (s->reads);
  source_forget_extents (&s->extents);
  source_close (s->source);
  free (s->pread_buf);
  free (s->workers);
  failures_destroy (&s->failures);
  pthread_cond_destroy (&s->stops);
  pthread_cond_destroy (&s->landed);
  pthread_cond_destroy (&s->role_free);
  pthread_mutex_destroy (&s->lock);
  free (s);
}

struct reads *
scanner_get_reads (struct scanner *s)
{
  return s->reads;
}
