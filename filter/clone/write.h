/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* What changes the disk: writes, zeroes and trims.
 *
 * All go to the clone's file; with clone-write=through to the source first.  A
 * trim is a zero that gives the space back, so a disk reads the same whatever
 * is below.
 */

#ifndef CLONE_WRITE_H
#define CLONE_WRITE_H

#include <stdint.h>

#include "fetch.h"

/* Write these bytes or, if data is NULL, zeroes.  Flags are those of the
 * callbacks: NBDKIT_FLAG_FUA, and for zeroes NBDKIT_FLAG_MAY_TRIM and
 * NBDKIT_FLAG_FAST_ZERO.  Returns 0 or an errno.
 */
extern int write_disk (struct request *req, const void *data,
                       uint32_t count, uint64_t offset, uint32_t flags);

/* Make durable what has been written.  Returns 0 or an errno. */
extern int write_flush (const struct request *req);

#endif /* CLONE_WRITE_H */
