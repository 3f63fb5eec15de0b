/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Preloaded into nbdkit: records what is done to two files, so that a test can make
 * of it what a power cut could have left at any instant.
 *
 *   RECORD_FILE=PATH   the first file; the second is PATH.map
 *   RECORD_LOG=PATH    what to append to
 *
 * Each call writes an entry before it is done and one after it; see struct entry.
 * One lock makes their order in the log the order in which they happened.
 */

#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>

enum kind { WRITE = 1, ZERO, TRUNCATE, SYNC, END };

struct entry {
  uint8_t kind, file;           /* 0 the first, 1 the second */
  uint8_t unused[2];
  uint32_t id;                  /* of the call; END has that of its begin */
  uint64_t offset, count;       /* WRITE: count bytes follow */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint32_t last_id;
static int log_fd = -1;

/* Which of the files is it?  -1: neither. */
static int
file_of (int fd)
{
  const char *wanted = getenv ("RECORD_FILE");
  char link[64], path[4096];
  size_t len;
  ssize_t n;

  if (wanted == NULL)
    return -1;
  snprintf (link, sizeof link, "/proc/self/fd/%d", fd);
  n = readlink (link, path, sizeof path - 1);
  if (n < 0)
    return -1;
  path[n] = '\0';
  len = strlen (wanted);
  if (strncmp (path, wanted, len) != 0)
    return -1;
  return path[len] == '\0' ? 0 : strcmp (path + len, ".map") == 0 ? 1 : -1;
}

static void
append (struct entry *e, const void *data)
{
  struct iovec iov[2] = {
    { e, sizeof *e }, { (void *) data, data ? e->count : 0 },
  };

  if (log_fd == -1)
    log_fd = open (getenv ("RECORD_LOG"), O_WRONLY | O_APPEND | O_CREAT |
                   O_CLOEXEC, 0600);
  if (writev (log_fd, iov, data ? 2 : 1) < (ssize_t) sizeof *e)
    abort ();
}

static uint32_t
begin (enum kind kind, int file, uint64_t offset, uint64_t count,
       const void *data)
{
  struct entry e = {
    .kind = kind, .file = file, .offset = offset, .count = count,
  };

  if (file == -1)
    return 0;
  pthread_mutex_lock (&lock);
  e.id = ++last_id;
  append (&e, data);
  pthread_mutex_unlock (&lock);
  return e.id;
}

static void
end (uint32_t id, int file)
{
  struct entry e = { .kind = END, .file = file, .id = id };

  if (id == 0)
    return;
  pthread_mutex_lock (&lock);
  append (&e, NULL);
  pthread_mutex_unlock (&lock);
}

#define REAL(name) ((__typeof__ (&name)) dlsym (RTLD_NEXT, #name))

ssize_t
pwrite (int fd, const void *buf, size_t count, off_t offset)
{
  const int file = file_of (fd);
  const uint32_t id = begin (WRITE, file, offset, count, buf);
  const ssize_t r = REAL (pwrite) (fd, buf, count, offset);

  end (id, file);
  return r;
}

ssize_t
pwrite64 (int fd, const void *buf, size_t count, off64_t offset)
{
  return pwrite (fd, buf, count, offset);
}

int
ftruncate (int fd, off_t size)
{
  const int file = file_of (fd);
  const uint32_t id = begin (TRUNCATE, file, size, 0, NULL);
  const int r = REAL (ftruncate) (fd, size);

  end (id, file);
  return r;
}

int
ftruncate64 (int fd, off64_t size)
{
  return ftruncate (fd, size);
}

/* Making room doesn't change what is read. */
int
fallocate (int fd, int mode, off_t offset, off_t count)
{
  const int file =
    mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE) ? file_of (fd) : -1;
  const uint32_t id = begin (ZERO, file, offset, count, NULL);
  const int r = REAL (fallocate) (fd, mode, offset, count);

  end (id, file);
  return r;
}

int
fallocate64 (int fd, int mode, off64_t offset, off64_t count)
{
  return fallocate (fd, mode, offset, count);
}

int
fsync (int fd)
{
  const int file = file_of (fd);
  const uint32_t id = begin (SYNC, file, 0, 0, NULL);
  const int r = REAL (fsync) (fd);

  end (id, file);
  return r;
}

int
fdatasync (int fd)
{
  const int file = file_of (fd);
  const uint32_t id = begin (SYNC, file, 0, 0, NULL);
  const int r = REAL (fdatasync) (fd);

  end (id, file);
  return r;
}
