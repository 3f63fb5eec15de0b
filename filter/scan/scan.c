/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* nbdkit scan filter with scriptable policies: the server's callbacks.
 *
 * While clients are connected, a background scan walks the disk and asks the
 * layer below to cache it.  This file tells the story of a connection; what a
 * scan does is in scanner.h, and docs/design.md is a tour of the rest.
 */

#include <errno.h>
#include <fnmatch.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <nbdkit-filter.h>

#include "budget.h"
#include "contexts.h"
#include "default-name.h"
#include "escape.h"
#include "exports.h"
#include "file-limit.h"
#include "guard.h"
#include "layers.h"
#include "library.h"
#include "options.h"
#include "recorder.h"
#include "report.h"
#include "scans.h"

/* Written before the server serves, and by nobody after. */
static unsigned times_loaded;   /* all share these variables */
static pid_t process;           /* in .get_ready; another one may be to come */
static int thread_model = -1;
static struct budget *budget;
static struct line *line;       /* NULL if scans are not paced */
static struct recorder *recorder; /* or NULL */
static bool count_reads;        /* somebody wants to know */

/* scan-background: the one scan of the default export, and what it is a scan
 * of; NULL if there is none.  Written in .after_fork, when there are no
 * connections.
 */
static struct scan *background;
static struct generation *background_generation;

/* What clients read: all that is done for the line on the read path. */
static struct line_clients clients;

/* Per connection. */
struct handle {
  nbdkit_backend *backend;
  char *export_name;
  bool is_default;

  /* From .prepare on; NULL if this connection is not scanned. */
  struct generation *generation; /* the scan's, or if there is none, ours */
  struct map *map;              /* the generation's */
  struct scan *scan;            /* NULL too if the scan is the shared one */
  struct scanner *scanner;      /* of the one or of the other */
  struct reads *reads;          /* the scanner's */
};

/* One warning per server for each thing that can't work. */
enum warning {
  NOT_THIS_EXPORT, THREAD_MODEL, NO_CACHE, NO_CONTEXTS, NR_WARNINGS
};
static atomic_bool warned[NR_WARNINGS];

static bool
first_warning (enum warning warning)
{
  return !atomic_exchange (&warned[warning], true);
}

static void
scan_load (void)
{
  times_loaded++;
}

static int
scan_config (nbdkit_next_config *next, nbdkit_backend *nxdata,
             const char *key, const char *value)
{
  const int r = options_set (key, value);

  if (r != 0)
    return r == -1 ? -1 : 0;
  contexts_note (key);
  return next (nxdata, key, value);
}

static int
scan_config_complete (nbdkit_next_config_complete *next,
                      nbdkit_backend *nxdata)
{
  struct vm_config config = {
    .args = options.args,
    .nr_args = options.nr_args,
    /* With 32 bits no process has more. */
    .memory_bytes = options.policy_memory < SIZE_MAX / 2
      ? options.policy_memory : SIZE_MAX / 2,
    .timeout_ns = options.policy_timeout_ns,
    .timed = options.stats_file != NULL,
  };
  char error[LIBRARY_ERROR_MAX] = "";

  if (times_loaded > 1) {
    nbdkit_error ("--filter=scan is given %u times; it can be used once",
                  times_loaded);
    return -1;
  }
  if (options_complete () == -1)
    return -1;
  config.policy = library_policy (options.policy, error);
  if (config.policy == NULL) {
    nbdkit_error ("scan-policy=%s: %s", options.policy, error);
    return -1;
  }
  library_set_policy (config.policy);
  count_reads = options.stats_file != NULL || options.progress;
  if (exports_init (&config) == -1)
    return -1;

  budget = budget_new (options.rate, options.limit);
  if (budget == NULL) {
    nbdkit_error ("scan: malloc: %m");
    return -1;
  }
  if (options.pace == PACE_ON ||
      (options.pace == PACE_BY_POLICY && !vm_is_stock (config.policy))) {
    line = line_new (options.size, &clients);
    if (line == NULL) {
      nbdkit_error ("scan: malloc: %m");
      return -1;
    }
  }
  if (options.record_file != NULL) {
    recorder = recorder_new (options.record_key, options.record_file);
    if (recorder == NULL)
      return -1;
  }
  if (options.method == SOURCE_READ || options.cow_on_cache)
    guard_enable (options.cow_block_size);
  layers_advise ();
  return next (nxdata);
}

