/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See counters-file.h. */

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <nbdkit-filter.h>

#include "cleanup.h"
#include "counters-file.h"
#include "file-mode.h"

#define BEGINS_MAX 64           /* bytes */

/* Does it begin with this text, or is it empty? */
static bool
begins_with (int fd, const char *begins)
{
  char buf[BEGINS_MAX];
  const size_t len = strnlen (begins, sizeof buf);
  ssize_t n;

  do
    n = pread (fd, buf, len, 0);
  while (n == -1 && errno == EINTR);
  return n == 0 || (n == (ssize_t) len && memcmp (buf, begins, len) == 0);
}

/* May it be replaced?  Returns 0, or -1 with the reason in why. */
static int
check (const char *path, const char *begins, char why[COUNTERS_FILE_WHY_MAX])
{
  bool is_ours;
  struct stat st;
  int fd;

  if (lstat (path, &st) == -1)
    return 0;                   /* trying to write it will tell */
  if (!S_ISREG (st.st_mode)) {
    snprintf (why, COUNTERS_FILE_WHY_MAX,
              "it is there and is not a regular file");
    return -1;
  }
  /* It may be a FIFO by now. */
  fd = open (path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  if (fd == -1) {
    if (errno == ENOENT)
      return 0;
    snprintf (why, COUNTERS_FILE_WHY_MAX, "it is there and can't be read: %s",
              strerror (errno));
    return -1;
  }
  is_ours = begins_with (fd, begins);
  close (fd);
  if (is_ours)
    return 0;
  snprintf (why, COUNTERS_FILE_WHY_MAX,
            "it is there and holds something else than these counters");
  return -1;
}

/* May this user make a file of that name?  Root may be about to become another, who may
 * where root may not: then what is written says it.  Returns 0, or -1 with the reason in why.
 */
static int
check_folder (const char *path, char why[COUNTERS_FILE_WHY_MAX])
{
  CLEANUP_FREE char *folder = NULL;

  if (asprintf (&folder, "%.*s/.", (int) (strrchr (path, '/') - path), path) == -1) {
    folder = NULL;
    errno = ENOMEM;
  }
  else if (faccessat (AT_FDCWD, folder, W_OK, AT_EACCESS) == 0 ||
           (errno == EACCES && geteuid () == 0))
    return 0;
  snprintf (why, COUNTERS_FILE_WHY_MAX, "%s", strerror (errno));
  return -1;
}

int
counters_file_check (const char *parameter, const char *path, const char *begins)
{
  char why[COUNTERS_FILE_WHY_MAX];

  if (check (path, begins, why) == 0 && check_folder (path, why) == 0)
    return 0;
  nbdkit_error ("%s=%s cannot be written: %s", parameter, path, why);
  return -1;
}

/* Make a file beside path that no other server writes to.  *aside is to be freed.
 * Returns NULL with errno set if that fails.
 */
static FILE *
open_aside (const char *path, char **aside)
{
  unsigned tries, number;
  FILE *fp;

  for (tries = 0; tries < 16; ++tries) {
    /* Not the process id: servers in containers of their own may share that. */
    if (getrandom (&number, sizeof number, 0) != sizeof number)
      break;
    if (asprintf (aside, "%s.tmp-%08x", path, number) == -1) {
      *aside = NULL;
      errno = ENOMEM;
      break;
    }
    fp = fopen (*aside, "wxe");
    if (fp != NULL)
      return fp;
    free (*aside);
    *aside = NULL;
    if (errno != EEXIST)
      break;
  }
  return NULL;
}

static int
replace_file (const char *path, int (*write) (FILE *fp))
{
  CLEANUP_FREE char *aside = NULL;
  FILE *fp;
  int r, err;

  fp = open_aside (path, &aside);
  if (fp == NULL)
    return -1;
  r = file_mode_keep (fp, path) == 0 && write (fp) == 0 && !ferror (fp) ? 0 : -1;
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
counters_file_write (const char *path, const char *begins,
                     int (*write) (FILE *fp), char why[COUNTERS_FILE_WHY_MAX])
{
  if (check (path, begins, why) == -1)
    return -1;
  if (replace_file (path, write) == 0)
    return 0;
  snprintf (why, COUNTERS_FILE_WHY_MAX, "%s", strerror (errno));
  return -1;
}

void
counters_file_update (const char *parameter, const char *path, const char *begins,
                      int (*write) (FILE *fp))
{
  static bool warned;           /* of the one thread at a time */
  char why[COUNTERS_FILE_WHY_MAX];

  if (counters_file_write (path, begins, write, why) == 0)
    return;
  if (!warned)
    nbdkit_error ("%.*s: warning: %s=%s cannot be written: %s",
                  (int) strcspn (parameter, "-"), parameter, parameter, path, why);
  warned = true;
}
