/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* nbdkit clone filter: the server's callbacks.
 *
 * A local copy of a slow disk, usable at once, that fills as it is read and is
 * there after a restart.  This file tells the story of a connection and of its
 * requests:
 *
 *   exports.c      which clone belongs to which export; opened on first use
 *   default-export.c  what the layer below calls its default export
 *   opening.c      the layer below, also when it was away; outage.c says when to try
 *   store.c        the pair of files of one clone, and its commits
 *   map.c          which blocks are present; map-file.c has that on disk
 *   claims.c       who is fetching, storing and writing which absent blocks
 *   fetch.c        reads and prefetches
 *   extents.c      where holes are: asked of the source, and told to clients
 *   write.c        writes, zeroes and trims
 *   committer.c    the thread that commits in the background
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/stat.h>

#include <nbdkit-filter.h>

#include "cleanup.h"
#include "committer.h"
#include "contexts.h"
#include "default-export.h"
#include "exports.h"
#include "extents.h"
#include "fetch.h"
#include "file-limit.h"
#include "opening.h"
#include "options.h"
#include "plugin.h"
#include "stats-file.h"
#include "write.h"

/* Written before the server serves. */
static unsigned times_loaded;   /* all share these variables */
static uid_t user;              /* in .get_ready; another one may be to come */
static pid_t process;           /* too */

/* Per connection. */
struct handle {
  struct export *export;
  struct store *store;          /* NULL before .prepare, if it is to be made */
  bool has_source;              /* the layer below is open */
  struct source source;

  struct opening *opening;      /* NULL: it can't do without the source */
  enum outage_turn turn;        /* until .prepare; NOT_NOW: none */
};

/* -- start and end of the server ------------------------------------------- */

static void
clone_load (void)
{
  times_loaded++;
}

static int
clone_config (nbdkit_next_config *next, nbdkit_backend *nxdata,
              const char *key, const char *value)
{
  const int r = options_set (key, value);

  if (r != 0)
    return r == -1 ? -1 : 0;
  contexts_note (key);
  default_export_note_parameter (key);
  return next (nxdata, key, value);
}

static int
clone_config_complete (nbdkit_next_config_complete *next,
                       nbdkit_backend *nxdata)
{
  if (times_loaded > 1) {
    nbdkit_error ("clone: the filter is there %u times; a clone of a clone is "
                  "of no use, so leave out all but one --filter=clone",
                  times_loaded);
    return -1;
  }
  if (options_complete () == -1)
    return -1;
  return next (nxdata);
}

/* Is there something of the clone, and whose is it?  The map alone counts, too. */
static bool
is_begun (uid_t *owner)
{
  CLEANUP_FREE char *map = NULL;
  struct stat st;

  if (options.file == NULL)
    return false;
  if (lstat (options.file, &st) == -1) {
    if (asprintf (&map, "%s" MAP_SUFFIX, options.file) == -1) {
      map = NULL;
      return false;
    }
    if (lstat (map, &st) == -1)
      return false;
  }
  *owner = st.st_uid;
  return true;
}

/* What is wrong with a clone is said here, unless its file belongs to somebody that the
 * server may yet become: by .after_fork a command of --run has been started, and clients
 * are refused then.
 */
static int
clone_get_ready (int thread_model)
{
  uid_t owner;

  contexts_init ();
  user = geteuid ();
  process = getpid ();
  return is_begun (&owner) && owner == user ? exports_start () : 0;
}

/* The user of the server has changed by now, so files get the right owner, and it is
 * seen whether they may be opened.  After a fork they are opened again, too: the process
 * that runs the command of --run has what was open before, and so would keep the locks of
 * a server that is killed.  And nobody would be told that the server ends: the command would
 * wait for it, for ever.
 */
static int
clone_after_fork (nbdkit_backend *backend)
{
  const bool forked = getpid () != process;

  file_limit_survive ();
  if (geteuid () != user || forked)
    exports_free ();
  if (exports_start () == -1 && !forked)
    return -1;
  return committer_start ();
}

