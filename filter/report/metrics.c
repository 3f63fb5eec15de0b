/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See metrics.h.
 *
 * The format wants all samples of one metric together, so the exports are gone
 * through once for each.  A metric of two values has all exports' samples of the
 * one before those of the other.
 */

#include <inttypes.h>
#include <string.h>

#include "escape.h"
#include "metrics.h"

enum metric_type { COUNTER, GAUGE };

struct metric {
  const char *name;
  enum metric_type type;
  const char *help;
  const char *label;            /* a label of this sample, or NULL */
  uint64_t (*value) (const struct export_totals *);
  double scale;
};

#define VALUE(name, expression)                                         \
  static uint64_t                                                       \
  value_##name (const struct export_totals *t)                          \
  {                                                                     \
    return t->expression;                                               \
  }

VALUE (size, map.size)
VALUE (position, stats.position)
VALUE (prefetches, stats.prefetches)
VALUE (prefetched_bytes, stats.prefetched_bytes)
VALUE (in_flight, stats.in_flight)
VALUE (quiet_ns, stats.quiet_ns)
VALUE (failures, stats.failures)
VALUE (skipped, stats.skipped)
VALUE (reads, stats.reads)
VALUE (read_bytes, stats.read_bytes)
VALUE (hits, stats.hits)
VALUE (late, stats.late)
VALUE (misses, stats.misses)
VALUE (covered, map.covered)
VALUE (partly_covered, map.partly_covered)
VALUE (unread, map.unread)
VALUE (holes, map.holes)
VALUE (decisions, vm.decisions)
VALUE (lua_ns, vm.lua_ns)
VALUE (waiting, stats.state == STATS_WAITING)
VALUE (running, stats.state == STATS_RUNNING)
VALUE (finished, stats.state == STATS_FINISHED)
VALUE (failed, stats.state == STATS_FAILED)

/* Samples of one metric stand next to each other. */
static const struct metric metrics[] = {
  { "nbdkit_scan_size_bytes", GAUGE,
    "Size of the disk.", NULL, value_size, 1 },
  { "nbdkit_scan_position_bytes", GAUGE,
    "End of the last prefetch.", NULL, value_position, 1 },
  { "nbdkit_scan_prefetches_total", COUNTER,
    "Prefetches that have ended, well or not.", NULL, value_prefetches, 1 },
  { "nbdkit_scan_prefetched_bytes_total", COUNTER,
    "Bytes prefetched; a range prefetched twice counts twice.", NULL,
    value_prefetched_bytes, 1 },
  { "nbdkit_scan_prefetches_in_flight", GAUGE,
    "Prefetches on their way.", NULL, value_in_flight, 1 },
  { "nbdkit_scan_quiet_seconds", GAUGE,
    "While a scan runs, seconds since a prefetch began or ended: large with "
    "some in flight, the source has stalled.", NULL, value_quiet_ns, 1e-9 },
  { "nbdkit_scan_prefetch_failures_total", COUNTER,
    "Prefetches that failed.", NULL, value_failures, 1 },
  { "nbdkit_scan_prefetches_skipped_total", COUNTER,
    "Prefetches left out because a client was writing there.", NULL,
    value_skipped, 1 },
  { "nbdkit_scan_covered_bytes", GAUGE,
    "Bytes of the disk that have been prefetched.", NULL,
    value_covered, 1 },
  { "nbdkit_scan_partly_covered_bytes", GAUGE,
    "Bytes of those parts of the map of which some have been prefetched; how "
    "many is told in covered_bytes, but for what was forgotten.", NULL,
    value_partly_covered, 1 },
  { "nbdkit_scan_unread_bytes", GAUGE,
    "Bytes of the disk prefetched and not read by a client so far.", NULL,
    value_unread, 1 },
  { "nbdkit_scan_hole_bytes", GAUGE,
    "Bytes of the disk that the policy passed over as holes, and that were not "
    "prefetched.", NULL,
    value_holes, 1 },
  { "nbdkit_scan_reads_total", COUNTER,
    "Client reads.", NULL, value_reads, 1 },
  { "nbdkit_scan_read_bytes_total", COUNTER,
    "Bytes read by clients.", NULL, value_read_bytes, 1 },
  { "nbdkit_scan_reads_by_result_total", COUNTER,
    "Client reads by whether all of the range had been prefetched (hit), "
    "was still being prefetched (late), or was not (miss).",
    "result=\"hit\"", value_hits, 1 },
  { "nbdkit_scan_reads_by_result_total", COUNTER, NULL,
    "result=\"late\"", value_late, 1 },
  { "nbdkit_scan_reads_by_result_total", COUNTER, NULL,
    "result=\"miss\"", value_misses, 1 },
  { "nbdkit_scan_decisions_total", COUNTER,
    "Times that the policy was asked.", NULL, value_decisions, 1 },
  { "nbdkit_scan_policy_seconds_total", COUNTER,
    "Seconds spent in the policy.", NULL, value_lua_ns, 1e-9 },
  { "nbdkit_scan_state", GAUGE,
    "1 for the state that the export's scan is in.",
    "state=\"waiting\"", value_waiting, 1 },
  { "nbdkit_scan_state", GAUGE, NULL,
    "state=\"running\"", value_running, 1 },
  { "nbdkit_scan_state", GAUGE, NULL,
    "state=\"finished\"", value_finished, 1 },
  { "nbdkit_scan_state", GAUGE, NULL,
    "state=\"failed\"", value_failed, 1 },
};

