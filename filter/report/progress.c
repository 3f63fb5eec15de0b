/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See progress.h. */

#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>

#include <sys/ioctl.h>
#include <unistd.h>

#include "clock.h"
#include "exports.h"
#include "progress.h"

/* Without a terminal, a line is printed each time that this much more is
 * done.
 */
#define STEP_PERCENT 10

/* The rate shown is that of about this long. */
#define RATE_SECONDS 10

/* Less than so many reads or prefetches tell nothing of a client or a source. */
#define ENOUGH 100

/* A source that answers this fast is one where waiting is not what takes time:
 * a disk of this machine, or a network of this house.
 */
#define NEAR_NS (NS_PER_SECOND / 1000)

/* Of all exports that are remembered; the counters are also of those that were. */
struct sum {
  bool running;
  uint64_t size, done, holes, unread;
  struct stats_totals stats;
};

/* Of who calls, one thread at a time. */
static struct {
  int steps;                    /* lines printed so far */
  uint64_t shown;               /* bytes done, when one was last printed */
  double bytes_per_second;
  uint64_t last_ns, last_bytes;
  size_t width;                 /* of the line on the terminal */
} state = { .shown = UINT64_MAX };

/* A line being made. */
struct progress_line {
  char text[320];
  size_t used;
};

static void __attribute__ ((format (printf, 2, 3)))
add (struct progress_line *line, const char *fs, ...)
{
  const size_t room = sizeof line->text - line->used;
  va_list args;
  int n;

  va_start (args, fs);
  n = vsnprintf (line->text + line->used, room, fs, args);
  va_end (args);
  line->used += n < 0 ? 0 : (size_t) n < room ? (size_t) n : room - 1;
}

/* A size for people. */
static void
add_size (struct progress_line *line, double n)
{
  static const char units[] = "BKMGTPE";
  size_t i = 0;

  while (n >= 1024 && units[i+1] != '\0') {
    n /= 1024;
    i++;
  }
  add (line, i > 0 && n < 10 ? "%.1f%c" : "%.0f%c", n, units[i]);
}

static struct sum
sum_up (void)
{
  struct sum sum = { .running = false };
  struct export_totals *totals;
  const struct export_totals *t;
  size_t nr = 0;

  totals = exports_get_totals (&nr);
  for (t = totals; totals != NULL && t < totals + nr; ++t) {
    sum.running = sum.running || t->stats.state == STATS_RUNNING;
    sum.size += t->map.size;
    sum.done += t->map.covered + t->map.holes;
    sum.holes += t->map.holes;
    sum.unread += t->map.unread;
    stats_add (&sum.stats, &t->stats);
  }
  /* After the others, which can't be forgotten meanwhile. */
  exports_add_forgotten (&sum.stats);
  if (totals != NULL)
    exports_forget_totals (totals, nr);
  return sum;
}

/* A moving average, so that the time left doesn't jump. */
static void
update_rate (const struct sum *sum)
{
  const uint64_t now = clock_now_ns ();
  double seconds, rate, weight;

  /* There may be less than before: another export, another size. */
  if (state.last_ns != 0 && sum->done >= state.last_bytes) {
    seconds = (double) (now - state.last_ns) / NS_PER_SECOND;
    rate = (sum->done - state.last_bytes) / seconds;
    weight = state.bytes_per_second == 0 || seconds > RATE_SECONDS
      ? 1 : seconds / RATE_SECONDS;
    state.bytes_per_second += weight * (rate - state.bytes_per_second);
  }
  state.last_ns = now;
  state.last_bytes = sum->done;
}

