/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Preloaded into nbdkit: lets system calls on some files fail, from and until
 * any time.
 *
 *   FAIL_WHEN=DIR   a call CALL for a file with the last name NAME fails while
 *                   there is a file DIR/CALL.NAME; what is in it is the errno,
 *                   and "once" if the file goes away by that
 *
 * CALL is pread, pread-first (of what is first in the file), pwrite, ftruncate, fallocate,
 * sync (fdatasync and fsync) or posix_fadvise; or fstatfs, which says then that the file
 * system is of this type.
 */

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/types.h>
#include <sys/vfs.h>

#define REAL(name) ((__typeof__ (&name)) dlsym (RTLD_NEXT, #name))

/* Sets errno if it has to fail. */
static bool
must_fail (const char *call, int fd)
{
  const char *dir = getenv ("FAIL_WHEN");
  char link[64], path[4096], when[8192], often[8], *name;
  ssize_t n;
  FILE *fp;
  int err;

  if (dir == NULL)
    return false;
  snprintf (link, sizeof link, "/proc/self/fd/%d", fd);
  n = readlink (link, path, sizeof path - 1);
  if (n < 0)
    return false;
  path[n] = '\0';
  name = strrchr (path, '/');
  if (name == NULL)
    return false;
  snprintf (when, sizeof when, "%s/%s.%s", dir, call, name + 1);
  fp = fopen (when, "re");
  if (fp == NULL)
    return false;
  switch (fscanf (fp, "%d %7s", &err, often)) {
  case 1:
    break;
  case 2:
    unlink (when);
    break;
  default:
    abort ();
  }
  fclose (fp);
  errno = err;
  return true;
}

ssize_t
pread (int fd, void *buf, size_t count, off_t offset)
{
  return must_fail ("pread", fd) || (offset == 0 && must_fail ("pread-first", fd)) ? -1
    : REAL (pread) (fd, buf, count, offset);
}

ssize_t
pread64 (int fd, void *buf, size_t count, off64_t offset)
{
  return pread (fd, buf, count, offset);
}

ssize_t
pwrite (int fd, const void *buf, size_t count, off_t offset)
{
  return must_fail ("pwrite", fd) ? -1
    : REAL (pwrite) (fd, buf, count, offset);
}

ssize_t
pwrite64 (int fd, const void *buf, size_t count, off64_t offset)
{
  return pwrite (fd, buf, count, offset);
}

int
ftruncate (int fd, off_t size)
{
  return must_fail ("ftruncate", fd) ? -1 : REAL (ftruncate) (fd, size);
}

int
ftruncate64 (int fd, off64_t size)
{
  return ftruncate (fd, size);
}

int
fallocate (int fd, int mode, off_t offset, off_t count)
{
  return must_fail ("fallocate", fd) ? -1
    : REAL (fallocate) (fd, mode, offset, count);
}

int
fallocate64 (int fd, int mode, off64_t offset, off64_t count)
{
  return fallocate (fd, mode, offset, count);
}

int
fsync (int fd)
{
  return must_fail ("sync", fd) ? -1 : REAL (fsync) (fd);
}

int
fdatasync (int fd)
{
  return must_fail ("sync", fd) ? -1 : REAL (fdatasync) (fd);
}

int
fstatfs (int fd, struct statfs *st)
{
  const int r = REAL (fstatfs) (fd, st);

  if (r == 0 && must_fail ("fstatfs", fd))
    st->f_type = errno;
  return r;
}

int
fstatfs64 (int fd, struct statfs64 *st)
{
  return fstatfs (fd, (struct statfs *) st);
}

int
posix_fadvise (int fd, off_t offset, off_t count, int advice)
{
  return must_fail ("posix_fadvise", fd) ? errno
    : REAL (posix_fadvise) (fd, offset, count, advice);
}

int
posix_fadvise64 (int fd, off64_t offset, off64_t count, int advice)
{
  return posix_fadvise (fd, offset, count, advice);
}