/* Here the final thread model is known, of the plugin and all filters. */
static int
scan_get_ready (int final_thread_model)
{
  thread_model = final_thread_model;
  process = getpid ();
  contexts_init ();
  return report_init (line);
}

/* Can scans run at all?  Warns if not. */
static bool
thread_model_allows_scan (void)
{
  if (thread_model >= NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS)
    return true;
  if (first_warning (THREAD_MODEL))
    nbdkit_error ("scan: warning: underlying plugin does not support the "
                  "PARALLEL or SERIALIZE_REQUESTS thread model, not scanning; "
                  "a scan would hold up the clients' requests, so use another "
                  "plugin or filter below, or leave out --filter=scan");
  return false;
}

/* May a scan open this export for itself?  Warns if not. */
static bool
may_open (const char *export_name)
{
  const char *why = contexts_why_not (export_name);

  if (why == NULL)
    return true;
  if (!first_warning (NO_CONTEXTS))
    return false;
  if (thread_model == NBDKIT_THREAD_MODEL_PARALLEL)
    nbdkit_error ("scan: warning: %s; there is no scan in the background, each "
                  "client's connection is scanned as without "
                  "scan-background=true", why);
  else
    nbdkit_error ("scan: warning: %s, not scanning; use parameters that name "
                  "one disk, or leave out what makes nbdkit serialize "
                  "requests, such as the retry and noparallel filters", why);
  return false;
}

/* Start a scan of this disk, over the connection's context if the thread model
 * lets all scan threads use that, else over contexts of its own.  Takes over the
 * caller's use of the generation.
 */
static struct scan *
start_scan (struct generation *generation, const char *name, nbdkit_next *next,
            const struct source_info *info, nbdkit_backend *backend)
{
  struct scanner_config config = {
    .vm = generation->vm,
    .export_name = name,
    .block = options.size,
    .threads = options.threads,
    .method = options.method,
    .budget = budget,
    .line = line,
    .stats = generation->export->stats,
    .map = generation->map,
    .background = next == NULL,
    .waits_for_name = next == NULL && contexts_default_has_name (),
    .backend = backend,
  };

  if (next != NULL) {
    config.info = *info;
    if (thread_model == NBDKIT_THREAD_MODEL_PARALLEL)
      config.next = next;
  }
  if (recorder_is_on (recorder) && recorder_claim (recorder, generation->export->name))
    config.recorder = recorder;
  return scans_start (&config, generation);
}

/* Is the default export to be scanned in the background?  Warns if it can't be. */
static bool
is_background_wanted (void)
{
  if (!options.background)
    return false;
  if (fnmatch (options.exports, "", 0) == 0)
    return thread_model_allows_scan () && may_open ("");
  nbdkit_error ("scan: warning: scan-background=true scans the default export, which "
                "is not one of scan-exports=%s by its empty name; there is no scan in the "
                "background, each connection to one of those is scanned by itself",
                options.exports);
  return false;
}

static int
scan_after_fork (nbdkit_backend *backend)
{
  file_limit_survive ();
  report_start ();
  /* After a fork nobody would be told that the server ends: a command of --run would wait
   * for it.
   */
  if (recorder != NULL && recorder_start (recorder) == -1 && getpid () == process)
    return -1;
  if (!is_background_wanted ())
    return 0;
  background_generation = exports_get_newest ("");
  if (background_generation != NULL)
    background = start_scan (background_generation, "", NULL, NULL, backend);
  return 0;
}

/* There may be connections, also such as only begin: nothing is freed here. */
static void
scan_cleanup (nbdkit_backend *backend)
{
  scans_stop_all ();
  recorder_stop (recorder);
  report_stop ();
}

static void
scan_unload (void)
{
  if (--times_loaded > 0)
    return;
  scans_leave (background);
  recorder_free (recorder);
  exports_free ();
  budget_free (budget);
  line_free (line);
  library_free ();
  options_free ();
}

static int
scan_preconnect (nbdkit_next_preconnect *next, nbdkit_backend *nxdata,
                 int readonly)
{
  default_name_forget ();
  return next (nxdata, readonly);
}

/* The scan in the background is to open what this client will, as far as the plugin
 * can be told.
 */
static const char *
scan_default_export (nbdkit_next_default_export *next, nbdkit_backend *nxdata,
                     int readonly, int is_tls)
{
  const char *name = next (nxdata, readonly);

  default_name_note (name, is_tls);
  if (name != NULL && background != NULL && contexts_why_not (name) == NULL)
    scanner_set_name (scans_get_scanner (background), name);
  return name;
}

