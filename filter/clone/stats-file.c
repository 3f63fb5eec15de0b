/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See stats-file.h.
 *
 * The format wants all samples of one metric together, so the exports are gone
 * through once for each.
 */

#include <inttypes.h>
#include <stdio.h>

#include "counters-file.h"
#include "escape.h"
#include "exports.h"
#include "options.h"
#include "stats-file.h"

/* Of the clone, not of its counters. */
enum { VALUE_SIZE = NR_COUNTERS, VALUE_PRESENT, VALUE_BROKEN };

static const struct metric {
  const char *name, *type, *help;
  unsigned which;               /* enum counter, or one of the above */
} metrics[] = {
  { "nbdkit_clone_size_bytes", "gauge", "Size of the disk.", VALUE_SIZE },
  { "nbdkit_clone_present_bytes", "gauge",
    "Bytes of the disk that are in the clone, durably, in whole blocks.",
    VALUE_PRESENT },
  { "nbdkit_clone_broken", "gauge",
    "1 if the clone could not be made durable, and every write and flush fails.",
    VALUE_BROKEN },
  { "nbdkit_clone_hits_total", "counter",
    "Client reads of what was in the clone.", COUNT_HITS },
  { "nbdkit_clone_misses_total", "counter",
    "Client reads that had to read from the plugin.", COUNT_MISSES },
  { "nbdkit_clone_joins_total", "counter",
    "Reads and prefetches that waited for a fetch in flight.", COUNT_JOINS },
  { "nbdkit_clone_fetches_total", "counter",
    "Reads of the plugin that went well.", COUNT_FETCHES },
  { "nbdkit_clone_fetched_bytes_total", "counter",
    "Bytes that they brought.", COUNT_FETCHED_BYTES },
  { "nbdkit_clone_fetch_failures_total", "counter",
    "Reads of the plugin that failed.", COUNT_FETCH_FAILURES },
  { "nbdkit_clone_kept_bytes_total", "counter",
    "Bytes fetched and kept in the clone.", COUNT_KEPT_BYTES },
  { "nbdkit_clone_not_kept_total", "counter",
    "Fetches that were not kept, for lack of room or an error of the file.",
    COUNT_NOT_KEPT },
  { "nbdkit_clone_hole_bytes_total", "counter",
    "Bytes present without a fetch, as the source has holes there.",
    COUNT_HOLE_BYTES },
  { "nbdkit_clone_written_bytes_total", "counter",
    "Bytes written, zeroed and trimmed by clients.", COUNT_WRITTEN_BYTES },
  { "nbdkit_clone_commits_total", "counter",
    "Times that something new was made durable.", COUNT_COMMITS },
};

static uint64_t
value_of (const struct export_totals *totals, unsigned which)
{
  switch (which) {
  case VALUE_SIZE:
    return totals->size;
  case VALUE_PRESENT:
    return totals->present;
  case VALUE_BROKEN:
    return totals->is_broken;
  default:
    return totals->counters[which];
  }
}

static void
write_metric (FILE *fp, const struct metric *metric)
{
  struct export *export;
  struct export_totals totals;
  uint64_t number = 0;

  fprintf (fp, "# HELP %s %s\n# TYPE %s %s\n", metric->name, metric->help,
           metric->name, metric->type);
  while ((export = exports_after (number)) != NULL) {
    number = export->number;
    if (exports_get_totals (export, &totals)) {
      fprintf (fp, "%s{export=\"", metric->name);
      escape_to_file (ESCAPE_LABEL, export->name, fp);
      fprintf (fp, "\"} %" PRIu64 "\n", value_of (&totals, metric->which));
    }
    exports_leave (export);
  }
}

static int
write_counters (FILE *fp)
{
  size_t i;

  for (i = 0; i < sizeof metrics / sizeof metrics[0]; ++i)
    write_metric (fp, &metrics[i]);
  return 0;
}

void
stats_file_write (void)
{
  if (options.stats_file != NULL)
    counters_file_update ("clone-stats", options.stats_file, STATS_FILE_BEGIN,
                          write_counters);
}
