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

static const char NOT_REGULAR[] = "is there and not a regular file; it should "
  "be a path where a new file can be made";

static bool warned;             /* that the file can't be written */

/* Why it is surely wrong, or NULL. */
static const char *
fault (const char *path)
{
  CLEANUP_FREE char *dir = strdup (path);
  const char *name = strrchr (path, '/') + 1;
  struct stat st;

  if (dir == NULL)
    return strerror (errno);
  if (lstat (path, &st) == 0 && !S_ISREG (st.st_mode))
    return NOT_REGULAR;
  if (*name == '\0')
    return "names no file";
  dir[name - path] = '\0';
  /* Root may become another user, who perhaps may not what root may. */
  if (access (dir, W_OK | X_OK) == -1)
    return strerror (errno);
  return NULL;
}

int
statsfile_check (const char *path)
{
  const char *why = fault (path);

  if (why == NULL)
    return 0;
  nbdkit_error ("scan-stats=%s: can't be written: %s", path, why);
  return -1;
}

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
    errno = EEXIST;
    return NULL;
  }
  fp = ftruncate (fd, 0) == -1 ? NULL : fdopen (fd, "w");
  if (fp == NULL)
    close (fd);
  return fp;
}

/* Write all counters and close the file. */
static int
write_counters (FILE *fp, const char *policy)
{
  struct export_totals *totals;
  size_t nr;
  int r = -1;

  totals = exports_get_totals (&nr);
  if (totals != NULL) {
    metrics_write (fp, policy, totals, nr);
    exports_forget_totals (totals, nr);
    r = ferror (fp) ? -1 : 0;
  }
  return fclose (fp) == 0 ? r : -1;
}

/* The reader sees the old file or the new one, never a part. */
static int
replace_file (const char *path, const char *policy)
{
  CLEANUP_FREE char *tmp = NULL;
  struct stat st;
  FILE *fp;
  int err;

  if (asprintf (&tmp, "%s.tmp", path) == -1) {
    tmp = NULL;
    return -1;
  }
  if (lstat (path, &st) == 0 && !S_ISREG (st.st_mode)) {
    errno = EEXIST;
    return -1;
  }
  fp = open_regular (tmp);
  if (fp == NULL)
    return -1;
  if (write_counters (fp, policy) == 0 && rename (tmp, path) == 0)
    return 0;
  err = errno;
  unlink (tmp);
  errno = err;
  return -1;
}

void
statsfile_write (const char *path, const char *policy)
{
  if (replace_file (path, policy) == 0 || warned)
    return;
  warned = true;
  if (errno == EEXIST)
    nbdkit_error ("scan: warning: scan-stats=%s can't be written: it, or %s.tmp, "
                  "%s", path, path, NOT_REGULAR);
  else
    nbdkit_error ("scan: warning: scan-stats=%s can't be written: %m", path);
}