static void *
scan_open (nbdkit_next_open *next, nbdkit_context *context,
           int readonly, const char *exportname, int is_tls)
{
  struct handle *h;

  if (next (context, readonly, exportname) == -1)
    return NULL;

  h = calloc (1, sizeof *h);
  if (h == NULL) {
    nbdkit_error ("scan: malloc: %m");
    return NULL;
  }
  h->backend = nbdkit_context_get_backend (context);
  h->export_name = strdup (exportname);
  if (h->export_name == NULL) {
    nbdkit_error ("scan: strdup: %m");
    free (h);
    return NULL;
  }
  h->is_default = default_name_is (exportname, is_tls);
  return h;
}

/* Is this export to be scanned?  Warns if not. */
static bool
is_wanted (const struct handle *h)
{
  char name[ESCAPE_NAME_MAX];

  if (fnmatch (options.exports, h->export_name, 0) == 0 ||
      (h->is_default && fnmatch (options.exports, "", 0) == 0))
    return true;
  if (!first_warning (NOT_THIS_EXPORT))
    return false;
  escape (ESCAPE_NAME, h->export_name, name, sizeof name);
  if (*options.exports == '\0')
    nbdkit_error ("scan: warning: not the default export, not scanning; "
                  "scan-exports=%s scans the export %s", name, name);
  else
    nbdkit_error ("scan: warning: not one of scan-exports=%s, not scanning; "
                  "scan-exports=%s scans the export %s",
                  options.exports, name, name);
  return false;
}

/* Is this export to be scanned, and can it be?  Warns if not. */
static bool
can_scan (nbdkit_next *next, struct handle *h, struct source_info *info)
{
  if (!is_wanted (h))
    return false;
  if (!thread_model_allows_scan ())
    return false;
  if (thread_model != NBDKIT_THREAD_MODEL_PARALLEL &&
      !may_open (h->export_name))
    return false;
  if (source_ask (next, info) == -1)
    return false;               /* the server will find that out for itself */
  if (options.method == SOURCE_CACHE && !info->can_cache) {
    if (first_warning (NO_CACHE))
      source_warn_no_cache ();
    return false;
  }
  return true;
}

static void
note_reads_for (struct handle *h, struct scan *scan)
{
  h->scanner = scans_get_scanner (scan);
  h->reads = scanner_get_reads (h->scanner);
}

/* Join the scan in the background if it is one of this disk. */
static bool
join_background (nbdkit_next *next, struct handle *h)
{
  int64_t size;

  if (background == NULL || !h->is_default)
    return false;
  if (!scanner_is_of (scans_get_scanner (background), h->export_name)) {
    may_open (h->export_name);
    return false;
  }
  size = next->get_size (next);
  if (size == -1)
    return false;
  h->generation = exports_get ("", size);
  if (h->generation == background_generation) {
    scanner_try_now (scans_get_scanner (background));
    h->map = h->generation->map;
    note_reads_for (h, background);
    return true;
  }
  exports_put (h->generation);
  h->generation = NULL;
  return false;
}

/* Start scanning, or join the scan there is.  A connection never fails because
 * it can't be scanned.
 */
static int
scan_prepare (nbdkit_next *next, void *handle, int readonly)
{
  struct handle *h = handle;
  struct generation *generation;
  struct source_info info;

  if (join_background (next, h) || !can_scan (next, h, &info))
    return 0;
  generation = exports_get (h->is_default ? "" : h->export_name, info.size);
  if (generation == NULL) {
    nbdkit_error ("scan: warning: malloc: %m, not scanning");
    return 0;
  }
  h->scan = start_scan (generation, h->export_name, next, &info, h->backend);
  if (h->scan != NULL) {
    h->generation = generation;
    h->map = generation->map;
    note_reads_for (h, h->scan);
  }
  return 0;
}

/* After this, next is not valid any more. */
static int
scan_finalize (nbdkit_next *next, void *handle)
{
  struct handle *h = handle;

  if (h->scan != NULL)
    scanner_stop (h->scanner);
  return 0;
}

/* If the finalize of a filter above failed, ours was not called. */
static void
scan_close (void *handle)
{
  struct handle *h = handle;

  if (h->scan != NULL)
    scans_leave (h->scan);      /* the generation is its own */
  else
    exports_put (h->generation);
  free (h->export_name);
  free (h);
}

