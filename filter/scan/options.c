/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See options.h. */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include <sys/stat.h>

#include <nbdkit-filter.h>

#include "budget.h"
#include "clock.h"
#include "library.h"
#include "options.h"

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
bad_value (const char *key, const char *value, const char *allowed)
{
  nbdkit_error ("%s: '%s' is not valid; it should be %s", key, value, allowed);
  return -1;
}

/* The server's own parsers don't name the parameter, so these do their work in
 * a way that leaves one message.
 */

static bool
to_bool (const char *value, bool *result)
{
  static const char *const words[][2] = {
    { "1", "0" }, { "true", "false" }, { "t", "f" }, { "yes", "no" },
    { "y", "n" }, { "on", "off" },
  };
  size_t i;

  for (i = 0; i < sizeof words / sizeof words[0]; ++i)
    if (strcasecmp (value, words[i][0]) == 0 ||
        strcasecmp (value, words[i][1]) == 0) {
      *result = strcasecmp (value, words[i][0]) == 0;
      return true;
    }
  return false;
}

static int
parse_bool (const char *key, const char *value, bool *result)
{
  if (!to_bool (value, result))
    return bad_value (key, value, "true or false");
  return 0;
}

/* A number of bytes with one of nbdkit's suffixes. */
static bool
to_size (const char *value, uint64_t *result)
{
  static const char units[] = "bkmgtpe";
  char *end;
  uintmax_t n;
  const char *unit;
  unsigned shift = 0;

  errno = 0;
  n = strtoumax (value, &end, 10);
  if (errno != 0 || end == value || strchr (value, '-') != NULL)
    return false;
  if (*end == 's' && end[1] == '\0')
    shift = 9;
  else if (*end != '\0') {
    unit = strchr (units, *end | 0x20);
    if (unit == NULL || end[1] != '\0')
      return false;
    shift = 10 * (unit - units);
  }
  if (n > (uintmax_t) INT64_MAX >> shift)
    return false;
  *result = n << shift;
  return true;
}

static int
parse_size (const char *key, const char *value, uint64_t min,
            const char *allowed, uint64_t *result)
{
  uint64_t n;

  if (!to_size (value, &n) || n < min)
    return bad_value (key, value, allowed);
  *result = n;
  return 0;
}

/* The stock filter's parameter, in its words. */
static int
parse_block_size (const char *value)
{
  uint64_t n;

  if (!to_size (value, &n) || n < BLOCK_MIN || n > BLOCK_MAX ||
      (n & (n - 1)) != 0) {
    nbdkit_error ("scan-size parameter should be [512..32M] and a power of "
                  "two, but it is '%s'", value);
    return -1;
  }
  options.size = n;
  return 0;
}

static int
parse_unsigned (const char *key, const char *value, unsigned min, unsigned max,
                const char *allowed, unsigned *result)
{
  char *end;
  unsigned long n;

  errno = 0;
  n = strtoul (value, &end, 10);
  if (errno != 0 || end == value || *end != '\0' || *value == '-' ||
      n < min || n > max)
    return bad_value (key, value, allowed);
  *result = n;
  return 0;
}

static int
parse_seconds (const char *key, const char *value, double min, double max,
               const char *allowed, uint64_t *result_ns)
{
  char *end;
  double n = strtod (value, &end);

  if (end == value || *end != '\0' || !(n >= min && n <= max))
    return bad_value (key, value, allowed);
  *result_ns = n * NS_PER_SECOND;
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
      return 1;
    }
  p = realloc (options.args, (options.nr_args + 1) * sizeof *p);
  if (p == NULL) {
    nbdkit_error ("realloc: %m");
    return -1;
  }
  p[options.nr_args] = (struct vm_arg) { name, value };
  options.args = p;
  options.nr_args++;
  return 1;
}

static int
set_stock_boolean (const char *key, const char *value)
{
  bool b;

  if (parse_bool (key, value, &b) == -1)
    return -1;
  if (stock_boolean == NULL)
    stock_boolean = key;
  return set_arg (key + strlen ("scan-"), b ? "true" : "false");
}

static int
add_file (const char *key, const char *name, const char *value)
{
  char error[LIBRARY_ERROR_MAX] = "";

  if (library_add_file (name, value, error) == -1) {
    nbdkit_error ("%s: %s", key, error);
    return -1;
  }
  return 1;
}

static int
set_method (const char *key, const char *value)
{
  if (strcmp (value, "cache") == 0)
    options.method = SOURCE_CACHE;
  else if (strcmp (value, "read") == 0)
    options.method = SOURCE_READ;
  else
    return bad_value (key, value, "cache or read");
  return 1;
}

