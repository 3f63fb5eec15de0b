/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* What an operator sees while the server runs: scan-progress and scan-stats.
 * A thread of its own looks at the counters of all exports every second.
 *
 * These functions are for start-up and the end of the server.
 */

#ifndef SCAN_REPORT_H
#define SCAN_REPORT_H

struct line;

/* Before the server forks: see whether the file may be written.  line is NULL if scans
 * are not paced.  Returns -1 after nbdkit_error.
 */
extern int report_init (struct line *line);

/* After the fork, when the server may have become another user: write the file a first
 * time, and start reporting, if anything is wanted.
 */
extern void report_start (void);

/* At the end: report a last time.  No scan may run any more. */
extern void report_stop (void);

#endif /* SCAN_REPORT_H */
