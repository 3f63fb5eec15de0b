/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Every read of the source that a scan does: kept apart from the clients'
 * writes, counted, and its failure told.  See scanner-internal.h.
 */

#include <errno.h>

#include "guard.h"
#include "scanner-internal.h"
#include "stats.h"

static void
note_failure (struct scanner *s, struct range range, int err)
{
  failures_add (&s->failures, range, err);
  reads_wake (s->reads);
}

void
fetch_prefetch (struct scanner *s, struct worker *w, struct range range)
{
  struct guard_op op;
  int err;

  if (!guard_begin_prefetch (&op, range)) {
    stats_prefetch_skipped (s->config.stats);
    note_failure (s, range, EBUSY);
    return;
  }
  stats_prefetch_begins (s->config.stats, range);
  err = source_prefetch (w->source, range, w->scratch);
  stats_prefetch_ends (s->config.stats, range, err == 0);
  guard_end (&op);
  if (err != 0)
    note_failure (s, range, err);
}

int
fetch_read (struct scanner *s, struct worker *w, struct range range, void *buf)
{
  struct guard_op op;
  int err;

  /* A layer that keeps what is read makes no difference between the two. */
  if (!guard_begin_prefetch (&op, range))
    return EBUSY;
  err = source_pread (w->source, range, buf);
  guard_end (&op);
  return err;
}
