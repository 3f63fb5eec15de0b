/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See exports.h. */

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <pthread.h>

#include <nbdkit-filter.h>

#include "cleanup.h"
#include "escape.h"
#include "exports.h"

/* Written at start-up only. */
static struct vm_config vm_config;

/* Guards the list and its order, and what is private in the exports and
 * generations.
 */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct export *exports;  /* most recently used first */
static struct stats_totals forgotten; /* what those counted that were let go */

/* -- making and freeing ---------------------------------------------------- */

static void
free_generation (struct generation *generation)
{
  if (generation == NULL)
    return;
  vm_free (generation->vm);
  map_free (generation->map);
  free (generation);
}

static struct generation *
new_generation (struct export *export)
{
  struct generation *generation = calloc (1, sizeof *generation);

  if (generation == NULL)
    return NULL;
  generation->export = export;
  generation->vm = vm_new (&vm_config);
  generation->map = map_new ();
  if (generation->vm == NULL || generation->map == NULL) {
    free_generation (generation);
    return NULL;
  }
  return generation;
}

static void
add_vm_totals (struct vm_totals *sum, struct vm *vm)
{
  struct vm_totals totals;

  vm_get_totals (vm, &totals);
  sum->decisions += totals.decisions;
  sum->lua_ns += totals.lua_ns;
}

/* Of all generations: those that have gone, and those still in use. */
static struct vm_totals
get_vm_totals (const struct export *export)
{
  const struct generation *generation;
  struct vm_totals sum = export->past;

  for (generation = export->generations; generation != NULL;
       generation = generation->next)
    add_vm_totals (&sum, generation->vm);
  return sum;
}

/* One line for the debug log. */
static void
log_totals (const struct export *export)
{
  struct stats_totals stats;
  const struct vm_totals vm = get_vm_totals (export);
  char name[ESCAPE_NAME_MAX];

  stats_get (export->stats, &stats);
  nbdkit_debug ("scan: export %s: %" PRIu64 " prefetches, %" PRIu64
                " bytes, %" PRIu64 " failed, %" PRIu64 " skipped; %" PRIu64
                " decisions",
                escape (ESCAPE_NAME, export->name, name, sizeof name),
                stats.prefetches, stats.prefetched_bytes, stats.failures,
                stats.skipped, vm.decisions);
}

static void
free_export (struct export *export)
{
  struct generation *generation;

  if (export == NULL)
    return;
  if (export->stats != NULL && export->generations != NULL)
    log_totals (export);
  while ((generation = export->generations) != NULL) {
    export->generations = generation->next;
    free_generation (generation);
  }
  stats_free (export->stats);
  free (export->name);
  free (export);
}

static struct export *
new_export (const char *name)
{
  struct export *export = calloc (1, sizeof *export);

  if (export == NULL)
    return NULL;
  export->name = strdup (name);
  export->stats = stats_new ();
  export->generations = new_generation (export);
  if (export->name == NULL || export->stats == NULL ||
      export->generations == NULL) {
    free_export (export);
    return NULL;
  }
  return export;
}

/* -- users, with the lock held --------------------------------------------- */

/* The export of this name, made if need be, moved to the front.  Returns NULL
 * if memory runs out.
 */
static struct export *
find_export (const char *name)
{
  struct export **p, *export;

  for (p = &exports; *p != NULL; p = &(*p)->next)
    if (strcmp ((*p)->name, name) == 0)
      break;
  export = *p;
  if (export != NULL)
    *p = export->next;
  else
    export = new_export (name);
  if (export != NULL) {
    export->next = exports;
    exports = export;
  }
  return export;
}

/* The generation of this size, made if need be, and the newest from now on. */
static struct generation *
find_generation (struct export *export, uint64_t size)
{
  struct generation **p, *generation;

  /* The one whose size isn't known yet has this one from now on. */
  for (p = &export->generations; *p != NULL; p = &(*p)->next)
    if (map_set_size ((*p)->map, size))
      break;
  generation = *p;
  if (generation != NULL)
    *p = generation->next;
  else {
    generation = new_generation (export);
    if (generation == NULL)
      return NULL;
    map_set_size (generation->map, size);
  }
  generation->next = export->generations;
  export->generations = generation;
  return generation;
}