static void
clone_cleanup (nbdkit_backend *backend)
{
  committer_stop ();
  stats_file_write ();
}

static void
clone_unload (void)
{
  if (--times_loaded > 0)
    return;
  exports_free ();
  default_export_free ();
  options_free ();
}

/* -- connections ----------------------------------------------------------- */

/* May a connection do without the source?  A clone of nothing may not, as the source may
 * not have been there yet.
 */
static bool
can_do_without (const struct store *store)
{
  return store != NULL && store->size > 0 && !options.through;
}

/* The export of clone-file, to be left, if its clone was begun as the default export of
 * this asker and is of use without the source; else NULL.
 */
static struct export *
get_default_clone (unsigned asker)
{
  struct export *const export = options.file != NULL ? exports_after (0) : NULL;
  const struct store *const store = export != NULL ? exports_store (export) : NULL;

  if (can_do_without (store) && (store->default_askers & asker) != 0)
    return export;
  if (export != NULL)
    exports_leave (export);
  return NULL;
}

/* The nbd plugin says so, too, when its server is away. */
static bool
is_no_answer (const char *name)
{
  return name == NULL || (*name == '\0' && strcmp (plugin_name (), "nbd") == 0);
}

/* When the source is away the plugin may have no answer.  A complete clone needs none; but
 * one without a name could not have its source opened later without it.
 */
static const char *
clone_default_export (nbdkit_next_default_export *next, nbdkit_backend *backend,
                      int readonly, int is_tls)
{
  const unsigned asker = default_export_asker (readonly, is_tls);
  struct export *const clone = get_default_clone (asker);
  const char *name = NULL;

  if (clone == NULL || *clone->name == '\0' ||
      !map_complete (exports_store (clone)->map)) {
    name = next (backend, readonly);
    default_export_set_told (name != NULL);
    if (name != NULL)
      default_export_note (asker, name);
  }
  /* The export stays, as its clone does. */
  if (clone != NULL) {
    if (is_no_answer (name))
      name = clone->name;
    exports_leave (clone);
  }
  return name;
}

static int
clone_preconnect (nbdkit_next_preconnect *next, nbdkit_backend *backend, int readonly)
{
  default_export_set_told (false);
  return next (backend, readonly);
}

/* What has become of the attempt to open the source. */
static void
end_turn (struct handle *h, bool is_open)
{
  if (h->turn != OUTAGE_NOT_NOW)
    opening_tried (h->export, h->turn, is_open);
  h->turn = OUTAGE_NOT_NOW;
}

/* From now on until it is opened later. */
static void
do_without (struct handle *h)
{
  end_turn (h, false);
  h->has_source = false;
  h->store = exports_store (h->export);
}

/* Open the layer below, or do without where that can be done.  A complete clone needs no
 * source, so it is not even opened; but it may be found to be less later.
 */
static int
open_source (nbdkit_next_open *next, nbdkit_context *context, int readonly,
             const char *exportname, struct handle *h)
{
  struct store *const store = exports_store (h->export);
  const bool is_complete = can_do_without (store) && map_complete (store->map);
  bool is_to_be_tried = true;

  if (can_do_without (store) && opening_is_for_client ()) {
    h->opening = opening_new (h->export, context, exportname);
    if (h->opening == NULL)
      return -1;
  }
  if (is_complete) {
    h->store = store;
    return 0;
  }
  if (h->opening != NULL) {
    h->turn = outage_connect (&h->export->outage);
    is_to_be_tried = h->turn != OUTAGE_NOT_NOW;
  }
  h->has_source = is_to_be_tried &&
    next (context, readonly || !options.through, exportname) != -1;
  if (h->has_source)
    return 0;
  if (h->opening == NULL)
    return -1;
  do_without (h);
  return 0;
}

