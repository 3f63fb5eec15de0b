/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* The least filter that opens a context of its own for an export, as one that works
 * in the background has to.  For shared-context-export-name.
 */

#include <stddef.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-filter.h>

static int
probe_after_fork (nbdkit_backend *backend)
{
  nbdkit_next *next = nbdkit_next_context_open (backend, 1, "probe", 1);

  if (next != NULL)
    nbdkit_next_context_close (next);
  return 0;
}

static struct nbdkit_filter filter = {
  .name       = "shared-context",
  .after_fork = probe_after_fork,
};

NBDKIT_REGISTER_FILTER (filter)
