/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* scan-progress: how far the scans are, on stderr.  For one thread at a time. */

#ifndef SCAN_PROGRESS_H
#define SCAN_PROGRESS_H

/* Show how far all scans are now: on a terminal in one line that changes, else
 * in a line for each tenth of the way.
 */
extern void progress_update (void);

/* At the end of the server: show it a last time, then what it was good for. */
extern void progress_end (void);

#endif /* SCAN_PROGRESS_H */
