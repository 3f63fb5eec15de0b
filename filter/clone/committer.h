/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* The thread that makes durable, every now and then, what no client has asked
 * to be flushed: what was fetched; and that writes the counters.
 */

#ifndef CLONE_COMMITTER_H
#define CLONE_COMMITTER_H

/* After the server has forked.  Returns -1 after nbdkit_error. */
extern int committer_start (void);

/* Commits once more, so that counters written after it tell all that is durable.  Nothing
 * if it was not started.
 */
extern void committer_stop (void);

#endif /* CLONE_COMMITTER_H */
