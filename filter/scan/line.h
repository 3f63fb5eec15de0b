/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* The line to the source, which all scans and clients of the server share:
 * pace.h with a lock, a clock, and threads that wait.
 */

#ifndef SCAN_LINE_H
#define SCAN_LINE_H

#include <stdatomic.h>
#include <stdint.h>

#include "pace.h"

struct line;
struct reads;

/* Bytes of clients' reads of what was not there, that have begun and that have
 * ended, and how many are in flight; and first reads of what was prefetched, with
 * their bytes.  The read path adds to them, and nothing more.
 */
struct line_clients {
  atomic_uint_fast64_t begun, ended;
  atomic_uint reads;
  atomic_uint_fast64_t hits, hit_bytes;
};

/* For counters; 0 where it is not known yet. */
struct line_state {
  uint64_t window;              /* bytes in flight, ours and the clients' */
  uint64_t piece;               /* bytes */
  uint64_t bandwidth;           /* bytes a second */
  uint64_t latency_ns;
};

/* largest is the most bytes of one transfer; clients must outlive the line.
 * Returns NULL with errno set if memory runs out.
 */
extern struct line *line_new (uint32_t largest,
                              struct line_clients *clients);

/* NULL is allowed. */
extern void line_free (struct line *line);

/* Take room for a transfer, and wait for it as long as *stop is 0.  Returns how
 * many bytes it may have, 0 if it was stopped, or if reads is not NULL and many
 * are queued there; it notices both within PACE_RETRY_MAX_NS.
 */
extern uint32_t line_take (struct line *line, struct pace_transfer *transfer,
                           const atomic_int *stop, struct reads *reads);

/* Give back the room of a transfer that has not begun.  It may have none. */
extern void line_give (struct line *line, struct pace_transfer *transfer);

/* A transfer with room begins, and has ended: it brought count bytes, 0 if it
 * says nothing about the line.
 */
extern void line_begin (struct line *line, struct pace_transfer *transfer);
extern void line_end (struct line *line, struct pace_transfer *transfer,
                      uint32_t count);

extern void line_get (struct line *line, struct line_state *state);

#endif /* SCAN_LINE_H */
