/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See options.h. */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <sys/stat.h>

#include <nbdkit-filter.h>

#include "budget.h"
#include "clock.h"
#include "library.h"
#include "options.h"
#include "parameters.h"
#include "values.h"

/* Of all our parameters. */
#define PREFIX "scan-"
#define ARG_PREFIX PREFIX "arg-"
#define FILE_PREFIX PREFIX "file-"

#define BLOCK_MIN 512
#define BLOCK_MAX (32 * 1024 * 1024)
#define THREADS_MAX 64

/* Most scratch memory of one scan, for scan-method=read. */
#define SCRATCH_MAX (UINT64_C (512) * 1024 * 1024)

#define POLICY_MEMORY_MIN (UINT64_C (1024) * 1024)

struct options options = {
  .size = 2 * 1024 * 1024,
  .threads = 1,
  .method = SOURCE_CACHE,
  .exports = "",
  .rate = BUDGET_NONE,
  .limit = BUDGET_NONE,
  .policy_memory = UINT64_C (64) * 1024 * 1024,
  .policy_timeout_ns = 5 * NS_PER_SECOND,
};

/* The first of the stock filter's booleans that was given. */
static const char *stock_boolean;

static int
parse_bool (const char *key, const char *value, bool *result)
{
  bool b = false;

  if (!value_to_bool (value, &b))
    return value_is_bad (key, value, "true or false");
  *result = b;
  return 0;
}

static int
parse_size (const char *key, const char *value, uint64_t min,
            const char *allowed, uint64_t *result)
{
  uint64_t n;

  if (!value_to_size (value, &n) || n < min)
    return value_is_bad (key, value, allowed);
  *result = n;
  return 0;
}

/* Set an argument of the policy; a later one of the same name wins. */
static int
set_arg (const char *name, const char *value)
{
  struct vm_arg *p;
  size_t i;

  for (i = 0; i < options.nr_args; ++i)
    if (strcmp (options.args[i].name, name) == 0) {
      options.args[i].value = value;
      return 0;
    }
  p = realloc (options.args, (options.nr_args + 1) * sizeof *p);
  if (p == NULL) {
    nbdkit_error ("scan: realloc: %m");
    return -1;
  }
  p[options.nr_args] = (struct vm_arg) { name, value };
  options.args = p;
  options.nr_args++;
  return 0;
}

static int
add_file (const char *key, const char *name, const char *value)
{
  char error[LIBRARY_ERROR_MAX] = "";

  if (library_add_file (name, value, error) == -1) {
    nbdkit_error ("%s: %s", key, error);
    return -1;
  }
  return 0;
}

/* The policy knows files by their names, and has one of each. */
static int
trace_is_given_twice (void)
{
  nbdkit_error ("scan-trace and scan-file-trace both name the file that a policy "
                "reads as 'trace'; use one of them, and scan-record=FILE to record "
                "in another file than is read");
  return -1;
}

static bool
is_recorded_by (const char *key)
{
  return options.record_key != NULL && strcmp (options.record_key, key) == 0;
}

/* -- one function for each parameter ---------------------------------------- */

static int
set_stock_boolean (const char *key, const char *value)
{
  bool b = false;

  if (parse_bool (key, value, &b) == -1)
    return -1;
  if (stock_boolean == NULL)
    stock_boolean = key;
  return set_arg (key + strlen (PREFIX), b ? "true" : "false");
}

static int
set_policy (const char *key, const char *value)
{
  options.policy = value;
  return 0;
}

/* In the words of the stock filter. */
static int
set_block_size (const char *key, const char *value)
{
  uint64_t n;

  if (!value_to_size (value, &n) || n < BLOCK_MIN || n > BLOCK_MAX ||
      (n & (n - 1)) != 0) {
    nbdkit_error ("scan-size parameter should be [512..32M] and a power of "
                  "two, but it is '%s'", value);
    return -1;
  }
  options.size = n;
  return 0;
}

static int
set_threads (const char *key, const char *value)
{
  return value_parse_number (key, value, THREADS_MAX, "a number from 1 to 64",
                             &options.threads);
}

static int
set_method (const char *key, const char *value)
{
  if (strcmp (value, "cache") == 0)
    options.method = SOURCE_CACHE;
  else if (strcmp (value, "read") == 0)
    options.method = SOURCE_READ;
  else
    return value_is_bad (key, value, "cache or read");
  return 0;
}

