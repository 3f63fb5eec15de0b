/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* exports: whose clone is closed, and when. */

#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "check.h"
#include "clone/exports.h"
#include "clone/options.h"
#include "stubs.h"

struct options options;

/* -- stores that hold nothing ---------------------------------------------- */

static struct store *watched;
static sem_t looked_at;         /* the watched one has been */
static unsigned closed, closed_dirty;

/* While the watched one is committed: told, and waited for. */
static sem_t committing, may_commit;
static bool hold_commits;
static int commit_result;
static unsigned commits;

static atomic_bool is_locked;   /* by another server */
static atomic_uint tries;       /* to open what is locked */

struct store *
store_open (const char *path, const char *expect_name, bool *missing, bool *busy)
{
  *missing = false;
  if (atomic_load (&is_locked)) {
    atomic_fetch_add (&tries, 1);
    if (busy != NULL)
      *busy = true;
    return NULL;
  }
  return calloc (1, sizeof (struct store));
}

struct store *
store_create (const char *path, const char *export_name, uint64_t size)
{
  struct store *store = calloc (1, sizeof *store);

  if (store == NULL)
    abort ();
  store->size = size;
  return store;
}

void
store_close (struct store *store)
{
  closed += store != NULL;
  closed_dirty += store != NULL && store->data_dirty;
  free (store);
}

int
store_commit (struct store *store)
{
  commits++;
  if (commit_result == 0)
    store->data_dirty = false;
  if (hold_commits && store == watched) {
    sem_post (&committing);
    sem_wait (&may_commit);
  }
  return commit_result;
}

bool
store_dirty (const struct store *store)
{
  if (store == watched)
    sem_post (&looked_at);
  return store->data_dirty;
}

bool
store_is_named (const struct store *store)
{
  return true;
}

uint64_t
store_durable (const struct store *store)
{
  return 0;
}

bool
map_written (const struct map *map)
{
  return false;
}

/* -------------------------------------------------------------------------- */

static struct export *
use (unsigned n)
{
  char name[8];
  struct export *export;

  snprintf (name, sizeof name, "%u", n);
  export = exports_get (name, false);
  if (export == NULL || exports_open_store (export) == -1)
    abort ();
  return export;
}

static void *
put (void *export)
{
  exports_put (export);
  return NULL;
}

/* The oldest is about to be closed, as it is one too many, when a client comes
 * for it, writes and goes.
 */
static void
test_one_that_is_used_meanwhile (void)
{
  struct export *first, *last;
  pthread_t thread;
  unsigned n;

  sem_init (&looked_at, 0, 0);
  first = use (0);
  exports_put (first);
  for (n = 1; n < EXPORTS_IDLE_MAX; ++n)
    exports_put (use (n));
  last = use (n);

  watched = first->store;
  pthread_mutex_lock (&first->lock);
  if (pthread_create (&thread, NULL, put, last) != 0)
    abort ();
  sem_wait (&looked_at);
  /* Now it has been chosen, or is while this waits for the list. */
  if (exports_get ("0", false) != first)
    abort ();
  first->store->data_dirty = true;
  exports_put (first);
  pthread_mutex_unlock (&first->lock);
  pthread_join (thread, NULL);
  check (first->store == watched, "it stays open");
  check (closed_dirty == 0 && !watched->data_dirty,
         "and what has been written is committed");
  check (closed == 1, "so the next is one too many");

  exports_free ();
  check (closed == EXPORTS_IDLE_MAX + 1 && closed_dirty == 0,
         "at the end all are closed, after a commit");
}

/* A client comes, writes and goes while the one before commits, as it leaves. */
static void
test_a_write_while_the_last_user_leaves (void)
{
  struct export *export = use (0);
  pthread_t thread;

  sem_init (&committing, 0, 0);
  sem_init (&may_commit, 0, 0);
  watched = export->store;
  watched->data_dirty = true;
  hold_commits = true;
  commits = 0;
  if (pthread_create (&thread, NULL, put, export) != 0)
    abort ();
  sem_wait (&committing);
  use (0);
  watched->data_dirty = true;
  exports_put (export);
  hold_commits = false;
  sem_post (&may_commit);
  pthread_join (thread, NULL);
  check (!watched->data_dirty && commits == 2, "both are committed");

  use (0);
  watched->data_dirty = true;
  commit_result = 5;
  exports_put (export);
  check (export->users == 0 && commits == 3, "one that can't be is tried once");
  commit_result = 0;
  exports_free ();
}

