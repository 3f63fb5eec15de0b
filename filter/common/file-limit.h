/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* The limit for the size of files (ulimit -f, LimitFSIZE=). */

#ifndef FILE_LIMIT_H
#define FILE_LIMIT_H

#include <signal.h>

/* A write beyond the limit ends the process, with all its clients, unless this signal
 * is ignored; then it is an error of that write, EFBIG.  To be called after the fork:
 * the command of --run is not to inherit it.
 */
extern void file_limit_survive (void);

/* The same before the fork, until the second is called with what the first has kept. */
extern void file_limit_survive_for_now (struct sigaction *before);
extern void file_limit_as_before (const struct sigaction *before);

#endif /* FILE_LIMIT_H */
