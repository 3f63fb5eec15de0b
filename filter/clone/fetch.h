/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Reads, and how what is absent comes to be present.
 *
 * Called from the callback of a request only, as the plugin's thread model is
 * kept by the server.  No lock and no claim to write is held while the plugin
 * works.
 */

#ifndef CLONE_FETCH_H
#define CLONE_FETCH_H

#include <stdbool.h>
#include <stdint.h>

#include <nbdkit-filter.h>

#include "store.h"

/* What the layer below said of itself when the connection was made. */
struct source {
  uint32_t minimum, maximum;    /* bytes of a request; 1 and UINT32_MAX: any */
  bool can_extents;
  /* For clone-write=through. */
  int can_zero, can_fua;
  bool can_fast_zero, can_flush;
};

struct opening;

/* One request: whose disk, and who to ask for what it lacks. */
struct request {
  struct store *store;
  const struct source *source;
  nbdkit_next *next;            /* NULL: the source is not open, and is opened so: */
  struct opening *opening;      /* when something absent is met; NULL: never */
};

/* All of these return 0 or an errno. */

/* A client's read. */
extern int fetch_read (struct request *req, void *buf, uint32_t count, uint64_t offset);

/* Bring what is absent of this range here.  Fails if it can't be kept, too: with ENOSPC
 * if there is no room for it.
 */
extern int fetch_cache (struct request *req, uint32_t count, uint64_t offset);

/* Make one block present, as a part of it is about to be written. */
extern int fetch_block (struct request *req, uint64_t block);

#endif /* CLONE_FETCH_H */