static unsigned
count_exports (void)
{
  struct export *export;
  uint64_t number = 0;
  unsigned n = 0;

  for (; (export = exports_after (number)) != NULL; ++n) {
    number = export->number;
    exports_leave (export);
  }
  return n;
}

/* What an export has counted is kept while it is not open, and not for ever. */
static void
test_what_is_kept_of_those_that_are_closed (void)
{
  struct export *export = use (0);
  struct export_totals totals;
  unsigned n;

  count (&export->store->counters, COUNT_HITS, 7);
  exports_put (export);
  for (n = 1; n < EXPORTS_KNOWN_MAX; ++n)
    exports_put (use (n));
  check (exports_get_totals (export, &totals) && totals.counters[COUNT_HITS] == 7,
         "it is told while it is closed");
  export = use (0);
  count (&export->store->counters, COUNT_HITS, 1);
  check (exports_get_totals (export, &totals) && totals.counters[COUNT_HITS] == 8,
         "and goes on when it is opened again");
  exports_put (export);

  for (; n < 2 * EXPORTS_KNOWN_MAX; ++n)
    exports_put (use (n));
  check (count_exports () == EXPORTS_IDLE_MAX + EXPORTS_KNOWN_MAX,
         "the last that are closed are known");
  exports_free ();
}

/* The source of a temporary clone has another size, as the committer comes by. */
static void
test_one_that_is_visited (void)
{
  struct export *export, *visited;

  options.dir = NULL;
  export = exports_get ("", false);
  exports_make_store (export, 10);
  visited = exports_after (0);
  check (visited == export && exports_make_store (export, 20) == 0 &&
         export->store->size == 20, "it is begun anew all the same");
  exports_leave (visited);

  exports_get ("", false);
  check (exports_make_store (export, 30) == -1, "but not where it is in use");
  exports_put (export);
  exports_put (export);
  check (export->users == 0 && export->visitors == 0, "all have left");
  exports_free ();
}

static void *
open_store (void *export)
{
  return exports_open_store (export) == 0 ? export : NULL;
}

/* While a client waits for another server to end, who looks at the export does not. */
static void
test_one_that_is_locked (void)
{
  struct export *export = exports_get ("locked", false);
  pthread_t thread;
  void *result;
  int err;

  is_locked = true;
  if (pthread_create (&thread, NULL, open_store, export) != 0)
    abort ();
  stub_wait_for_debug ("is in use by another server");
  do
    err = pthread_mutex_trylock (&export->lock);
  while (err != 0 && atomic_load (&tries) > 1);       /* it tries again */
  check (err == 0, "it can be looked at");
  if (err == 0)
    pthread_mutex_unlock (&export->lock);
  is_locked = false;
  pthread_join (thread, &result);
  check (result == export && exports_store (export) != NULL, "and is opened then");
  exports_put (export);

  /* At last it is no server that ends, and nobody waits once more for the next export. */
  is_locked = true;
  export = exports_get ("stays locked", false);
  check (exports_open_store (export) == -1, "one that stays locked is refused");
  exports_put (export);
  tries = 0;
  export = exports_get ("locked, too", false);
  check (exports_open_store (export) == -1 && tries == 1, "and another at once");
  exports_put (export);
  is_locked = false;
  exports_free ();
}

int
main (void)
{
  options.dir = (char *) "/nowhere";
  test_one_that_is_used_meanwhile ();
  test_a_write_while_the_last_user_leaves ();
  test_what_is_kept_of_those_that_are_closed ();
  test_one_that_is_locked ();
  test_one_that_is_visited ();
  return done ();
}
