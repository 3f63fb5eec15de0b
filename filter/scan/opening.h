/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* How a worker opens a source of its own, and what becomes of it.
 *
 * What can't be opened is tried again, after longer and longer times, by one
 * worker of a scan at a time; once one could, the others try at once.
 *
 * A scan of a connection ends with it, and so it need not care for a source
 * that goes away.  A scan in the background outlives that: what has failed is
 * opened again, at first at once and then after longer and longer times.  A client
 * that connects has just opened the layer below; then it is tried at once.  So is
 * what there was no room for, with nothing opened.
 *
 * What it opens is the default export.  A client that asks for that is told its name,
 * if it has one, and layers below know it under that name; so a scan that has not
 * opened anything yet takes over the name that the first client is told.
 *
 * Each worker calls these functions for itself; those that scanner.h has of this are for
 * any thread.
 */

#ifndef SCAN_OPENING_H
#define SCAN_OPENING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct scanner;
struct source;
struct worker;

/* Of a worker: what has failed is opened again. */
struct opening {
  uint64_t rest_ns;             /* between two attempts */
  uint64_t not_before_ns;       /* the next one */
};

/* Of a scan; protected by its lock, but for what is atomic. */
struct outage {
  unsigned workers;             /* that wait for their source to come back */
  unsigned calls;               /* of scanner_try_now */
  uint64_t rest_ns;             /* between two attempts of any of them */
  uint64_t next_ns;             /* when the next one is */
  bool is_told;                 /* all wait: the scan does not run */
  bool warned;
  atomic_bool is_full;          /* there was no room, and nothing was kept since */
};

/* In the background: the name to open; protected by the scan's lock. */
struct naming {
  char *name;                   /* or NULL: the one that the scan began with */
  bool is_final;                /* something has been opened under it */
};

/* Open a source, or try until it can be opened.  Returns NULL if the scan stops. */
extern struct source *opening_get (struct worker *w);

/* The worker's source has failed with this errno; 0: has not.  Returns true if
 * the same may be tried again: it is another source now, or there may be room by now for
 * what it fetches.
 */
extern bool opening_again (struct worker *w, int err);

/* Tell stats whether all workers wait, as that may have changed.  The scan's
 * lock must be held.
 */
extern void opening_count (struct scanner *s);

#endif /* SCAN_OPENING_H */
