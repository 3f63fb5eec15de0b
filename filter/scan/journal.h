/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* What clients read, in the file that scan-record names: blocks of 4096 bytes in
 * the order in which they were first read, merged with what earlier runs of the
 * server read.
 *
 * The file is a trace as scan.trace reads it, a range a line; behind a # stand
 * the runs, the newest first, 1 for those that read it:
 *
 *     # nbdkit scan trace: 3 runs
 *     1048576 8192 # 111
 *     4096 4096 # 101
 *
 * A plain list of "offset count" is taken as one run, up to 64 GiB of reads.  What most
 * of the runs read comes first, then the rest, both in the order of the newest run that
 * there is.  The last JOURNAL_RUNS_MAX runs count: what none of them read is
 * forgotten.
 *
 * A journal is for one thread at a time.  Only journal_open and journal_write
 * allocate: what a run adds has its room from the start.
 */

#ifndef SCAN_JOURNAL_H
#define SCAN_JOURNAL_H

#include <stdbool.h>
#include <stddef.h>

#include "range.h"

#define JOURNAL_BLOCK 4096

/* Most blocks of the file (1 GiB of them), and most that one run adds. */
#define JOURNAL_BLOCKS_MAX 262144
#define JOURNAL_RUNS_MAX 8

/* One line, without a full stop. */
#define JOURNAL_ERROR_MAX 512

struct journal;

/* Begin a run.  The file, if there is one, is read, and locked until the journal
 * is freed; it is not an error if there is none.  The path is kept, not copied.
 * Returns NULL after filling in error; busy: another server has the lock.
 */
extern struct journal *journal_open (const char *path, bool *busy,
                                     char error[JOURNAL_ERROR_MAX]);

/* NULL is allowed.  Writes nothing, and lets go of the lock. */
extern void journal_free (struct journal *j);

/* Can the file be written?  Tries it without touching the file.  Returns -1
 * after filling in error.
 */
extern int journal_probe (const char *path, char error[JOURNAL_ERROR_MAX]);

/* A client has read this.  Returns how many blocks of it are new to this run;
 * what there is no room for is left out.
 */
extern size_t journal_add (struct journal *j, struct range range);

/* How many blocks this run has read, and whether there is room for more. */
extern size_t journal_length (const struct journal *j);
extern bool journal_is_full (const struct journal *j);

/* Is this run long enough to count?  Not if it has read next to nothing of what
 * the runs before did: then it was no start, but something that had a look.
 */
extern bool journal_counts (const struct journal *j);

/* Write the file aside, and put it in place.  Whoever reads it sees the old one
 * or the new one.  Returns -1 with errno set, EEXIST if somebody else has put one
 * there since it was read or written.
 */
extern int journal_write (struct journal *j);

#endif /* SCAN_JOURNAL_H */
