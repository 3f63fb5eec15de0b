/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See report.h. */

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <pthread.h>
#include <unistd.h>

#include <nbdkit-filter.h>

#include "clock.h"
#include "exports.h"
#include "metrics.h"
#include "report.h"

/* How often the counters are looked at, and how often the file is written. */
#define PROGRESS_SECONDS 1
#define FILE_SECONDS 5

/* Without a terminal, a line is printed each time that this much more is
 * done.
 */
#define STEP_PERCENT 10

/* The rate shown is that of about this long. */
#define RATE_SECONDS 10

/* Written before the thread starts. */
static struct report_config config;
static bool running;
static pthread_t thread;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond;
static bool stopping;           /* protected by lock */

/* Reporter only (and report_stop, when that has gone). */
static struct {
  bool terminal;
  bool warned;                  /* that the file can't be written */
  int steps;                    /* lines printed so far */
  double bytes_per_second;
  uint64_t last_ns, last_bytes;
  size_t width;                 /* of the line on the terminal */
} state;

/* -- scan-stats ------------------------------------------------------------ */

static int
write_file (void)
{
  char *tmp;
  FILE *fp;
  int r = -1, err;

  if (asprintf (&tmp, "%s.tmp", config.stats_file) == -1)
    return -1;
  fp = fopen (tmp, "we");
  if (fp != NULL) {
    metrics_write (fp, config.policy);
    r = ferror (fp) ? -1 : 0;
    if (fclose (fp) != 0)
      r = -1;
    /* The reader sees the old file or the new one, never a part. */
    if (r == 0)
      r = rename (tmp, config.stats_file);
    if (r == -1) {
      err = errno;
      unlink (tmp);
      errno = err;
    }
  }
  err = errno;
  free (tmp);
  errno = err;
  return r;
}

static void
update_file (void)
{
  if (config.stats_file == NULL)
    return;
  if (write_file () == -1 && !state.warned) {
    nbdkit_error ("scan: warning: scan-stats=%s can't be written: %m",
                  config.stats_file);
    state.warned = true;
  }
}

/* -- scan-progress --------------------------------------------------------- */

/* A size for people. */
static const char *
human_size (uint64_t bytes, char buf[16])
{
  static const char units[] = "BKMGTPE";
  double n = bytes;
  size_t i = 0;

  while (n >= 1024 && units[i+1] != '\0') {
    n /= 1024;
    i++;
  }
  snprintf (buf, 16, i > 0 && n < 10 ? "%.1f%c" : "%.0f%c", n, units[i]);
  return buf;
}

static void
add_totals (struct export *export, void *opaque)
{
  struct stats_totals *sum = opaque, totals;

  stats_get (export->stats, &totals);
  sum->size += totals.size;
  sum->done_bytes += totals.done_bytes;
  sum->covered_bytes += totals.covered_bytes;
  sum->hole_bytes += totals.hole_bytes;
  sum->prefetched_bytes += totals.prefetched_bytes;
  sum->failures += totals.failures;
  if (totals.state == STATS_RUNNING)
    sum->state = STATS_RUNNING;
}

/* A moving average, so that the time left doesn't jump. */
static void
update_rate (const struct stats_totals *sum)
{
  const uint64_t now = clock_now_ns ();
  double seconds, rate, weight;

  if (state.last_ns != 0) {
    seconds = (double) (now - state.last_ns) / NS_PER_SECOND;
    rate = (sum->done_bytes - state.last_bytes) / seconds;
    weight = state.bytes_per_second == 0 || seconds > RATE_SECONDS
      ? 1 : seconds / RATE_SECONDS;
    state.bytes_per_second += weight * (rate - state.bytes_per_second);
  }
  state.last_ns = now;
  state.last_bytes = sum->done_bytes;
}

/* The line, without an end. */
static int
format_progress (const struct stats_totals *sum, char *line, size_t size)
{
  char b1[16], b2[16], b3[16], b4[16];
  const uint64_t left = sum->size - sum->done_bytes;
  int n;

  n = snprintf (line, size, "scan: %3.0f%% %s of %s",
                100.0 * sum->done_bytes / sum->size,
                human_size (sum->done_bytes, b1), human_size (sum->size, b2));
  if (sum->state == STATS_RUNNING && left > 0 && state.bytes_per_second >= 1) {
    const uint64_t seconds = left / state.bytes_per_second;

    n += snprintf (line + n, size - n, ", %s/s, %" PRIu64 ":%02" PRIu64
                   " left", human_size (state.bytes_per_second, b3),
                   seconds / 60, seconds % 60);
  }
  if (sum->hole_bytes > 0)
    n += snprintf (line + n, size - n, ", %s of holes skipped",
                   human_size (sum->hole_bytes, b4));
  if (sum->failures > 0)
    n += snprintf (line + n, size - n, ", %" PRIu64 " failed", sum->failures);
  return n;
}

static void
update_progress (bool last)
{
  struct stats_totals sum = { .state = STATS_WAITING };
  char line[256];
  int n, steps;

  if (!config.progress)
    return;
  exports_for_each (add_totals, &sum);
  if (sum.size == 0)
    return;
  update_rate (&sum);
  n = format_progress (&sum, line, sizeof line);

  if (state.terminal) {
    /* Blanks cover what a longer line before this one left. */
    fprintf (stderr, "\r%s%*s%s", line,
             (int) state.width > n ? (int) state.width - n : 0, "",
             last ? "\n" : "");
    state.width = n;
  }
  else {
    steps = (double) sum.done_bytes / sum.size * 100 / STEP_PERCENT;
    if (steps > state.steps || last)
      fprintf (stderr, "%s\n", line);
    state.steps = steps;
  }
  fflush (stderr);
}

/* -- the thread ------------------------------------------------------------ */

static void *
run (void *vp)
{
  uint64_t next_file_ns = clock_now_ns () + FILE_SECONDS * NS_PER_SECOND;
  uint64_t next_ns;

  pthread_mutex_lock (&lock);
  while (!stopping) {
    next_ns = clock_now_ns () + PROGRESS_SECONDS * NS_PER_SECOND;
    while (!stopping && clock_wait_until (&cond, &lock, next_ns) == 0)
      ;
    if (stopping)
      break;
    pthread_mutex_unlock (&lock);
    update_progress (false);
    if (clock_now_ns () >= next_file_ns) {
      update_file ();
      next_file_ns += FILE_SECONDS * NS_PER_SECOND;
    }
    pthread_mutex_lock (&lock);
  }
  pthread_mutex_unlock (&lock);
  return NULL;
}

int
report_init (const struct report_config *c)
{
  config = *c;
  state.terminal = isatty (STDERR_FILENO);
  clock_cond_init (&cond);
  if (config.stats_file != NULL && write_file () == -1) {
    nbdkit_error ("scan-stats=%s: can't be written: %m", config.stats_file);
    return -1;
  }
  return 0;
}

void
report_start (void)
{
  int err;

  if (!config.progress && config.stats_file == NULL)
    return;
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
    pthread_mutex_lock (&lock);
    stopping = true;
    pthread_cond_signal (&cond);
    pthread_mutex_unlock (&lock);
    pthread_join (thread, NULL);
    running = false;
  }
  update_progress (true);
  update_file ();
}
