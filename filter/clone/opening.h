/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* How a connection opens the layer below: when it is made or, where the source was
 * away then, by the first request that needs it and finds it there.
 */

#ifndef CLONE_OPENING_H
#define CLONE_OPENING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <nbdkit-filter.h>

#include "exports.h"
#include "fetch.h"

/* The layer below, opened after the connection was made. */
struct below {
  nbdkit_next *next;
  struct source source;
};

/* Of a connection that was made without the source. */
struct opening {
  /* Immutable. */
  struct export *export;
  nbdkit_context *context;      /* ours */
  char *name;                   /* by which the client asks for the disk */
  bool is_known;                /* to the layer below, while the client is served */

  /* Any thread.  Set once, while having the export's turn; stays. */
  _Atomic (struct below *) below;
  /* The source is there and has another size. */
  atomic_bool is_another;
};

/* May the calling thread's connection do without the source?  Not if there is none:
 * a scan's thread, which opens the disk for itself, tries again by itself.
 */
extern bool opening_is_for_client (void);

/* Ask all that is needed later: what the layer below can do has to be asked before it
 * is used.  Returns -1 after an error.
 */
extern int opening_ask (nbdkit_next *next, struct source *source, int readonly);

/* A connection is to be made without the source.  Returns NULL after nbdkit_error. */
extern struct opening *opening_new (struct export *export, nbdkit_context *context,
                                    const char *name);

/* While the connection is made: close what was opened and is of no use. */
extern void opening_give_up (struct opening *opening);

/* NULL is allowed. */
extern void opening_free (struct opening *opening);

/* An attempt to open the source of an export whose clone is there has ended.  Warns if
 * this is the beginning of an outage.
 */
extern void opening_tried (struct export *export, enum outage_turn turn, bool is_open);

/* The layer below if it is open by now; or NULL. */
static inline const struct below *
opening_below (struct opening *opening)
{
  return opening != NULL ? atomic_load (&opening->below) : NULL;
}

/* The same for a request that needs it: opens it, unless that was tried just now.  A
 * connection's thread, or a scan's.
 */
extern const struct below *opening_get (struct opening *opening);

#endif /* CLONE_OPENING_H */
