/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See scans.h. */

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <pthread.h>

#include <nbdkit-filter.h>

#include "cleanup.h"
#include "scans.h"

struct scan {
  /* Immutable. */
  struct scanner *scanner;
  struct generation *generation;
  char *export_name;

  /* Protected by the lock. */
  struct scan *next;
  unsigned users;               /* who may call scanner_stop */
  bool left;                    /* by its connection */
  bool joined;                  /* or about to be, by scans_stop_all */
};

/* Guards the list and what is said above.  Taken before a scanner's lock. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct scan *scans;
static bool closed;

static void
free_scan (struct scan *scan)
{
  scanner_free (scan->scanner);
  exports_put (scan->generation);
  free (scan->export_name);
  free (scan);
}

/* The lock must be held. */
static void
unlink_scan (struct scan *scan)
{
  struct scan **p;

  for (p = &scans; *p != scan; p = &(*p)->next)
    ;
  *p = scan->next;
}

/* Take a scan off the list that nobody uses and whose threads have ended.
 * Returns NULL if there is none.
 */
static struct scan *
take_ended (void)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lock);
  struct scan *scan;

  for (scan = scans; scan != NULL; scan = scan->next)
    if (scan->left && scan->users == 0 && scanner_has_ended (scan->scanner)) {
      unlink_scan (scan);
      break;
    }
  return scan;
}

static void
free_ended (void)
{
  struct scan *scan;

  while ((scan = take_ended ()) != NULL)
    free_scan (scan);
}

/* Put a scan on the list.  Returns false if the server ends. */
static bool
add (struct scan *scan)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lock);

  if (closed)
    return false;
  scan->users = 1;
  scan->next = scans;
  scans = scan;
  return true;
}

struct scan *
scans_start (struct scanner_config *config, struct generation *generation)
{
  struct scan *scan;
  char *name;

  free_ended ();
  scan = calloc (1, sizeof *scan);
  name = strdup (config->export_name);
  if (scan == NULL || name == NULL) {
    nbdkit_error ("scan: warning: could not start a scan: %m, not scanning");
    exports_put (generation);
    free (name);
    free (scan);
    return NULL;
  }
  scan->generation = generation;
  scan->export_name = name;
  config->export_name = name;
  scan->scanner = scanner_start (config);
  if (scan->scanner == NULL || !add (scan)) {
    free_scan (scan);
    return NULL;
  }
  return scan;
}

struct scanner *
scans_get_scanner (struct scan *scan)
{
  return scan->scanner;
}

/* A scan that its connection has left: may it stay on the list? */
static bool
may_stay (struct scan *scan)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lock);
  const struct scan *other;
  unsigned left = 0;

  scan->users--;
  scan->left = true;
  for (other = scans; other != NULL; other = other->next)
    left += other->left;
  if (left <= SCANS_LEFT_MAX || scan->users > 0)
    return true;
  unlink_scan (scan);
  return false;
}

void
scans_leave (struct scan *scan)
{
  if (scan == NULL)
    return;
  scanner_stop (scan->scanner);
  if (!may_stay (scan))
    free_scan (scan);
  free_ended ();
}

/* Let all stop at once, and none start. */
static void
close_list (void)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lock);
  struct scan *scan;

  closed = true;
  for (scan = scans; scan != NULL; scan = scan->next)
    scanner_tell_stop (scan->scanner);
}

/* A scan to be joined, kept from being freed. */
static struct scan *
use_unjoined (void)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lock);
  struct scan *scan;

  for (scan = scans; scan != NULL; scan = scan->next)
    if (!scan->joined) {
      scan->joined = true;
      scan->users++;
      break;
    }
  return scan;
}

static void
disuse (struct scan *scan)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lock);

  scan->users--;
}

void
scans_stop_all (void)
{
  struct scan *scan;

  close_list ();
  while ((scan = use_unjoined ()) != NULL) {
    scanner_join (scan->scanner);
    disuse (scan);
  }
  free_ended ();
}
