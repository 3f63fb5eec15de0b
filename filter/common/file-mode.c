/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See file-mode.h. */

#include <sys/stat.h>
#include <unistd.h>

#include "file-mode.h"

int
file_mode_keep (FILE *fp, const char *path)
{
  struct stat st;

  if (stat (path, &st) == -1)
    return 0;
  st.st_mode &= 0777;
  if (fchown (fileno (fp), st.st_uid, st.st_gid) == -1 &&
      fchown (fileno (fp), -1, st.st_gid) == -1)
    /* The group is another one: to us it is as all others are. */
    st.st_mode = (st.st_mode & ~070) | (st.st_mode & 07) << 3;
  return fchmod (fileno (fp), st.st_mode);
}