static void *
clone_open (nbdkit_next_open *next, nbdkit_context *context,
            int readonly, const char *exportname, int is_tls)
{
  struct handle *h = calloc (1, sizeof *h);

  if (h == NULL) {
    nbdkit_error ("clone: malloc: %m");
    return NULL;
  }
  h->export = exports_get (exportname, contexts_one_disk ());
  if (h->export != NULL && exports_open_store (h->export) == 0 &&
      open_source (next, context, readonly, exportname, h) == 0)
    return h;
  exports_put (h->export);
  free (h);
  return NULL;
}

static void
clone_close (void *handle)
{
  struct handle *h = handle;

  if (h->turn == OUTAGE_TRY)    /* a layer below could not be prepared */
    end_turn (h, false);
  opening_free (h->opening);
  exports_put (h->export);
  free (h);
}

static int
clone_prepare (nbdkit_next *next, void *handle, int readonly)
{
  struct handle *h = handle;
  int64_t size;

  if (!h->has_source)
    return 0;
  size = next->get_size (next);
  if (size == -1 || opening_ask (next, &h->source, readonly) == -1) {
    if (h->opening == NULL)
      return -1;
    opening_give_up (h->opening);
    do_without (h);
    return 0;
  }
  end_turn (h, true);
  if (exports_make_store (h->export, size) == -1)
    return -1;
  h->store = exports_store (h->export);
  return 0;
}

/* -- what the disk is like ------------------------------------------------- */

static int64_t
clone_get_size (nbdkit_next *next, void *handle)
{
  struct handle *h = handle;

  return h->store->size;
}

static const char *
clone_export_description (nbdkit_next *next, void *handle)
{
  struct handle *h = handle;

  return h->has_source ? next->export_description (next) : NULL;
}

/* What is written to the clone only may be of any size. */
static int
clone_block_size (nbdkit_next *next, void *handle, uint32_t *minimum,
                  uint32_t *preferred, uint32_t *maximum)
{
  struct handle *h = handle;

  *minimum = *preferred = *maximum = 0;
  if (h->has_source &&
      next->block_size (next, minimum, preferred, maximum) == -1)
    return -1;
  if (options.through && *minimum != 0)
    return 0;
  *minimum = 1;
  if (*preferred < h->store->block_size)
    *preferred = h->store->block_size;
  *maximum = UINT32_MAX;
  return 0;
}

/* The clone is on a local disk, of which we know nothing. */
static int
clone_is_rotational (nbdkit_next *next, void *handle)
{
  return 0;
}

static int
clone_can_write (nbdkit_next *next, void *handle)
{
  return options.through ? next->can_write (next) : 1;
}

static int
clone_can_flush (nbdkit_next *next, void *handle)
{
  return 1;
}

static int
clone_can_fua (nbdkit_next *next, void *handle)
{
  return NBDKIT_FUA_NATIVE;
}

static int
clone_can_zero (nbdkit_next *next, void *handle)
{
  struct handle *h = handle;

  return options.through && h->source.can_zero == NBDKIT_ZERO_NONE
    ? NBDKIT_ZERO_NONE : NBDKIT_ZERO_NATIVE;
}

/* The server dies of a client that asks for it where this is not said (seen with nbdkit
 * 1.32.5); what can't be fast is refused.
 */
static int
clone_can_fast_zero (nbdkit_next *next, void *handle)
{
  return 1;
}

static int
clone_can_trim (nbdkit_next *next, void *handle)
{
  struct handle *h = handle;

  return !options.through || h->source.can_zero != NBDKIT_ZERO_NONE;
}

static int
clone_can_extents (nbdkit_next *next, void *handle)
{
  return 1;
}

/* A flush of one connection covers the writes of all; below us that is for the
 * plugin to say.
 */
static int
clone_can_multi_conn (nbdkit_next *next, void *handle)
{
  return options.through ? next->can_multi_conn (next) : 1;
}

static int
clone_can_cache (nbdkit_next *next, void *handle)
{
  return NBDKIT_CACHE_NATIVE;
}

/* -- requests -------------------------------------------------------------- */