/* Not inlined, for it is rare, and registers are not. */
static void __attribute__ ((noinline))
count_read (struct handle *h, uint32_t count, uint8_t met)
{
  stats_read (h->generation->export->stats, count, map_met (met));
}

static int
scan_pread (nbdkit_next *next, void *handle,
            void *buf, uint32_t count, uint64_t offset,
            uint32_t flags, int *err)
{
  struct handle *h = handle;
  uint8_t met;
  bool is_asked;
  int r;

  if (h->reads == NULL || !reads_are_wanted (h->reads)) {
    if (h->reads != NULL && count_reads)
      count_read (h, count, map_meet (h->map, offset, count));
    return next->pread (next, buf, count, offset, flags, err);
  }

  met = reads_begin (h->reads, h->map, offset, count);
  if (count_reads)
    count_read (h, count, met);
  /* What is there, or on its way, asks nothing of the line. */
  is_asked = line != NULL && map_met_again (met) == MET_MISS;
  if (is_asked) {
    atomic_fetch_add (&clients.begun, count);
    atomic_fetch_add (&clients.reads, 1);
  }
  else if (line != NULL && map_was_of_use (met)) {
    atomic_fetch_add_explicit (&clients.hits, 1, memory_order_relaxed);
    atomic_fetch_add_explicit (&clients.hit_bytes, count,
                               memory_order_relaxed);
  }
  r = next->pread (next, buf, count, offset, flags, err);
  if (is_asked) {
    atomic_fetch_sub (&clients.reads, 1);
    atomic_fetch_add (&clients.ended, count);
  }
  if (r == -1)
    scanner_read_failed (h->scanner, offset, count);
  reads_end (h->reads);
  return r;
}

/* What changes the disk is kept apart from prefetches; see guard.h. */

static int
scan_pwrite (nbdkit_next *next, void *handle,
             const void *buf, uint32_t count, uint64_t offset,
             uint32_t flags, int *err)
{
  struct guard_op op;
  int r;

  guard_begin_write (&op, (struct range) { offset, count });
  r = next->pwrite (next, buf, count, offset, flags, err);
  guard_end (&op);
  return r;
}

/* The server dies of a client that asks for it where this is not said (seen with nbdkit
 * 1.32.5).
 */
static int
scan_can_fast_zero (nbdkit_next *next, void *handle)
{
  return next->can_fast_zero (next) == -1 ? -1 : 1;
}

static int
scan_zero (nbdkit_next *next, void *handle,
           uint32_t count, uint64_t offset, uint32_t flags, int *err)
{
  struct guard_op op;
  int r;

  if (flags & NBDKIT_FLAG_FAST_ZERO && next->can_fast_zero (next) != 1) {
    *err = EOPNOTSUPP;
    return -1;
  }
  guard_begin_write (&op, (struct range) { offset, count });
  r = next->zero (next, count, offset, flags, err);
  guard_end (&op);
  return r;
}

static int
scan_trim (nbdkit_next *next, void *handle,
           uint32_t count, uint64_t offset, uint32_t flags, int *err)
{
  struct guard_op op;
  int r;

  guard_begin_write (&op, (struct range) { offset, count });
  r = next->trim (next, count, offset, flags, err);
  guard_end (&op);
  return r;
}

static struct nbdkit_filter filter = {
  .name              = "scan",
  .longname          = "nbdkit scan filter with scriptable policies",
  .load              = scan_load,
  .unload            = scan_unload,
  .config            = scan_config,
  .config_complete   = scan_config_complete,
  .config_help       = OPTIONS_HELP,
  .get_ready         = scan_get_ready,
  .after_fork        = scan_after_fork,
  .cleanup           = scan_cleanup,
  .preconnect        = scan_preconnect,
  .default_export    = scan_default_export,
  .open              = scan_open,
  .prepare           = scan_prepare,
  .finalize          = scan_finalize,
  .close             = scan_close,
  .pread             = scan_pread,
  .can_fast_zero     = scan_can_fast_zero,
  .pwrite            = scan_pwrite,
  .zero              = scan_zero,
  .trim              = scan_trim,
};

/* The macro defines it and has no prototype, which clang wants. */
NBDKIT_DLL_PUBLIC struct nbdkit_filter *filter_init (void);

NBDKIT_REGISTER_FILTER (filter)