static int
set_background (const char *key, const char *value)
{
  return parse_bool (key, value, &options.background);
}

static int
set_exports (const char *key, const char *value)
{
  options.exports = value;
  return 0;
}

static int
set_pace (const char *key, const char *value)
{
  bool on = false;

  if (parse_bool (key, value, &on) == -1)
    return -1;
  options.pace = on ? PACE_ON : PACE_OFF;
  return 0;
}

static int
set_rate (const char *key, const char *value)
{
  return parse_size (key, value, 1, "bytes per second, like 500K or 10M; without "
                     "it there is no limit",
                     &options.rate);
}

static int
set_limit (const char *key, const char *value)
{
  return parse_size (key, value, 1, "a size in bytes, like 500M or 10G; without it "
                     "there is no limit",
                     &options.limit);
}

static int
set_policy_memory (const char *key, const char *value)
{
  return parse_size (key, value, POLICY_MEMORY_MIN, "a size of at least 1M",
                     &options.policy_memory);
}

static int
set_policy_timeout (const char *key, const char *value)
{
  return value_parse_seconds (key, value, 0.1, 3600,
                              "seconds from 0.1 to 3600",
                              &options.policy_timeout_ns);
}

static int
set_progress (const char *key, const char *value)
{
  return parse_bool (key, value, &options.progress);
}

static int
set_stats (const char *key, const char *value)
{
  free (options.stats_file);
  options.stats_file = value_parse_path (key, value);
  return options.stats_file == NULL ? -1 : 0;
}

static int
set_record (const char *key, const char *value)
{
  char *real;

  if (options.record_file != NULL) {
    nbdkit_error ("%s: there is one file to record to, and %s=%s was given; "
                  "scan-trace records as well", key, options.record_key,
                  options.record_file);
    return -1;
  }
  options.record_key = key;
  options.record_file = value_parse_path (key, value);
  if (options.record_file == NULL)
    return -1;
  /* It is put in place anew each time, and a link to it stays one. */
  real = realpath (options.record_file, NULL);
  if (real != NULL) {
    free (options.record_file);
    options.record_file = real;
  }
  return 0;
}

/* Where there is no trace yet, the policy has no file of that name.  What can't be
 * recorded to is not read first: a fifo would wait for somebody who writes.
 */
static int
set_trace (const char *key, const char *value)
{
  struct stat st;

  if (set_record (key, value) == -1)
    return -1;
  if (library_file ("trace") != NULL)
    return trace_is_given_twice ();
  if (stat (value, &st) == -1) {
    if (errno == ENOENT)
      return 0;
  }
  else if (!S_ISREG (st.st_mode)) {
    nbdkit_error ("%s=%s: this is no regular file", key, value);
    return -1;
  }
  return add_file (key, "trace", value);
}

static int
set_named_arg (const char *key, const char *value)
{
  return set_arg (key + strlen (ARG_PREFIX), value);
}

static int
set_named_file (const char *key, const char *value)
{
  const char *const name = key + strlen (FILE_PREFIX);

  if (strcmp (name, "trace") == 0 && is_recorded_by ("scan-trace"))
    return trace_is_given_twice ();
  if (library_file (name) != NULL) {
    nbdkit_error ("%s: there is a file of this name already; give each one of "
                  "its own", key);
    return -1;
  }
  return add_file (key, name, value);
}

static const struct parameter list[] = {
  { "scan-ahead",          set_stock_boolean },
  { "scan-clock",          set_stock_boolean },
  { "scan-forever",        set_stock_boolean },
  { "scan-size",           set_block_size },
  { "scan-policy",         set_policy },
  { "scan-threads",        set_threads },
  { "scan-method",         set_method },
  { "scan-background",     set_background },
  { "scan-exports",        set_exports },
  { "scan-pace",           set_pace },
  { "scan-rate",           set_rate },
  { "scan-limit",          set_limit },
  { "scan-policy-memory",  set_policy_memory },
  { "scan-policy-timeout", set_policy_timeout },
  { "scan-record",         set_record },
  { "scan-trace",          set_trace },
  { "scan-progress",       set_progress },
  { "scan-stats",          set_stats },
  { ARG_PREFIX PARAMETER_ANY,  set_named_arg },
  { FILE_PREFIX PARAMETER_ANY, set_named_file },
};