static struct request
request_of (nbdkit_next *next, const struct handle *h)
{
  static const struct source none = { .minimum = 1, .maximum = UINT32_MAX };
  const struct below *const below = opening_below (h->opening);

  return (struct request) {
    .store = h->store,
    .source = h->has_source ? &h->source : below != NULL ? &below->source : &none,
    .next = h->has_source ? next : below != NULL ? below->next : NULL,
    .opening = h->opening,
  };
}

/* What a callback says of an errno. */
static int
result (int r, int *err)
{
  if (r == 0)
    return 0;
  *err = r;
  return -1;
}

static int
clone_pread (nbdkit_next *next, void *handle, void *buf, uint32_t count_,
             uint64_t offset, uint32_t flags, int *err)
{
  struct request req = request_of (next, handle);

  return result (fetch_read (&req, buf, count_, offset), err);
}

static int
clone_cache (nbdkit_next *next, void *handle, uint32_t count_, uint64_t offset,
             uint32_t flags, int *err)
{
  struct request req = request_of (next, handle);

  return result (fetch_cache (&req, count_, offset), err);
}

static int
clone_pwrite (nbdkit_next *next, void *handle, const void *buf,
              uint32_t count_, uint64_t offset, uint32_t flags, int *err)
{
  struct request req = request_of (next, handle);

  return result (write_disk (&req, buf, count_, offset, flags), err);
}

static int
clone_zero (nbdkit_next *next, void *handle, uint32_t count_, uint64_t offset,
            uint32_t flags, int *err)
{
  struct request req = request_of (next, handle);

  return result (write_disk (&req, NULL, count_, offset, flags), err);
}

static int
clone_trim (nbdkit_next *next, void *handle, uint32_t count_, uint64_t offset,
            uint32_t flags, int *err)
{
  struct request req = request_of (next, handle);

  flags |= NBDKIT_FLAG_MAY_TRIM;
  return result (write_disk (&req, NULL, count_, offset, flags), err);
}

static int
clone_flush (nbdkit_next *next, void *handle, uint32_t flags, int *err)
{
  const struct request req = request_of (next, handle);

  return result (write_flush (&req), err);
}

static int
clone_extents (nbdkit_next *next, void *handle, uint32_t count_,
               uint64_t offset, uint32_t flags,
               struct nbdkit_extents *extents, int *err)
{
  const struct request req = request_of (next, handle);

  return extents_tell (&req, count_, offset, flags & NBDKIT_FLAG_REQ_ONE,
                       extents, err);
}

static struct nbdkit_filter filter = {
  .name               = "clone",
  .longname           = "nbdkit clone filter",
  .load               = clone_load,
  .unload             = clone_unload,
  .config             = clone_config,
  .config_complete    = clone_config_complete,
  .config_help        = OPTIONS_HELP,
  .get_ready          = clone_get_ready,
  .after_fork         = clone_after_fork,
  .cleanup            = clone_cleanup,
  .preconnect         = clone_preconnect,
  .default_export     = clone_default_export,
  .open               = clone_open,
  .close              = clone_close,
  .prepare            = clone_prepare,
  .get_size           = clone_get_size,
  .export_description = clone_export_description,
  .block_size         = clone_block_size,
  .is_rotational      = clone_is_rotational,
  .can_write          = clone_can_write,
  .can_flush          = clone_can_flush,
  .can_fua            = clone_can_fua,
  .can_zero           = clone_can_zero,
  .can_fast_zero      = clone_can_fast_zero,
  .can_trim           = clone_can_trim,
  .can_extents        = clone_can_extents,
  .can_multi_conn     = clone_can_multi_conn,
  .can_cache          = clone_can_cache,
  .pread              = clone_pread,
  .pwrite             = clone_pwrite,
  .zero               = clone_zero,
  .trim               = clone_trim,
  .cache              = clone_cache,
  .flush              = clone_flush,
  .extents            = clone_extents,
};

/* The macro defines it and has no prototype, which clang wants. */
NBDKIT_DLL_PUBLIC struct nbdkit_filter *filter_init (void);

NBDKIT_REGISTER_FILTER (filter)
