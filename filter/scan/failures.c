/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See failures.h. */

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include <nbdkit-filter.h>

#include "cleanup.h"
#include "failures.h"

void
failures_init (struct failures *failures)
{
  pthread_mutex_init (&failures->lock, NULL);
}

void
failures_destroy (struct failures *failures)
{
  pthread_mutex_destroy (&failures->lock);
}

/* Returns whether this is the first fault. */
static bool
keep (struct failures *failures, struct vm_failure failure)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&failures->lock);
  const bool first = failure.err != EBUSY && !failures->warned;

  if (failures->len < FAILURES_MAX)
    failures->list[failures->len++] = failure;
  failures->warned = failures->warned || first;
  return first;
}

void
failures_add (struct failures *failures, struct range range, int err,
              bool goes_on)
{
  if (!keep (failures, (struct vm_failure) { range, err }))
    return;
  if (!goes_on)
    nbdkit_debug ("scan: prefetch of %" PRIu64 " bytes at offset %" PRIu64
                  " failed at the end of the scan: %s", range.count,
                  range.offset, strerror (err));
  else
    nbdkit_error ("scan: warning: prefetch of %" PRIu64 " bytes at offset %"
                  PRIu64 " failed: %s; the scan goes on, and will not warn "
                  "again", range.count, range.offset, strerror (err));
}

size_t
failures_take (struct failures *failures, struct vm_failure *out)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&failures->lock);
  const size_t n = failures->len;

  memcpy (out, failures->list, n * sizeof *out);
  failures->len = 0;
  return n;
}
