/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See metrics.h.
 *
 * The format wants all samples of one metric together, so the exports are gone
 * through once for each.
 */

#include <inttypes.h>
#include <string.h>

#include "exports.h"
#include "metrics.h"

enum metric_type { COUNTER, GAUGE };

struct metric {
  const char *name;
  enum metric_type type;
  const char *help;
  const char *label;            /* a label of this sample, or NULL */
  uint64_t (*value) (const struct stats_totals *, const struct vm_totals *);
  double scale;
};

#define STATS_VALUE(field)                                              \
  static uint64_t                                                       \
  value_##field (const struct stats_totals *stats,                      \
                 const struct vm_totals *vm)                            \
  {                                                                     \
    return stats->field;                                                \
  }

#define VM_VALUE(field)                                                 \
  static uint64_t                                                       \
  value_##field (const struct stats_totals *stats,                      \
                 const struct vm_totals *vm)                            \
  {                                                                     \
    return vm->field;                                                   \
  }

#define STATE_VALUE(name, state_)                                       \
  static uint64_t                                                       \
  value_##name (const struct stats_totals *stats,                       \
                const struct vm_totals *vm)                             \
  {                                                                     \
    return stats->state == state_;                                      \
  }

STATS_VALUE (size)
STATS_VALUE (position)
STATS_VALUE (prefetches)
STATS_VALUE (prefetched_bytes)
STATS_VALUE (failures)
STATS_VALUE (skipped)
STATS_VALUE (reads)
STATS_VALUE (read_bytes)
STATS_VALUE (hits)
STATS_VALUE (late)
STATS_VALUE (misses)
STATS_VALUE (covered_bytes)
STATS_VALUE (unread_bytes)
STATS_VALUE (hole_bytes)
VM_VALUE (decisions)
VM_VALUE (lua_ns)
STATE_VALUE (waiting, STATS_WAITING)
STATE_VALUE (running, STATS_RUNNING)
STATE_VALUE (finished, STATS_FINISHED)
STATE_VALUE (failed, STATS_FAILED)

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
  { "nbdkit_scan_prefetch_failures_total", COUNTER,
    "Prefetches that failed.", NULL, value_failures, 1 },
  { "nbdkit_scan_prefetches_skipped_total", COUNTER,
    "Prefetches left out because a client was writing there.", NULL,
    value_skipped, 1 },
  { "nbdkit_scan_covered_bytes", GAUGE,
    "Bytes of the disk that have been prefetched.", NULL,
    value_covered_bytes, 1 },
  { "nbdkit_scan_unread_bytes", GAUGE,
    "Bytes of the disk prefetched and not read by a client so far.", NULL,
    value_unread_bytes, 1 },
  { "nbdkit_scan_hole_bytes", GAUGE,
    "Bytes of the disk that the policy passed over as holes.", NULL,
    value_hole_bytes, 1 },
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

/* Write up to the end of the line, as the value of a label. */
static void
write_label (FILE *fp, const char *value)
{
  for (; *value && *value != '\n'; ++value) {
    if (*value == '"' || *value == '\\')
      fputc ('\\', fp);
    fputc (*value, fp);
  }
}

struct sample {
  FILE *fp;
  const struct metric *metric;
  const char *policy;
};

static void
write_sample (struct export *export, void *opaque)
{
  const struct sample *sample = opaque;
  const struct metric *metric = sample->metric;
  struct stats_totals stats;
  struct vm_totals vm;
  uint64_t value;

  stats_get (export->stats, &stats);
  vm_get_totals (export->vm, &vm);
  value = metric->value (&stats, &vm);

  fprintf (sample->fp, "%s{export=\"", metric->name);
  write_label (sample->fp, export->name);
  fprintf (sample->fp, "\"%s%s} ", metric->label ? "," : "",
           metric->label ? metric->label : "");
  if (metric->scale == 1)
    fprintf (sample->fp, "%" PRIu64 "\n", value);
  else
    fprintf (sample->fp, "%.9f\n", value * metric->scale);
}

/* The policy, and why it failed if it has. */
static void
write_info (struct export *export, void *opaque)
{
  const struct sample *sample = opaque;

  fprintf (sample->fp, "nbdkit_scan_policy_info{export=\"");
  write_label (sample->fp, export->name);
  fprintf (sample->fp, "\",policy=\"");
  write_label (sample->fp, sample->policy);
  fprintf (sample->fp, "\",error=\"");
  if (vm_has_failed (export->vm))
    write_label (sample->fp, vm_error (export->vm));
  fprintf (sample->fp, "\"} 1\n");
}

void
metrics_write (FILE *fp, const char *policy)
{
  struct sample sample = { .fp = fp, .policy = policy };
  size_t i;

  for (i = 0; i < sizeof metrics / sizeof metrics[0]; ++i) {
    sample.metric = &metrics[i];
    if (metrics[i].help != NULL)
      fprintf (fp, "# HELP %s %s\n# TYPE %s %s\n", metrics[i].name,
               metrics[i].help, metrics[i].name,
               metrics[i].type == COUNTER ? "counter" : "gauge");
    exports_for_each (write_sample, &sample);
  }
  fprintf (fp, "# HELP nbdkit_scan_policy_info The policy, and why it failed "
           "if it has.\n# TYPE nbdkit_scan_policy_info gauge\n");
  exports_for_each (write_info, &sample);
}