static void
format_progress (const struct sum *sum, struct progress_line *line)
{
  const uint64_t left = sum->done < sum->size ? sum->size - sum->done : 0;

  /* 100 % is for when nothing is left. */
  add (line, "scan: %3d%% ", (int) (100.0 * sum->done / sum->size));
  add_size (line, sum->done);
  add (line, " of ");
  add_size (line, sum->size);
  if (sum->running && left > 0 && state.bytes_per_second >= 1) {
    const uint64_t seconds = left / state.bytes_per_second;

    add (line, ", ");
    add_size (line, state.bytes_per_second);
    add (line, "/s, %" PRIu64 ":%02" PRIu64 " left", seconds / 60,
         seconds % 60);
  }
  if (sum->holes > 0) {
    add (line, ", ");
    add_size (line, sum->holes);
    add (line, " of holes skipped");
  }
  if (sum->stats.reads > 0)
    add (line, ", %" PRIu64 " of %" PRIu64 " reads found prefetched",
         sum->stats.hits, sum->stats.reads);
  if (sum->stats.failures > 0)
    add (line, ", %" PRIu64 " failed", sum->stats.failures);
}

/* What all the scanning was good for. */
static void
format_result (const struct sum *sum, struct progress_line *line)
{
  const struct stats_totals *stats = &sum->stats;

  add (line, "scan: of %" PRIu64 " reads %" PRIu64 " found what they wanted "
       "prefetched and %" PRIu64 " came late; ", stats->reads, stats->hits,
       stats->late);
  add_size (line, stats->prefetched_bytes);
  add (line, " prefetched, ");
  add_size (line, sum->unread);
  add (line, " of it never read");
}

/* Why a scan may not be worth it, or NULL. */
static const char *
advice (const struct stats_totals *stats)
{
  if (stats->reads < ENOUGH || stats->prefetches == 0)
    return NULL;
  if (stats->prefetches >= ENOUGH &&
      stats->prefetch_ns / stats->prefetches < NEAR_NS)
    return "the source answers within a millisecond, so a scan can save "
      "little; it may be left out";
  if (stats->late > stats->reads / 2)
    return "the client asks for data as fast as a scan gets it, so a scan can "
      "save little; it may be left out";
  if (stats->hits + stats->late < stats->reads / 10 &&
      stats->prefetched_bytes > stats->read_bytes)
    return "few reads found what they wanted; try scan-policy=adaptive, or "
      "scan-policy=replay with a trace of what the client reads, or no scan";
  return NULL;
}

static bool
is_terminal (void)
{
  return isatty (STDERR_FILENO);
}

/* How many bytes of a line fit into one of the terminal: from a longer one the cursor
 * would not come back to where it began.  What stands last matters least.
 */
static size_t
width_that_fits (size_t width)
{
  struct winsize size;

  /* The last column is left, as some terminals go on from there at once. */
  if (ioctl (STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1 &&
      width >= size.ws_col)
    return size.ws_col - 1;
  return width;
}

static void
show (bool last)
{
  const struct sum sum = sum_up ();
  struct progress_line line = { .used = 0 };
  const char *text;
  size_t covered;
  int steps;

  if (sum.size == 0)
    return;
  update_rate (&sum);
  format_progress (&sum, &line);
  if (is_terminal ()) {
    /* Blanks cover what a longer line before this one left. */
    line.used = width_that_fits (line.used);
    covered = width_that_fits (state.width);
    fprintf (stderr, "\r%.*s%*s%s", (int) line.used, line.text,
             covered > line.used ? (int) (covered - line.used) : 0, "",
             last ? "\n" : "");
    state.width = line.used;
  }
  else {
    steps = (double) sum.done / sum.size * 100 / STEP_PERCENT;
    if (steps > state.steps || (last && sum.done != state.shown)) {
      fprintf (stderr, "%s\n", line.text);
      state.shown = sum.done;
    }
    state.steps = steps;
  }
  if (last && sum.stats.reads > 0) {
    line = (struct progress_line) { .used = 0 };
    format_result (&sum, &line);
    fprintf (stderr, "%s\n", line.text);
    text = advice (&sum.stats);
    if (text != NULL)
      fprintf (stderr, "scan: %s\n", text);
  }
  fflush (stderr);
}

void
progress_update (void)
{
  show (false);
}

void
progress_end (void)
{
  show (true);
}
