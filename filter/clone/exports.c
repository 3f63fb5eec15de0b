/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See exports.h. */

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <nbdkit-filter.h>

#include "cleanup.h"
#include "clock.h"
#include "escape.h"
#include "exports.h"
#include "options.h"

/* What escapes can't make, as r is no digit. */
#define NAME_OF_DEFAULT "%root"

/* Guards the list, and users of each export.  It may be taken with an export's
 * lock held, not the other way round.
 */
static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static struct export *exports;  /* most recently used first */
static uint64_t last_number;

/* -- names ----------------------------------------------------------------- */

static bool
is_plain (unsigned char c, bool first)
{
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
    (c >= '0' && c <= '9') || c == '-' || c == '_' || (c == '.' && !first);
}

/* The name of an export's file in clone-dir, without the folder; freed by the
 * caller.  No two exports have the same, and none has a slash or begins with a
 * dot.  NULL with errno set: ENAMETOOLONG or ENOMEM.
 */
static char *
file_name (const char *export_name)
{
  static const char digits[] = "0123456789ABCDEF";
  const size_t len = strlen (export_name);
  unsigned char c;
  char *name, *p;
  size_t i;

  name = malloc (3 * len + sizeof NAME_OF_DEFAULT + sizeof CLONE_SUFFIX);
  if (name == NULL)
    return NULL;
  p = name;
  if (len == 0)
    p = stpcpy (p, NAME_OF_DEFAULT);
  for (i = 0; i < len; ++i) {
    c = export_name[i];
    if (is_plain (c, i == 0))
      *p++ = c;
    else {
      *p++ = '%';
      *p++ = digits[c >> 4];
      *p++ = digits[c & 15];
    }
  }
  p = stpcpy (p, CLONE_SUFFIX);
  if (p - name + strlen (MAP_SUFFIX) > NAME_MAX) {
    free (name);
    errno = ENAMETOOLONG;
    return NULL;
  }
  return name;
}

/* Where an export's clone is.  Returns -1 after nbdkit_error. */
static int
find_path (const char *export_name, char **path)
{
  CLEANUP_FREE char *name = NULL;
  char shown[128];

  *path = NULL;
  if (options.file != NULL) {
    *path = strdup (options.file);
    if (*path == NULL)
      goto no_memory;
  }
  else if (options.dir != NULL) {
    name = file_name (export_name);
    if (name == NULL && errno == ENAMETOOLONG) {
      nbdkit_error ("clone: the name of the export %s is too long for that of "
                    "a file in clone-dir",
                    escape (ESCAPE_NAME, export_name, shown, sizeof shown));
      return -1;
    }
    if (name == NULL || asprintf (path, "%s/%s", options.dir, name) == -1)
      goto no_memory;
  }
  return 0;

 no_memory:
  *path = NULL;
  nbdkit_error ("clone: malloc: %m");
  return -1;
}

/* -- the list -------------------------------------------------------------- */

static void
free_export (struct export *export)
{
  pthread_mutex_destroy (&export->lock);
  outage_destroy (&export->outage);
  free (export->name);
  free (export->path);
  free (export);
}

static struct export *
new_export (const char *name)
{
  struct export *export = calloc (1, sizeof *export);

  if (export == NULL) {
    nbdkit_error ("clone: malloc: %m");
    return NULL;
  }
  pthread_mutex_init (&export->lock, NULL);
  outage_init (&export->outage);
  export->name = strdup (name);
  if (export->name == NULL)
    nbdkit_error ("clone: malloc: %m");
  if (export->name == NULL || find_path (name, &export->path) == -1) {
    free_export (export);
    return NULL;
  }
  export->number = ++last_number;
  return export;
}

/* With the lock of the list held.  Takes it out of the list. */
static struct export *
take_named (const char *name)
{
  struct export **p, *export;

  for (p = &exports; (export = *p) != NULL; p = &export->next)
    if (strcmp (export->name, name) == 0) {
      *p = export->next;
      return export;
    }
  return NULL;
}

static unsigned
count_temporary (void)
{
  const struct export *e;
  unsigned n = 0;

  for (e = exports; e != NULL; e = e->next)
    n += e->path == NULL && (e->users > 0 || e->store != NULL);
  return n;
}

struct export *
exports_get (const char *name, bool one_disk)
{
  char has[ESCAPE_NAME_MAX], wanted[ESCAPE_NAME_MAX];
  struct export *export;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&list_lock);

  if (one_disk && options.file != NULL && exports != NULL &&
      (*name == '\0' || *exports->name == '\0'))
    name = exports->name;
  export = take_named (name);
  if (export == NULL) {
    if (options.file != NULL && exports != NULL) {
      nbdkit_error ("clone: clone-file=%s is for one export, and that is %s, "
                    "so %s can't be had; use clone-dir to clone several",
                    options.file,
                    escape (ESCAPE_NAME, exports->name, has, sizeof has),
                    escape (ESCAPE_NAME, name, wanted, sizeof wanted));
      return NULL;
    }
    export = new_export (name);
    if (export == NULL)
      return NULL;
    if (export->path == NULL && count_temporary () >= EXPORTS_TEMPORARY_MAX) {
      nbdkit_error ("clone: there are %d exports already whose changes are in "
                    "temporary files; use clone-dir", EXPORTS_TEMPORARY_MAX);
      free_export (export);
      return NULL;
    }
  }
  export->users++;
  export->next = exports;
  exports = export;
  return export;
}