/* Take out an old generation that nobody uses, or return NULL. */
static struct generation *
take_unused (struct export *export)
{
  struct generation **p, *generation;

  for (p = &export->generations->next; *p != NULL; p = &(*p)->next)
    if ((*p)->users == 0) {
      generation = *p;
      *p = generation->next;
      add_vm_totals (&export->past, generation->vm);
      return generation;
    }
  return NULL;
}

/* Take out the export that has been idle for longest, if there are too many;
 * or return NULL.
 */
static struct export *
take_surplus (void)
{
  struct stats_totals totals;
  struct export **p, *surplus;
  unsigned idle = 0;

  for (p = &exports; *p != NULL; p = &(*p)->next)
    if ((*p)->users == 0 && ++idle > EXPORTS_IDLE_MAX) {
      surplus = *p;
      *p = surplus->next;
      stats_get (surplus->stats, &totals);
      stats_add (&forgotten, &totals);
      return surplus;
    }
  return NULL;
}

static struct generation *
use (struct generation *generation)
{
  generation->users++;
  generation->export->users++;
  return generation;
}

/* -- the functions of exports.h -------------------------------------------- */

int
exports_init (const struct vm_config *config)
{
  struct generation *generation;
  char error[ESCAPE_TEXT_MAX];

  vm_config = *config;
  generation = exports_get_newest ("");
  if (generation == NULL) {
    nbdkit_error ("scan: malloc: %m");
    return -1;
  }
  if (vm_load (generation->vm) == -1) {
    nbdkit_error ("scan: %s", escape (ESCAPE_TEXT, vm_error (generation->vm),
                                      error, sizeof error));
    return -1;
  }
  generation->users--;          /* but the export is in use for ever */
  return 0;
}

void
exports_free (void)
{
  struct export *export;

  while ((export = exports) != NULL) {
    exports = export->next;
    free_export (export);
  }
}

struct generation *
exports_get (const char *name, uint64_t size)
{
  struct generation *generation = NULL, *unused = NULL;

  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lock);
    struct export *export = find_export (name);

    if (export != NULL)
      generation = find_generation (export, size);
    if (generation != NULL) {
      use (generation);
      unused = take_unused (export);
    }
  }
  free_generation (unused);
  return generation;
}

struct generation *
exports_get_newest (const char *name)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lock);
  struct export *export = find_export (name);

  return export ? use (export->generations) : NULL;
}

void
exports_put (struct generation *generation)
{
  struct generation *unused;
  struct export *surplus;

  if (generation == NULL)
    return;
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lock);

    generation->users--;
    generation->export->users--;
    unused = take_unused (generation->export);
    surplus = take_surplus ();
  }
  free_generation (unused);
  free_export (surplus);
}

/* Room for all exports, and a few that may come meanwhile. */
static struct export_totals *
new_totals (size_t *room)
{
  struct export *export;

  *room = 8;
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lock);

    for (export = exports; export != NULL; export = export->next)
      ++*room;
  }
  return calloc (*room, sizeof (struct export_totals));
}

struct export_totals *
exports_get_totals (size_t *nr)
{
  struct export_totals *totals, *t;
  struct export *export;
  size_t room;

  totals = new_totals (&room);
  if (totals == NULL)
    return NULL;
  *nr = 0;
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lock);

    for (export = exports; export && *nr < room; export = export->next) {
      t = &totals[(*nr)++];
      t->generation = use (export->generations);
      t->vm = get_vm_totals (export);
    }
  }
  for (t = totals; t < totals + *nr; ++t) {
    export = t->generation->export;
    t->name = export->name;
    if (vm_has_failed (t->generation->vm))
      t->error = vm_error (t->generation->vm);
    stats_get (export->stats, &t->stats);
    map_get (t->generation->map, &t->map);
  }
  return totals;
}

void
exports_forget_totals (struct export_totals *totals, size_t nr)
{
  size_t i;

  for (i = 0; i < nr; ++i)
    exports_put (totals[i].generation);
  free (totals);
}

void
exports_add_forgotten (struct stats_totals *sum)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lock);

  stats_add (sum, &forgotten);
}
