/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Where holes are: what the source says of it, and what clients are told.
 *
 * Called from the callback of a request only, as fetch.h.
 */

#ifndef CLONE_EXTENTS_H
#define CLONE_EXTENTS_H

#include <stdbool.h>
#include <stdint.h>

#include "fetch.h"

/* These blocks, the first of which is absent, are about to be fetched: what is a
 * hole in the source needs no fetch, and is present afterwards.  Asks for much at a
 * time, and not again soon.
 */
extern void extents_learn (const struct request *req, uint64_t first,
                           uint64_t end);

/* A client's question; `one`: the first extent is enough.  The answer may fall short of
 * the count, but is never empty.  Returns -1 with *err set on failure, else 0.
 */
extern int extents_tell (const struct request *req, uint32_t count,
                         uint64_t offset, bool one,
                         struct nbdkit_extents *extents, int *err);

#endif /* CLONE_EXTENTS_H */