static void
write_label (FILE *fp, const char *name, const char *value)
{
  fprintf (fp, "%s=\"", name);
  escape_to_file (ESCAPE_LABEL, value, fp);
  fputc ('"', fp);
}

static void
write_sample (FILE *fp, const struct metric *metric,
              const struct export_totals *totals)
{
  const uint64_t value = metric->value (totals);

  fprintf (fp, "%s{", metric->name);
  write_label (fp, "export", totals->name);
  fprintf (fp, "%s%s} ", metric->label ? "," : "",
           metric->label ? metric->label : "");
  if (metric->scale == 1)
    fprintf (fp, "%" PRIu64 "\n", value);
  else
    fprintf (fp, "%.9f\n", value * metric->scale);
}

/* The policy, and the first line of why it failed if it has. */
static void
write_info (FILE *fp, const char *policy, const struct export_totals *totals)
{
  const char *error = totals->error ? totals->error : "";
  char line[256];

  snprintf (line, sizeof line, "%.*s", (int) strcspn (error, "\n"), error);
  fprintf (fp, "nbdkit_scan_policy_info{");
  write_label (fp, "export", totals->name);
  fputc (',', fp);
  write_label (fp, "policy", policy);
  fputc (',', fp);
  write_label (fp, "error", line);
  fprintf (fp, "} 1\n");
}

void
metrics_write (FILE *fp, const char *policy,
               const struct export_totals *totals, size_t nr)
{
  size_t i, j;

  for (i = 0; i < sizeof metrics / sizeof metrics[0]; ++i) {
    if (metrics[i].help != NULL)
      fprintf (fp, "# HELP %s %s\n# TYPE %s %s\n", metrics[i].name,
               metrics[i].help, metrics[i].name,
               metrics[i].type == COUNTER ? "counter" : "gauge");
    for (j = 0; j < nr; ++j)
      write_sample (fp, &metrics[i], &totals[j]);
  }
  fprintf (fp, "# HELP nbdkit_scan_policy_info The policy, and why it failed "
           "if it has.\n# TYPE nbdkit_scan_policy_info gauge\n");
  for (j = 0; j < nr; ++j)
    write_info (fp, policy, &totals[j]);
}

static void
write_gauge (FILE *fp, const char *name, const char *help, double value)
{
  fprintf (fp, "# HELP nbdkit_scan_%s %s\n# TYPE nbdkit_scan_%s gauge\n"
           "nbdkit_scan_%s %.9g\n", name, help, name, name, value);
}

void
metrics_write_line (FILE *fp, const struct line_state *state)
{
  write_gauge (fp, "pace_window_bytes",
               "Most bytes on their way, clients' and prefetched; 0 until that "
               "is found.", state->window);
  write_gauge (fp, "pace_piece_bytes", "Most bytes of a prefetch.",
               state->piece);
  write_gauge (fp, "pace_bandwidth_bytes", "Bytes a second of the line.",
               state->bandwidth);
  write_gauge (fp, "pace_latency_seconds",
               "Least time that a prefetch has taken on the line.",
               state->latency_ns * 1e-9);
}
