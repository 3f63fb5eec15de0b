/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* clone-stats: the counters of all exports, in Prometheus' text format. */

#ifndef CLONE_STATS_FILE_H
#define CLONE_STATS_FILE_H

/* What the file begins with. */
#define STATS_FILE_BEGIN "# HELP nbdkit_clone_"

/* Write the file, if there is to be one.  Not from two threads at once.  Warns
 * once if that fails.
 */
extern void stats_file_write (void);

#endif /* CLONE_STATS_FILE_H */
