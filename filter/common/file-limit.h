/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* The limit for the size of files (ulimit -f, LimitFSIZE=). */

#ifndef FILE_LIMIT_H
#define FILE_LIMIT_H

/* A write beyond the limit ends the process, with all its clients, unless this signal
 * is ignored; then it is an error of that write, EFBIG.  To be called after the fork:
 * the command of --run is not to inherit it.
 */
extern void file_limit_survive (void);

#endif /* FILE_LIMIT_H */