/* Can it be let go and opened again as it was?  Not if its last commit has
 * failed, or another is due; nor if its files were removed or moved: there would be
 * none, or others, under their names.
 */
static bool
is_lasting (const struct export *export)
{
  const struct store *const store = export->store;

  if (store == NULL)
    return true;
  return export->path != NULL
    ? !atomic_load (&store->broken) && !store_dirty (store) && store_is_named (store)
    : !map_written (store->map);
}

/* One that nobody uses and that is one too many, as from exports_after; or
 * NULL.
 */
static struct export *
get_surplus (void)
{
  struct export *e;
  unsigned idle = 0;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&list_lock);

  for (e = exports; e != NULL; e = e->next)
    if (e->users == 0 && e->store != NULL && is_lasting (e) &&
        ++idle > EXPORTS_IDLE_MAX) {
      e->users++;
      e->visitors++;
      return e;
    }
  return NULL;
}

/* Take out of the list the one that has been closed for longest, if there are too many;
 * or return NULL.
 */
static struct export *
take_forgotten (void)
{
  struct export **p, *export;
  unsigned closed = 0;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&list_lock);

  for (p = &exports; (export = *p) != NULL; p = &export->next)
    if (export->users == 0 && export->store == NULL && ++closed > EXPORTS_KNOWN_MAX) {
      *p = export->next;
      return export;
    }
  return NULL;
}

static void
get_totals (const struct store *store, struct export_totals *totals)
{
  unsigned i;

  totals->size = store->size;
  totals->present = store_durable (store);
  totals->is_broken = atomic_load (&store->broken);
  for (i = 0; i < NR_COUNTERS; ++i)
    totals->counters[i] = atomic_load_explicit (&store->counters.values[i],
                                                memory_order_relaxed);
}

/* With the export's lock held, and nobody else who uses it. */
static void
close_store (struct export *export)
{
  if (export->store == NULL)
    return;
  get_totals (export->store, &export->past);
  export->has_past = true;
  store_close (export->store);
  export->store = NULL;
}

/* With the export's lock held.  Its counters go on where they were. */
static void
set_store (struct export *export, struct store *store)
{
  unsigned i;

  for (i = 0; store != NULL && i < NR_COUNTERS; ++i)
    store->counters.values[i] = export->past.counters[i];
  export->store = store;
}

/* It stays in the list until its store is closed, as nobody could open the
 * files before.
 */
static void
let_go (struct export *export)
{
  {
    bool stays;
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&export->lock);

    {
      ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&list_lock);

      /* Somebody has come for it, and may have left again. */
      stays = export->users > 1 || !is_lasting (export);
    }
    if (!stays)
      close_store (export);
  }
  exports_leave (export);
}

struct store *
exports_store (struct export *export)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&export->lock);

  return export->store;
}

static void
put (struct export *export, bool is_visitor)
{
  struct export *surplus;
  bool is_nothing;
  int err = 0;

  for (;;) {
    {
      ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&list_lock);

      /* The last user commits before it gives it up, so that nobody closes it
       * meanwhile; somebody may have come, written and left again by then.
       */
      if (err != 0 || export->users > 1 || export->store == NULL ||
          !store_dirty (export->store)) {
        export->visitors -= is_visitor;
        is_nothing = --export->users == 0 && export->store == NULL &&
          !export->has_past;
        if (is_nothing)
          take_named (export->name);
        break;
      }
    }
    err = store_commit (export->store);
  }
  if (is_nothing)
    free_export (export);
  while ((surplus = get_surplus ()) != NULL)
    let_go (surplus);
  while ((surplus = take_forgotten ()) != NULL)
    free_export (surplus);
}

void
exports_put (struct export *export)
{
  if (export != NULL)
    put (export, false);
}

void
exports_leave (struct export *export)
{
  put (export, true);
}

bool
exports_get_totals (struct export *export, struct export_totals *totals)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&export->lock);

  if (export->store != NULL)
    get_totals (export->store, totals);
  else
    *totals = export->past;
  return export->store != NULL || export->has_past;
}

struct export *
exports_after (uint64_t number)
{
  struct export *e, *best = NULL;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&list_lock);

  for (e = exports; e != NULL; e = e->next)
    if (e->number > number && (best == NULL || e->number < best->number))
      best = e;
  if (best != NULL) {
    best->users++;
    best->visitors++;
  }
  return best;
}

void
exports_free (void)
{
  struct export *export;

  while ((export = exports) != NULL) {
    exports = export->next;
    if (export->store != NULL)
      store_commit (export->store);
    store_close (export->store);
    free_export (export);
  }
}

