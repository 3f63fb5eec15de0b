/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See file-limit.h. */

#include <stddef.h>

#include "file-limit.h"

void
file_limit_survive_for_now (struct sigaction *before)
{
  struct sigaction sa;

  sigaction (SIGXFSZ, NULL, before);
  if (before->sa_handler != SIG_DFL)
    return;
  sa = *before;
  sa.sa_handler = SIG_IGN;
  sigaction (SIGXFSZ, &sa, NULL);
}

void
file_limit_as_before (const struct sigaction *before)
{
  sigaction (SIGXFSZ, before, NULL);
}

void
file_limit_survive (void)
{
  struct sigaction before;

  file_limit_survive_for_now (&before);
}
