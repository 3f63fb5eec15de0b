/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See failures.h. */

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <string.h>

#include <nbdkit-filter.h>

#include "cleanup.h"
#include "clock.h"
#include "failures.h"

/* 1 ms, and ten seconds from the 14th doubling on. */
#define PAUSE_MIN_NS (NS_PER_SECOND / 1000)
#define PAUSE_MAX_NS (10 * NS_PER_SECOND)
#define PAUSE_DOUBLINGS_MAX 14

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

/* The lock must be held. */
static void
count (struct failures *failures)
{
  if (failures->in_a_row < UINT_MAX)
    failures->in_a_row++;
}

/* The lock must be held.  What there is no room for is not to be forgotten: rather
 * too much is looked at again.
 */
static void
append (struct failures *failures, struct vm_failure failure)
{
  struct vm_failure *last = &failures->list[FAILURES_MAX-1];

  if (failures->len < FAILURES_MAX) {
    failures->list[failures->len++] = failure;
    return;
  }
  last->range = range_cover (last->range, failure.range);
  if (last->err == VM_SKIPPED)
    last->err = failure.err;
}

/* Returns whether this is the first fault. */
static bool
keep (struct failures *failures, struct vm_failure failure)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&failures->lock);

  append (failures, failure);
  if (failure.err == VM_SKIPPED)
    return false;
  count (failures);
  if (failure.err == ENOSPC)
    failures->is_full = true;
  const bool first = !failures->warned;

  failures->warned = true;
  return first;
}

void
failures_tell_full (void)
{
  static atomic_bool told;

  if (!atomic_exchange (&told, true))
    nbdkit_error ("scan: the layer below has no space left for what is "
                  "prefetched (%s), so scans end, and one in the background waits "
                  "for room; the clone filter leaves clone-reserve of its file "
                  "system free, and the cow and cache filters keep it in TMPDIR, "
                  "which has to have room for all that is prefetched and written: "
                  "make room, or set clone-reserve, TMPDIR or scan-limit",
                  strerror (ENOSPC));
}

void
failures_add (struct failures *failures, struct range range, int err,
              bool goes_on)
{
  const bool first = keep (failures, (struct vm_failure) { range, err });

  if (err == ENOSPC)
    failures_tell_full ();
  else if (first && !goes_on)
    nbdkit_debug ("scan: prefetch of %" PRIu64 " bytes at offset %" PRIu64
                  " failed at the end of the scan: %s", range.count,
                  range.offset, strerror (err));
  else if (first)
    nbdkit_error ("scan: warning: prefetch of %" PRIu64 " bytes at offset %"
                  PRIu64 " failed: %s; the scan goes on, and will not warn "
                  "again", range.count, range.offset, strerror (err));
}

/* The policy need not know how: the client does. */
void
failures_add_read (struct failures *failures, struct range range)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&failures->lock);

  append (failures, (struct vm_failure) { range, EIO });
}

void
failures_count (struct failures *failures)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&failures->lock);

  count (failures);
}

void
failures_end_row (struct failures *failures)
{
  if (failures->in_a_row > 0) {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&failures->lock);

    failures->in_a_row = 0;
  }
}

uint64_t
failures_pause_ns (struct failures *failures)
{
  const unsigned doublings = failures->in_a_row / FAILURES_DOUBLE;

  if (doublings == 0)
    return 0;
  return doublings >= PAUSE_DOUBLINGS_MAX
    ? PAUSE_MAX_NS : PAUSE_MIN_NS << (doublings - 1);
}

bool
failures_is_full (struct failures *failures)
{
  return failures->is_full;
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
