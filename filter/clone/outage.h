/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* A source that could not be opened: when to try again, and who does.
 *
 * One attempt at a time, and none sooner than a second after the last, however many
 * requests want it; nobody waits for another's for longer than that.  A client that
 * connects tries at any time, unless another attempt is under way.
 */

#ifndef CLONE_OUTAGE_H
#define CLONE_OUTAGE_H

#include <stdbool.h>
#include <stdint.h>

#include <pthread.h>

#include "clock.h"

/* From the end of an attempt to the next. */
#define OUTAGE_REST_NS NS_PER_SECOND

struct outage {
  pthread_mutex_t lock;         /* a leaf; guards the rest */
  pthread_cond_t ended;         /* an attempt has */
  bool is_known;                /* the last attempt has failed */
  bool is_tried;                /* by somebody who has the turn */
  uint64_t next_ns;             /* no sooner */
};

enum outage_turn {
  OUTAGE_NOT_NOW,               /* leave it */
  OUTAGE_TRY,                   /* this is the one attempt */
  OUTAGE_TRIED,                 /* somebody has, by now: look again */
  OUTAGE_NONE,                  /* as far as it is known: try, as others may */
};

extern void outage_init (struct outage *outage);
extern void outage_destroy (struct outage *outage);

/* A client connects: NOT_NOW, TRY or NONE. */
extern enum outage_turn outage_connect (struct outage *outage);

/* A request needs the source: NOT_NOW, TRY or TRIED. */
extern enum outage_turn outage_request (struct outage *outage);

/* The attempt has ended, for which `turn` was TRY or NONE.  True if this is the first
 * that has failed.
 */
extern bool outage_end (struct outage *outage, enum outage_turn turn, bool is_open);

#endif /* CLONE_OUTAGE_H */
