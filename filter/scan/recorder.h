/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* scan-record and scan-trace: what clients read is written to a file, for
 * later runs to replay.
 *
 * Scans hand over the reads that they see; a thread of its own notes them down
 * in a journal, and writes that every few seconds.  Reads beyond what is kept in
 * between are counted and left out.
 *
 * One run of the server is one recording, of one export: the first that is
 * scanned.  It is over when the client has read nothing new for RECORDER_IDLE_NS,
 * or goes on for RECORDER_MOST_NS, or the journal is full, or the server ends.
 * Before RECORDER_LEAST_BLOCKS were read, time ends nothing: something only had
 * a look.  For as long as it lasts the file is this server's; where there was none,
 * from when it is first written.
 */

#ifndef SCAN_RECORDER_H
#define SCAN_RECORDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "clock.h"
#include "met.h"

/* A guest that starts pauses for a few seconds at most. */
#define RECORDER_IDLE_NS (10 * NS_PER_SECOND)

/* What is read later than this is work, and no start. */
#define RECORDER_MOST_NS (600 * NS_PER_SECOND)

#define RECORDER_LEAST_BLOCKS 256

/* How often the file is written while there is something new. */
#define RECORDER_WRITE_NS (2 * NS_PER_SECOND)

/* Reads kept for the thread, which looks after them this often. */
#define RECORDER_READS_MAX 4096
#define RECORDER_LOOK_NS (NS_PER_SECOND / 10)

struct recorder;

/* At start-up, for the parameter of this name.  The path is kept, not copied.
 * Returns NULL after saying what is wrong with the file.  If another server
 * records in it, that is said, and nothing is recorded.
 */
extern struct recorder *recorder_new (const char *key, const char *path);

/* Start its thread: after fork, and as the user that the server has become.
 * Returns -1 after saying what is wrong; nothing is recorded then.
 */
extern int recorder_start (struct recorder *r);

/* Write what is new, say so, and end.  Other threads may go on to call what is for
 * any thread.  NULL is allowed.
 */
extern void recorder_stop (struct recorder *r);

/* The same, and free it.  NULL is allowed. */
extern void recorder_free (struct recorder *r);

/* Is this the export that is recorded?  The first that asks is.  Any thread. */
extern bool recorder_claim (struct recorder *r, const char *export_name);

/* Is it still recording?  NULL is allowed: no.  Any thread. */
extern bool recorder_is_on (const struct recorder *r);

/* Clients have read these, oldest first; and so many more that nobody kept.
 * Any thread; waits for nobody but for the leaf lock of the recorder.
 */
extern void recorder_add (struct recorder *r, const struct met_read *reads,
                          size_t n, unsigned lost);

/* What the thread does each time, at this time: look after the reads, write if
 * it is due, end if it is over.  For the thread, and for tests without one.
 */
extern void recorder_step (struct recorder *r, uint64_t now_ns);

#endif /* SCAN_RECORDER_H */