static const struct parameters parameters = { "scan", list, sizeof list / sizeof list[0] };

/* Parameters of filters that may be below us pass by on their way.  Their
 * owners check them; what can't be parsed is not for us to report.
 */
static void
notice_layer_below (const char *key, const char *value)
{
  if (strncmp (key, "cow-", 4) == 0)
    options.cow_below = true;
  else if (strncmp (key, "cache-", 6) == 0)
    options.cache_below = true;
  else if (strncmp (key, "clone-", 6) == 0)
    options.clone_below = true;

  if (strcmp (key, "cow-block-size") == 0) {
    if (!value_to_size (value, &options.cow_block_size))
      options.cow_block_size = 0;
  }
  else if (strcmp (key, "cache-min-block-size") == 0) {
    if (!value_to_size (value, &options.cache_min_block_size))
      options.cache_min_block_size = 0;
  }
  else if (strcmp (key, "cow-on-cache") == 0) {
    if (!value_to_bool (value, &options.cow_on_cache))
      options.cow_on_cache = true;
  }
  /* These two may also be a path. */
  else if (strcmp (key, "cow-on-read") == 0) {
    if (!value_to_bool (value, &options.cow_on_read))
      options.cow_on_read = true;
  }
  else if (strcmp (key, "cache-on-read") == 0) {
    if (!value_to_bool (value, &options.cache_on_read))
      options.cache_on_read = true;
  }
}

/* A built-in comes before a file of its name; say so to those who may have meant
 * the file.
 */
static void
advise_of_hidden_file (const struct text *policy, const char *name)
{
  struct stat st;

  if (policy != NULL && policy->builtin &&
      stat (name, &st) == 0 && S_ISREG (st.st_mode))
    nbdkit_error ("scan: warning: scan-policy=%s is the built-in policy; for the "
                  "file in this directory, use scan-policy=./%s", name, name);
}

int
options_set (const char *key, const char *value)
{
  const int r = parameters_set (&parameters, key, value);

  if (r == 0)
    notice_layer_below (key, value);
  return r;
}

int
options_complete (void)
{
  const bool is_given = options.policy != NULL;
  char error[LIBRARY_ERROR_MAX];
  const struct text *policy;

  if (!is_given)
    options.policy = "default";
  policy = library_policy (options.policy, error); /* NULL is told later */
  if (is_given)
    advise_of_hidden_file (policy, options.policy);
  if (stock_boolean != NULL && !library_is (policy, "default")) {
    nbdkit_error ("%s is only for the default policy, and scan-policy=%s was "
                  "given; use one of them, or hand the policy an argument "
                  "with scan-arg-%s=VALUE", stock_boolean, options.policy,
                  stock_boolean + strlen (PREFIX));
    return -1;
  }
  if (library_is (policy, "learn") && !is_recorded_by ("scan-trace") &&
      library_file ("trace") == NULL) {
    nbdkit_error ("scan-policy=learn needs scan-trace=FILE, where to keep what it "
                  "learns");
    return -1;
  }
  if (library_is (policy, "replay") && is_recorded_by ("scan-trace") &&
      library_file ("trace") == NULL) {
    nbdkit_error ("scan-policy=replay needs a trace, and scan-trace=%s is not there "
                  "yet; scan-policy=learn begins without one", options.record_file);
    return -1;
  }
  if (options.record_file != NULL && options.stats_file != NULL &&
      strcmp (options.record_file, options.stats_file) == 0) {
    nbdkit_error ("scan-stats and %s both write %s; give each a file of its own",
                  options.record_key, options.record_file);
    return -1;
  }
  if (options.method == SOURCE_READ &&
      (uint64_t) options.threads * options.size > SCRATCH_MAX) {
    nbdkit_error ("scan-threads=%u with scan-size=%" PRIu32 " and "
                  "scan-method=read would take %" PRIu64 " bytes of memory a "
                  "scan; their product should be at most 512M",
                  options.threads, options.size,
                  (uint64_t) options.threads * options.size);
    return -1;
  }
  return 0;
}

void
options_free (void)
{
  free (options.args);
  free (options.stats_file);
  free (options.record_file);
}
