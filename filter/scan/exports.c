/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See exports.h. */

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <pthread.h>

#include <nbdkit-filter.h>

#include "exports.h"

/* Written at start-up only. */
static struct vm_config vm_config;
static bool want_map;

/* Leaf lock; guards the list, its order and the users of each export. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct export *exports;  /* most recently used first */

/* One line for the debug log. */
static void
log_totals (struct export *export)
{
  struct stats_totals stats;
  struct vm_totals vm;

  stats_get (export->stats, &stats);
  vm_get_totals (export->vm, &vm);
  nbdkit_debug ("scan: export '%s': %" PRIu64 " prefetches, %" PRIu64
                " bytes, %" PRIu64 " failed, %" PRIu64 " skipped; %" PRIu64
                " decisions", export->name, stats.prefetches,
                stats.prefetched_bytes, stats.failures, stats.skipped,
                vm.decisions);
}

static void
free_export (struct export *export)
{
  if (export == NULL)
    return;
  if (export->vm != NULL && export->stats != NULL)
    log_totals (export);
  vm_free (export->vm);
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
  export->vm = vm_new (&vm_config);
  export->stats = stats_new (want_map);
  if (export->name == NULL || export->vm == NULL || export->stats == NULL) {
    free_export (export);
    return NULL;
  }
  return export;
}

int
exports_init (const struct vm_config *config, bool map)
{
  struct export *export;

  vm_config = *config;
  want_map = map;
  export = exports_get ("");    /* and never put */
  if (export == NULL) {
    nbdkit_error ("scan: malloc: %m");
    return -1;
  }
  if (vm_load (export->vm) == -1) {
    nbdkit_error ("scan: %s", vm_error (export->vm));
    return -1;
  }
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

struct export *
exports_get (const char *name)
{
  struct export **p, *export;

  pthread_mutex_lock (&lock);
  for (p = &exports; *p != NULL; p = &(*p)->next)
    if (strcmp ((*p)->name, name) == 0)
      break;
  export = *p;
  if (export != NULL)
    *p = export->next;
  else
    export = new_export (name);
  if (export != NULL) {
    export->users++;
    export->next = exports;
    exports = export;
  }
  pthread_mutex_unlock (&lock);
  return export;
}

void
exports_put (struct export *export)
{
  struct export **p, *surplus = NULL;
  unsigned idle = 0;

  if (export == NULL)
    return;
  pthread_mutex_lock (&lock);
  export->users--;
  for (p = &exports; *p != NULL; p = &(*p)->next)
    if ((*p)->users == 0 && ++idle > EXPORTS_IDLE_MAX) {
      surplus = *p;
      *p = surplus->next;
      break;
    }
  pthread_mutex_unlock (&lock);
  free_export (surplus);
}

void
exports_for_each (void (*fn) (struct export *, void *), void *opaque)
{
  struct export *export;

  pthread_mutex_lock (&lock);
  for (export = exports; export != NULL; export = export->next)
    fn (export, opaque);
  pthread_mutex_unlock (&lock);
}
