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

#include "clock.h"
#include "counters-file.h"
#include "map-file.h"
#include "options.h"
#include "parameters.h"
#include "stats-file.h"
#include "values.h"

#define FETCH_SIZE_MIN 4096
#define FETCH_SIZE_MAX (UINT64_C (32) << 20) /* most that clients may ask for */
#define COMMIT_SECS_MIN 0.1
#define COMMIT_SECS_MAX 3600
#define EXPORTS_MAX 1000000

struct options options = {
  .block_size = 4096,
  .fetch_size = 2 << 20,
  .commit_ns = 5 * NS_PER_SECOND,
  .reserve = RESERVE_DEFAULT,
};

static int
set_power (const char *key, const char *value, uint64_t min, uint64_t max,
           const char *allowed, uint32_t *result)
{
  uint64_t n;

  if (!value_to_size (value, &n) || n < min || n > max || (n & (n - 1)) != 0)
    return value_is_bad (key, value, allowed);
  *result = n;
  return 0;
}

static int
set_path (const char *key, const char *value, char **path)
{
  if (*path != NULL) {
    nbdkit_error ("%s: given twice; the filter can be there once, with one %s",
                  key, key);
    return -1;
  }
  *path = value_parse_path (key, value);
  return *path == NULL ? -1 : 0;
}

/* -- one function for each parameter ---------------------------------------- */

static int
set_file (const char *key, const char *value)
{
  return set_path (key, value, &options.file);
}

static int
set_dir (const char *key, const char *value)
{
  return set_path (key, value, &options.dir);
}

static int
set_stats (const char *key, const char *value)
{
  return set_path (key, value, &options.stats_file);
}

static int
set_max_exports (const char *key, const char *value)
{
  return value_parse_number (key, value, EXPORTS_MAX, "a number from 1 to 1000000",
                             &options.max_exports);
}

static int
set_block_size (const char *key, const char *value)
{
  options.block_size_given = true;
  return set_power (key, value, MAP_BLOCK_MIN, MAP_BLOCK_MAX,
                    "a power of two from 512 to 1M", &options.block_size);
}

static int
set_fetch_size (const char *key, const char *value)
{
  return set_power (key, value, FETCH_SIZE_MIN, FETCH_SIZE_MAX,
                    "a power of two from 4096 to 32M", &options.fetch_size);
}

static int
set_commit (const char *key, const char *value)
{
  return value_parse_seconds (key, value, COMMIT_SECS_MIN, COMMIT_SECS_MAX,
                              "seconds from 0.1 to 3600", &options.commit_ns);
}

static int
set_write (const char *key, const char *value)
{
  options.through = strcmp (value, "through") == 0;
  if (!options.through && strcmp (value, "local") != 0)
    return value_is_bad (key, value, "local or through");
  return 0;
}

static int
set_reserve (const char *key, const char *value)
{
  if (!value_to_size (value, &options.reserve))
    return value_is_bad (key, value, "a size in bytes, like 500M or 10G");
  return 0;
}

static int
set_id (const char *key, const char *value)
{
  if (*value == '\0' || strlen (value) > MAP_ID_MAX)
    return value_is_bad (key, value, "a text of 1 to 255 bytes");
  options.id = value;
  return 0;
}

static const struct parameter list[] = {
  { "clone-file",        set_file },
  { "clone-dir",         set_dir },
  { "clone-max-exports", set_max_exports },
  { "clone-block-size",  set_block_size },
  { "clone-fetch-size",  set_fetch_size },
  { "clone-commit",      set_commit },
  { "clone-write",       set_write },
  { "clone-reserve",     set_reserve },
  { "clone-id",          set_id },
  { "clone-stats",       set_stats },
};

static const struct parameters parameters = { "clone", list, sizeof list / sizeof list[0] };

int
options_set (const char *key, const char *value)
{
  return parameters_set (&parameters, key, value);
}

/* Whoever the server runs as later may not be who runs it now, so only what
 * will not change is looked at.
 */
