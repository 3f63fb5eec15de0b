/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* The scans of the server, on one list: those of connections, whether or not
 * anybody says that a connection is over, and the one in the background.
 *
 * nbdkit calls neither .finalize nor .close once it has got a signal, and a
 * thread of ours that outlived the filter would kill it.  And a scan thread
 * may be opening the layer below when its client leaves: the client doesn't
 * wait for that, and the scan stays here until it has ended.
 *
 * Any thread may call these functions.
 */

#ifndef SCAN_SCANS_H
#define SCAN_SCANS_H

#include "exports.h"
#include "scanner.h"

/* So many scans whose clients have left may be on the list; for another one its
 * client waits.
 */
#define SCANS_LEFT_MAX 16

struct scan;

/* Start a scan of this disk; the name is copied.  Takes over the caller's use
 * of the generation, whatever comes of it.  Returns NULL after a warning if
 * there are no means for it, and with none after scans_stop_all.
 */
extern struct scan *scans_start (struct scanner_config *config,
                                 struct generation *generation);

/* What scanner_start and scanner_get_reads are about. */
extern struct scanner *scans_get_scanner (struct scan *scan);

/* The caller has done with it.  Stops it; waits for threads that are opening
 * the layer below only if too many scans do that.  NULL is allowed.
 */
extern void scans_leave (struct scan *scan);

/* The server ends: stop all scans, wait for all their threads, and start no
 * more.
 */
extern void scans_stop_all (void);

#endif /* SCAN_SCANS_H */
