/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See report.h. */

#include <string.h>

#include <pthread.h>

#include <nbdkit-filter.h>

#include "cleanup.h"
#include "clock.h"
#include "counters-file.h"
#include "exports.h"
#include "line.h"
#include "metrics.h"
#include "options.h"
#include "progress.h"
#include "report.h"

/* How often the counters are looked at, and how often the file is written. */
#define PROGRESS_SECONDS 1
#define FILE_SECONDS 5

/* Written before the thread starts. */
static struct line *line;
static bool running;
static pthread_t thread;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond;
static bool stopping;           /* protected by lock */

/* Print all counters.  No lock is held meanwhile. */
static int
write_counters (FILE *fp)
{
  struct line_state state;
  struct export_totals *totals;
  size_t nr;

  totals = exports_get_totals (&nr);
  if (totals == NULL)
    return -1;
  metrics_write (fp, options.policy, totals, nr);
  if (line != NULL) {
    line_get (line, &state);
    metrics_write_line (fp, &state);
  }
  exports_forget_totals (totals, nr);
  return 0;
}

static void
update_file (void)
{
  if (options.stats_file != NULL)
    counters_file_update ("scan-stats", options.stats_file, METRICS_BEGIN,
                          write_counters);
}

/* Wait until it is time to look again.  Returns false if the thread should end. */
static bool
wait_for_next (void)
{
  const uint64_t next_ns = clock_now_ns () + PROGRESS_SECONDS * NS_PER_SECOND;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lock);

  while (!stopping && clock_wait_until (&cond, &lock, next_ns) == 0)
    ;
  return !stopping;
}

static void *
run (void *vp)
{
  uint64_t next_file_ns = clock_now_ns () + FILE_SECONDS * NS_PER_SECOND;

  while (wait_for_next ()) {
    if (options.progress)
      progress_update ();
    if (clock_now_ns () >= next_file_ns) {
      update_file ();
      next_file_ns += FILE_SECONDS * NS_PER_SECOND;
    }
  }
  return NULL;
}

static void
tell_stop (void)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lock);

  stopping = true;
  pthread_cond_signal (&cond);
}

int
report_init (struct line *paced)
{
  line = paced;
  clock_cond_init (&cond);
  if (options.stats_file == NULL)
    return 0;
  return counters_file_check ("scan-stats", options.stats_file, METRICS_BEGIN);
}

void
report_start (void)
{
  int err;

  if (!options.progress && options.stats_file == NULL)
    return;
  /* As the user that the server is from now on. */
  update_file ();
  err = pthread_create (&thread, NULL, run, NULL);
  if (err != 0)
    nbdkit_error ("scan: warning: pthread_create: %s; progress and counters "
                  "will only be reported at the end", strerror (err));
  running = err == 0;
}

void
report_stop (void)
{
  if (running) {
    tell_stop ();
    pthread_join (thread, NULL);
    running = false;
  }
  if (options.progress)
    progress_end ();
  update_file ();
}
