/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* scan-stats: the file with the counters.
 *
 * No lock is held while it is written, and nothing that isn't a regular file is
 * ever opened for longer than it takes to see that, so the writer can't be made
 * to wait by who reads the file.
 */

#ifndef SCAN_STATSFILE_H
#define SCAN_STATSFILE_H

#define STATSFILE_WHY_MAX 256

struct line;

/* Write the file anew; path is absolute, policy its name; line may
 * be NULL.  Returns 0, or -1 with
 * the reason in why.  For one thread at a time.
 */
extern int statsfile_write (const char *path, const char *policy,
                            struct line *line,
                            char why[STATSFILE_WHY_MAX]);

#endif /* SCAN_STATSFILE_H */