/* -- stores ---------------------------------------------------------------- */

/* A server that was killed has its files locked until the last of its threads is out of the
 * kernel, where a write or a sync may take a while; one that is started at once tries for so
 * long after its start.
 */
#define BUSY_NS (5 * NS_PER_SECOND)
#define BUSY_WAIT_NS (NS_PER_SECOND / 10)

static _Atomic uint64_t start_ns; /* when files were first asked for; 0: not yet */

static bool
may_wait_for_locks (void)
{
  const uint64_t now_ns = clock_now_ns ();
  uint64_t not_yet = 0;

  atomic_compare_exchange_strong (&start_ns, &not_yet, now_ns);
  return now_ns - atomic_load (&start_ns) < BUSY_NS;
}

static void
wait_for_locks (const char *path)
{
  nbdkit_debug ("clone: %s is in use by another server, which may be about to end; "
                "waiting", path);
  clock_sleep_until (clock_now_ns () + BUSY_WAIT_NS);
}

int
exports_start (void)
{
  struct store *store;
  struct export *export;
  bool missing, busy;

  if (options.file == NULL || exports != NULL)
    return 0;
  for (;;) {
    busy = false;
    store = store_open (options.file, NULL, &missing,
                        may_wait_for_locks () ? &busy : NULL);
    if (!busy)
      break;
    wait_for_locks (options.file);
  }
  if (store == NULL)
    return missing ? 0 : -1;
  export = exports_get (store->export_name, false);
  if (export == NULL) {
    store_close (store);
    return -1;
  }
  export->store = store;
  exports_put (export);
  return 0;
}

int
exports_open_store (struct export *export)
{
  bool missing, busy;

  for (;;) {
    {
      ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&export->lock);

      if (export->store != NULL || export->path == NULL)
        return 0;
      busy = false;
      set_store (export, store_open (export->path, export->name, &missing,
                                     may_wait_for_locks () ? &busy : NULL));
      if (!busy)
        return export->store == NULL && !missing ? -1 : 0;
    }
    /* Without the lock: the committer takes it for each export. */
    wait_for_locks (export->path);
  }
}

/* With its lock held: is nothing lost if it is begun anew, and is nobody there
 * but the caller?
 */
static bool
is_idle_copy (const struct export *export)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&list_lock);

  return export->users - export->visitors == 1 && export->path == NULL &&
    !map_written (export->store->map);
}

/* How many clones are in clone-dir, by their maps, whoever has made them.  Returns -1
 * after nbdkit_error.
 */
static int64_t
count_clones (void)
{
  static const char suffix[] = CLONE_SUFFIX MAP_SUFFIX;
  const size_t length = sizeof suffix - 1;
  DIR *dir = opendir (options.dir);
  struct dirent *entry;
  int64_t n = 0;
  size_t end;

  if (dir == NULL) {
    nbdkit_error ("clone: %s: %m", options.dir);
    return -1;
  }
  while ((entry = readdir (dir)) != NULL) {
    end = strlen (entry->d_name);
    n += end > length && strcmp (entry->d_name + end - length, suffix) == 0;
  }
  closedir (dir);
  return n;
}

/* May another clone be begun?  Who connects may invent names, and some plugins take any.
 * Of those that come at the same time all may, if one may.
 */
static int
check_room (const struct export *export)
{
  char name[ESCAPE_NAME_MAX];
  int64_t n;

  if (options.dir == NULL)
    return 0;
  n = count_clones ();
  if (n == -1)
    return -1;
  if (n < options.max_exports)
    return 0;
  nbdkit_error ("clone: %s has %" PRIi64 " clones, as many as clone-max-exports=%u "
                "allows, so none is begun of the export %s", options.dir, n,
                options.max_exports,
                escape (ESCAPE_NAME, export->name, name, sizeof name));
  return -1;
}

int
exports_check_size (const struct export *export, uint64_t size)
{
  if (export->store->size == size)
    return 0;
  if (export->path == NULL)
    nbdkit_error ("clone: the source is %" PRIu64 " bytes now, and was %" PRIu64
                  " when its clone was begun, so it is another disk; the "
                  "clone, in a temporary file, is in use or holds what clients "
                  "have written, and is gone when nbdkit ends",
                  size, export->store->size);
  else
    nbdkit_error ("clone: the source is %" PRIu64 " bytes now, and was %" PRIu64
                  " when the clone %s was begun, so it is another disk; name "
                  "another file, or move both files away to begin anew",
                  size, export->store->size, export->path);
  return -1;
}

int
exports_make_store (struct export *export, uint64_t size)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&export->lock);

  if (export->store != NULL && export->store->size != size &&
      is_idle_copy (export))
    close_store (export);
  if (export->store == NULL) {
    if (check_room (export) == -1)
      return -1;
    set_store (export, store_create (export->path, export->name, size));
    return export->store == NULL ? -1 : 0;
  }
  return exports_check_size (export, size);
}
