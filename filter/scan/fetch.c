/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Every read of the source that a scan does: kept apart from the clients'
 * writes, counted, and its failure told.  See scanner-internal.h.
 */

#include "guard.h"
#include "scanner-internal.h"
#include "stats.h"

static void
note_result (struct scanner *s, struct range range, int err)
{
  if (err == 0) {
    failures_end_row (&s->failures);
    return;
  }
  failures_add (&s->failures, range, err);
  reads_wake (s->reads);
}

void
fetch_prefetch (struct scanner *s, struct worker *w, struct range range)
{
  struct guard_op op;
  int err = VM_SKIPPED;

  ticket_begin (w);
  if (guard_begin_prefetch (&op, range)) {
    stats_prefetch_begins (s->config.stats, range);
    err = source_prefetch (w->source, range, w->scratch);
    stats_prefetch_ends (s->config.stats, range, err == 0);
    guard_end (&op);
  }
  else
    stats_prefetch_skipped (s->config.stats);
  ticket_end (w, err == 0 ? range.count : 0);
  note_result (s, range, err);
}

int
fetch_read (struct scanner *s, struct worker *w, struct range range, void *buf)
{
  struct guard_op op;
  int err = VM_SKIPPED;

  ticket_begin (w);
  /* A layer that keeps what is read makes no difference between the two. */
  if (guard_begin_prefetch (&op, range)) {
    err = source_pread (w->source, range, buf);
    guard_end (&op);
  }
  ticket_end (w, err == 0 ? range.count : 0);
  return err;
}
