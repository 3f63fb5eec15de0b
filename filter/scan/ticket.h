/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Room to read the source, within what all scans of the server may read: on
 * the line (scan-pace), a second (scan-rate) and in all (scan-limit).
 *
 * A scan takes room before it asks its policy, so that the answer is not stale
 * by the time there is room; it gives the room back before it waits for
 * anything but the source.  On the line that is room for a piece.  Of the rate
 * it is what the last read has used, nothing at first, for a scan may never
 * read; the rest is paid for once the answer is known.  The limit keeps nobody
 * waiting, so nothing of it is held: it is only looked at, and drawn with the
 * answer.
 *
 * For the decider only, but ticket_begin and ticket_end, which are for the
 * worker that reads.
 */

#ifndef SCAN_TICKET_H
#define SCAN_TICKET_H

#include <stdbool.h>
#include <stdint.h>

#include "pace.h"

struct scanner;
struct worker;

struct ticket {
  bool is_held;
  uint32_t most;                /* bytes that one read may have, or last could;
                                 * 0 before the first */
  uint32_t paid;                /* bytes, of the rate */
  uint32_t last;                /* bytes that the last read had; 0 if none */
  struct pace_transfer transfer;
};

/* See that there is room for some bytes; waits for it until the scan stops,
 * which needs none, or, if it is not known yet what is to be read, has many reads
 * for its policy, which is asked then, before some are lost.  Returns false if
 * there never will be.
 */
extern bool ticket_take (struct scanner *s, bool is_known);

/* Bytes that the next read may have in one piece, 1 to a block: what there is room for,
 * or if it is not known, what there was room for last.
 */
extern uint32_t ticket_room (const struct scanner *s);

/* This worker will read so many bytes: pay for them, and hand it the room on
 * the line.  Waits for the rate.  Returns how many it may have, fewer than count
 * only if the limit says so; 0, with the ticket given back, if the limit is used
 * up or the scan stops.
 */
extern uint32_t ticket_use (struct scanner *s, struct worker *w,
                            uint32_t count);

/* Give it back, if there is one. */
extern void ticket_give (struct scanner *s);

/* The read is not done after all; its share of the limit is lost. */
extern void ticket_cancel (struct worker *w);

/* The read begins, and has ended: it brought count bytes, 0 if it failed. */
extern void ticket_begin (struct worker *w);
extern void ticket_end (struct worker *w, uint32_t count);

#endif /* SCAN_TICKET_H */