static int
check_file (void)
{
  const char *slash = strrchr (options.file, '/');
  struct stat st;

  if (slash == NULL || slash[1] == '\0')
    return value_is_bad ("clone-file", options.file, "the name of a file");
  if (lstat (options.file, &st) == -1) {
    if (errno == ENOENT)
      return 0;
    nbdkit_error ("clone-file: %s: %m", options.file);
    return -1;
  }
  if (S_ISLNK (st.st_mode)) {
    nbdkit_error ("clone-file: %s is a symbolic link, which is not followed; "
                  "name the file itself", options.file);
    return -1;
  }
  if (!S_ISREG (st.st_mode)) {
    nbdkit_error ("clone-file: %s is not a regular file", options.file);
    return -1;
  }
  return 0;
}

/* The folder that a file is to be in. */
static int
check_folder (const char *key, const char *path, size_t len)
{
  struct stat st;
  char *folder = strndup (len == 0 ? "/" : path, len == 0 ? 1 : len);
  int r = -1;

  if (folder == NULL)
    nbdkit_error ("%s: strndup: %m", key);
  else if (stat (folder, &st) == -1)
    nbdkit_error ("%s: %s: %m", key, folder);
  else if (!S_ISDIR (st.st_mode))
    nbdkit_error ("%s: %s is not a folder", key, folder);
  else
    r = 0;
  free (folder);
  return r;
}

/* Is this path another one, and that behind it? */
static bool
is_path_and (const char *path, const char *other, const char *suffix)
{
  const size_t n = strlen (other);

  return strncmp (path, other, n) == 0 && strcmp (path + n, suffix) == 0;
}

static bool
ends_with (const char *path, const char *suffix)
{
  const size_t n = strlen (path), end = strlen (suffix);

  return n >= end && strcmp (path + n - end, suffix) == 0;
}

/* Would the counters be put in the place of a clone? */
static bool
stats_are_a_clone (void)
{
  const char *const stats = options.stats_file;
  size_t n;

  if (options.file != NULL)
    return is_path_and (stats, options.file, "") ||
      is_path_and (stats, options.file, MAP_SUFFIX);
  if (options.dir == NULL)
    return false;
  for (n = strlen (options.dir); n > 0 && options.dir[n-1] == '/'; --n)
    ;
  return strncmp (stats, options.dir, n) == 0 &&
    strrchr (stats, '/') == stats + n &&
    (ends_with (stats, CLONE_SUFFIX) ||
     ends_with (stats, CLONE_SUFFIX MAP_SUFFIX));
}

/* Here too, who writes it is not known yet. */
static int
check_stats_file (void)
{
  const char *const path = options.stats_file;

  if (stats_are_a_clone ()) {
    nbdkit_error ("clone-stats=%s is a file of the clone; it should be one of "
                  "its own", path);
    return -1;
  }
  return counters_file_check ("clone-stats", path, STATS_FILE_BEGIN);
}

int
options_complete (void)
{
  if (options.file != NULL && options.dir != NULL) {
    nbdkit_error ("clone-file and clone-dir cannot both be given; clone-file "
                  "is for one export, clone-dir for several");
    return -1;
  }
  if (options.id != NULL && options.file == NULL && options.dir == NULL) {
    nbdkit_error ("clone-id is only for a clone that stays, with clone-file or "
                  "clone-dir");
    return -1;
  }
  if (options.max_exports > 0 && options.dir == NULL) {
    nbdkit_error ("clone-max-exports is only for clone-dir");
    return -1;
  }
  if (options.max_exports == 0)
    options.max_exports = MAX_EXPORTS_DEFAULT;
  if (options.fetch_size < options.block_size) {
    nbdkit_error ("clone-fetch-size=%" PRIu32 " is less than clone-block-size="
                  "%" PRIu32 "; it should be at least as large",
                  options.fetch_size, options.block_size);
    return -1;
  }
  if (options.file != NULL &&
      (check_folder ("clone-file", options.file,
                     strrchr (options.file, '/') - options.file) == -1 ||
       check_file () == -1))
    return -1;
  if (options.stats_file != NULL && check_stats_file () == -1)
    return -1;
  if (options.dir != NULL &&
      check_folder ("clone-dir", options.dir, strlen (options.dir)) == -1)
    return -1;
  return 0;
}

void
options_free (void)
{
  free (options.file);
  free (options.dir);
  free (options.stats_file);
}
