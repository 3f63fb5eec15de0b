/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See statsfile.h. */

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sys/stat.h>
#include <unistd.h>

#include <nbdkit-filter.h>

#include "cleanup.h"
#include "exports.h"
#include "metrics.h"
#include "statsfile.h"

/* Open a file to write, without waiting for anyone who would read a fifo. */
static FILE *
open_regular (const char *path)
{
  const int fd = open (path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW |
                       O_NONBLOCK | O_NOCTTY, 0666);
  struct stat st;
  FILE *fp;

  if (fd == -1)
    return NULL;
  if (fstat (fd, &st) == -1 || !S_ISREG (st.st_mode)) {
    close (fd);
    errno = EINVAL;
    return NULL;
  }
  fp = ftruncate (fd, 0) == -1 ? NULL : fdopen (fd, "w");
  if (fp == NULL)
    close (fd);
  return fp;
}

/* Write all counters and close the file. */
static int
write_counters (FILE *fp, const char *policy, struct line *line)
{
  struct line_state state;
  struct export_totals *totals;
  size_t nr;
  int r = -1;

  totals = exports_get_totals (&nr);
  if (totals != NULL) {
    metrics_write (fp, policy, totals, nr);
    if (line != NULL) {
      line_get (line, &state);
      metrics_write_line (fp, &state);
    }
    exports_forget_totals (totals, nr);
    r = ferror (fp) ? -1 : 0;
  }
  return fclose (fp) == 0 ? r : -1;
}

/* Is something there that is no file, and should not be replaced by one? */
static bool
is_other (const char *path)
{
  struct stat st;

  return lstat (path, &st) == 0 && !S_ISREG (st.st_mode);
}

/* The reader sees the old file or the new one, never a part. */
static int
replace_file (const char *path, const char *tmp, const char *policy,
              struct line *line)
{
  FILE *fp = open_regular (tmp);
  int err;

  if (fp == NULL)
    return -1;
  if (write_counters (fp, policy, line) == 0 && rename (tmp, path) == 0)
    return 0;
  err = errno;
  unlink (tmp);
  errno = err;
  return -1;
}

int
statsfile_write (const char *path, const char *policy, struct line *line,
                 char why[STATSFILE_WHY_MAX])
{
  CLEANUP_FREE char *tmp = NULL;

  if (asprintf (&tmp, "%s.tmp", path) == -1) {
    tmp = NULL;
    snprintf (why, STATSFILE_WHY_MAX, "%s", strerror (ENOMEM));
    return -1;
  }
  if (is_other (path) || is_other (tmp)) {
    snprintf (why, STATSFILE_WHY_MAX, "%s is there and is not a regular file",
              is_other (path) ? "it" : "the same with .tmp at its end");
    return -1;
  }
  if (replace_file (path, tmp, policy, line) == 0)
    return 0;
  snprintf (why, STATSFILE_WHY_MAX, "%s", strerror (errno));
  return -1;
}
