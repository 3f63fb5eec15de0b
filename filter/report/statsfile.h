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

/* At start-up, before the server may change its user: say with nbdkit_error what
 * is surely wrong with this path, which is absolute.  Returns 0 or -1.
 */
extern int statsfile_check (const char *path);

/* Write the file anew; policy is its name.  When that fails, warns the first
 * time.  For one thread at a time.
 */
extern void statsfile_write (const char *path, const char *policy);

#endif /* SCAN_STATSFILE_H */