/* If key is PREFIX and a name, return the name. */
static const char *
after_prefix (const char *key, const char *prefix)
{
  const size_t n = strlen (prefix);

  return strncmp (key, prefix, n) == 0 && key[n] != '\0' ? key + n : NULL;
}

/* Parameters of filters that may be below us pass by on their way.  Their
 * owners check them; what can't be parsed is not for us to report.
 */
static void
notice_layer_below (const char *key, const char *value)
{
  if (strcmp (key, "cow-block-size") == 0) {
    if (!to_size (value, &options.cow_block_size))
      options.cow_block_size = 0;
  }
  else if (strcmp (key, "cache-min-block-size") == 0) {
    if (!to_size (value, &options.cache_min_block_size))
      options.cache_min_block_size = 0;
  }
  else if (strcmp (key, "cow-on-cache") == 0) {
    if (!to_bool (value, &options.cow_on_cache))
      options.cow_on_cache = true;
  }
  /* These two may also be a path. */
  else if (strcmp (key, "cow-on-read") == 0) {
    if (!to_bool (value, &options.cow_on_read))
      options.cow_on_read = true;
  }
  else if (strcmp (key, "cache-on-read") == 0) {
    if (!to_bool (value, &options.cache_on_read))
      options.cache_on_read = true;
  }
}

/* A built-in comes before a file of its name; say so to those who may have meant
 * the file.
 */
static void
advise_of_hidden_file (const char *name)
{
  char error[LIBRARY_ERROR_MAX];
  const struct text *policy = library_policy (name, error);
  struct stat st;

  if (policy != NULL && policy->builtin &&
      stat (name, &st) == 0 && S_ISREG (st.st_mode))
    nbdkit_error ("scan: warning: scan-policy=%s is the built-in policy; for the "
                  "file in this directory, use scan-policy=./%s", name, name);
}

int
options_set (const char *key, const char *value)
{
  const char *name;
  bool pace = false;
  int r;

  if (strcmp (key, "scan-ahead") == 0 || strcmp (key, "scan-clock") == 0 ||
      strcmp (key, "scan-forever") == 0)
    return set_stock_boolean (key, value);
  if ((name = after_prefix (key, "scan-arg-")) != NULL)
    return set_arg (name, value);
  if ((name = after_prefix (key, "scan-file-")) != NULL)
    return add_file (key, name, value);

  if (strcmp (key, "scan-policy") == 0) {
    options.policy = value;
    return 1;
  }
  if (strcmp (key, "scan-method") == 0)
    return set_method (key, value);
  if (strcmp (key, "scan-exports") == 0) {
    options.exports = value;
    return 1;
  }

  if (strcmp (key, "scan-size") == 0)
    r = parse_block_size (value);
  else if (strcmp (key, "scan-threads") == 0)
    r = parse_unsigned (key, value, 1, THREADS_MAX, "a number from 1 to 64",
                        &options.threads);
  else if (strcmp (key, "scan-background") == 0)
    r = parse_bool (key, value, &options.background);
  else if (strcmp (key, "scan-pace") == 0) {
    r = parse_bool (key, value, &pace);
    options.pace = pace ? PACE_ON : PACE_OFF;
  }
  else if (strcmp (key, "scan-rate") == 0)
    r = parse_size (key, value, 1,
                    "bytes per second, like 500K or 10M", &options.rate);
  else if (strcmp (key, "scan-limit") == 0)
    r = parse_size (key, value, 1,
                    "a size in bytes, like 500M or 10G", &options.limit);
  else if (strcmp (key, "scan-policy-memory") == 0)
    r = parse_size (key, value, POLICY_MEMORY_MIN,
                    "a size of at least 1M", &options.policy_memory);
  else if (strcmp (key, "scan-policy-timeout") == 0)
    r = parse_seconds (key, value, 0.1, 3600, "seconds from 0.1 to 3600",
                       &options.policy_timeout_ns);
  else if (strcmp (key, "scan-progress") == 0)
    r = parse_bool (key, value, &options.progress);
  else if (strcmp (key, "scan-stats") == 0) {
    options.stats_file = nbdkit_absolute_path (value);
    r = options.stats_file == NULL ? -1 : 0;
  }
  else {
    notice_layer_below (key, value);
    return 0;
  }
  return r == -1 ? -1 : 1;
}

int
options_complete (void)
{
  if (options.policy == NULL)
    options.policy = "default";
  else
    advise_of_hidden_file (options.policy);
  if (stock_boolean != NULL && strcmp (options.policy, "default") != 0) {
    nbdkit_error ("%s is only for the default policy, and scan-policy=%s was "
                  "given; use one of them, or hand the policy an argument "
                  "with scan-arg-%s=VALUE", stock_boolean, options.policy,
                  stock_boolean + strlen ("scan-"));
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
  free ((char *) options.stats_file);
}
