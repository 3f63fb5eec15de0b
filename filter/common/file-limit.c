/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See file-limit.h. */

#include <signal.h>
#include <stddef.h>

#include "file-limit.h"

void
file_limit_survive (void)
{
  struct sigaction sa;

  sigaction (SIGXFSZ, NULL, &sa);
  if (sa.sa_handler != SIG_DFL)
    return;
  sa.sa_handler = SIG_IGN;
  sigaction (SIGXFSZ, &sa, NULL);
}
