/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* One clone for each export, shared by its connections. */

#ifndef CLONE_EXPORTS_H
#define CLONE_EXPORTS_H

#include <stdint.h>

#include <pthread.h>

#include "outage.h"
#include "store.h"

/* Clones that no connection uses stay open, up to this many. */
#define EXPORTS_IDLE_MAX 8

/* What is told of one that is not open any more is kept of the last so many. */
#define EXPORTS_KNOWN_MAX 256

/* Most exports whose changes are in temporary files, and so can't be let go. */
#define EXPORTS_TEMPORARY_MAX 256

/* What is known of an export's clone at one moment. */
struct export_totals {
  uint64_t size, present;       /* bytes */
  bool is_broken;
  uint64_t counters[NR_COUNTERS]; /* since the server was started */
};

struct export {
  /* Immutable. */
  char *name;
  char *path;                   /* of its file; NULL: temporary */
  uint64_t number;              /* exports are counted */

  /* Held by a user while it opens, makes or closes the store; guards these.  They may
   * also be looked at by the only user, and with the lock of the list if there is none.
   */
  pthread_mutex_t lock;
  struct store *store;          /* NULL: not open; stays while it is used */
  bool has_past;                /* it was open before */
  struct export_totals past;    /* when it was closed */

  /* Of its source; any thread, by itself. */
  struct outage outage;

  /* Protected by the lock of the list. */
  unsigned users;
  unsigned visitors;            /* of the users */
  struct export *next;
};

/* With clone-file, open the clone if there is one, so that what is wrong with
 * it is said before there are clients.  Changes nothing if it is open.  Returns -1 after
 * nbdkit_error.
 */
extern int exports_start (void);

/* Use an export, until exports_put.  NULL after nbdkit_error.
 *
 * one_disk: all names are names of one disk.  Then the empty name and any other mean the
 * same clone-file.  A scan in the background opens the empty one, before it is known by
 * which name clients will ask for the disk.
 */
extern struct export *exports_get (const char *name, bool one_disk);

/* NULL is allowed.  When the last user goes, commits. */
extern void exports_put (struct export *export);

/* Its store, or NULL; it stays while the caller uses the export. */
extern struct store *exports_store (struct export *export);

/* Open its clone if it is there and not open yet.  Returns -1 after
 * nbdkit_error.  export->store is NULL still if there is none.
 */
extern int exports_open_store (struct export *export);

/* After that, if there was none, make it.  Checks the size if there is one; a
 * temporary one of another size is begun anew, if that loses nothing.  Returns
 * -1 after nbdkit_error.
 */
extern int exports_make_store (struct export *export, uint64_t size);

/* Is this the size that its source, of which there is a clone, should have?  Returns -1
 * after nbdkit_error.
 */
extern int exports_check_size (const struct export *export, uint64_t size);

/* What is known of its clone, be it open or not.  False if it never was. */
extern bool exports_get_totals (struct export *export, struct export_totals *totals);

/* Go through the exports: the next after this number, until exports_leave, or NULL.  Who
 * visits an export keeps no client from a temporary clone begun anew, and so uses the
 * store of one only with the export's lock held.
 */
extern struct export *exports_after (uint64_t number);
extern void exports_leave (struct export *export);

/* Commit and close all.  When nobody uses one. */
extern void exports_free (void);

#endif /* CLONE_EXPORTS_H */
