/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Every read of the source that a scan does: kept apart from the clients'
 * writes, counted, and its failure told.  See scanner-internal.h.
 */

#include "clock.h"
#include "guard.h"
#include "scanner-internal.h"
#include "stats.h"

/* Keep what became of a prefetch for the policy. */
static void
note_result (struct scanner *s, struct vm_result result)
{
  results_add (&s->results, result);
  if (result.err == 0) {
    failures_end_row (&s->failures);
    return;
  }
  failures_add (&s->failures, result.range, result.err,
                scan_phase (s) == SCAN_GOES_ON);
  reads_wake (s->reads);
}

static struct vm_result
prefetch_once (struct scanner *s, struct worker *w, struct range range)
{
  struct vm_result result = { .range = range };
  struct guard_op op;
  uint64_t started_ns;

  if (!guard_begin_prefetch (&op, range)) {
    stats_prefetch_skipped (s->config.stats);
    result.err = VM_SKIPPED;
    return result;
  }
  stats_prefetch_begins (s->config.stats);
  started_ns = clock_now_ns ();
  result.err = source_prefetch (w->source, range, w->scratch);
  result.ns = clock_now_ns () - started_ns;
  stats_prefetch_ends (s->config.stats, range, result.ns, result.err == 0);
  guard_end (&op);
  return result;
}

void
fetch_prefetch (struct scanner *s, struct worker *w, struct range range)
{
  struct vm_result result;

  ticket_begin (w);
  result = prefetch_once (s, w, range);
  ticket_end (w, result.err == 0 ? range.count : 0);
  /* Who waits for a source, or for room, has nothing on the line. */
  while (opening_again (w, result.err))
    result = prefetch_once (s, w, range);
  map_prefetch_ends (s->config.map, range, result.err == 0);
  note_result (s, result);
}

/* Returns 0 or an errno. */
static int
read_once (struct worker *w, struct range range, void *buf)
{
  struct guard_op op;
  int err = VM_SKIPPED;

  /* A layer that keeps what is read makes no difference between the two. */
  if (guard_begin_prefetch (&op, range)) {
    err = source_pread (w->source, range, buf);
    guard_end (&op);
  }
  return err;
}

int
fetch_read (struct scanner *s, struct worker *w, struct range range, void *buf)
{
  int err;

  ticket_begin (w);
  err = read_once (w, range, buf);
  ticket_end (w, err == 0 ? range.count : 0);
  while (opening_again (w, err))
    err = read_once (w, range, buf);
  if (err == 0)
    failures_end_row (&s->failures);
  else if (err != VM_SKIPPED)
    failures_count (&s->failures);
  return err;
}
