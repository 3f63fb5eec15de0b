/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

#include <signal.h>
#include <stddef.h>

#include "file-limit.h"

void
file_limit_survive (void)
{
  struct sigaction sa;

  if (sigaction (SIGXFSZ, NULL, &sa) == 0 && sa.sa_handler == SIG_DFL) {
    sa.sa_handler = SIG_IGN;
    sigaction (SIGXFSZ, &sa, NULL);
  }
}
