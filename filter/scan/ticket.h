/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Room to read the source, within what all scans of the server may read.
 *
 * A scan takes room for a block before it asks its policy, so that the answer
 * is not stale by the time there is room; it gives the room back before it
 * waits for anything but the source.
 *
 * For the decider only.
 */

#ifndef SCAN_TICKET_H
#define SCAN_TICKET_H

#include <stdbool.h>
#include <stdint.h>

struct scanner;

struct ticket {
  uint32_t bytes;               /* taken and not yet used */
};

/* See that there is room for some bytes, a block at most; waits for it until
 * the scan stops, which needs none.  Returns false if there never will be.
 */
extern bool ticket_take (struct scanner *s);

/* So many bytes of it, which it has, are being read; gives back the rest. */
extern void ticket_use (struct scanner *s, uint32_t bytes);

/* Give it back. */
extern void ticket_give (struct scanner *s);

#endif /* SCAN_TICKET_H */
