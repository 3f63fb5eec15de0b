/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See counters-file.h. */

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "counters-file.h"

/* Is something there that is no file, and should not be replaced by one? */
static bool
is_other (const char *path)
{
  struct stat st;

  return lstat (path, &st) == 0 && !S_ISREG (st.st_mode);
}

static int
replace_file (const char *path, const char *aside, int (*write) (FILE *fp))
{
  FILE *fp;
  int r, err;

  unlink (aside);               /* of a server that was killed */
  fp = fopen (aside, "wxe");
  if (fp == NULL)
    return -1;
  r = write (fp) == 0 && !ferror (fp) ? 0 : -1;
  err = errno;
  if (fclose (fp) != 0 && r == 0) {
    r = -1;
    err = errno;
  }
  if (r == 0) {
    r = rename (aside, path);
    err = errno;
  }
  if (r == -1)
    unlink (aside);
  errno = err;
  return r;
}

int
counters_file_write (const char *path, int (*write) (FILE *fp),
                     char why[COUNTERS_FILE_WHY_MAX])
{
  CLEANUP_FREE char *aside = NULL;

  if (asprintf (&aside, "%s.tmp", path) == -1) {
    aside = NULL;
    snprintf (why, COUNTERS_FILE_WHY_MAX, "%s", strerror (ENOMEM));
    return -1;
  }
  if (is_other (path) || is_other (aside)) {
    snprintf (why, COUNTERS_FILE_WHY_MAX,
              "%s is there and is not a regular file",
              is_other (path) ? "it" : "the same with .tmp at its end");
    return -1;
  }
  if (replace_file (path, aside, write) == 0)
    return 0;
  snprintf (why, COUNTERS_FILE_WHY_MAX, "%s", strerror (errno));
  return -1;
}
