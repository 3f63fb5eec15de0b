/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See disk.h. */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>

#include <nbdkit-filter.h>

#include "cleanup.h"
#include "disk.h"

/* Of 32 bits it would put what lies beyond 4G at the beginning, and say nothing. */
_Static_assert (sizeof (off_t) == sizeof (uint64_t),
                "offsets in files have 64 bits");

#define MODE_OWNER_ONLY 0600

/* O_NONBLOCK, as opening a FIFO would wait; it means nothing for files. */
#define OPEN_FLAGS (O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)

/* Smaller holes would cost more calls, and make more extents of a file, than they save. */
#define HOLE_UNIT 65536

static const char zeroes[HOLE_UNIT];

/* A copy of the name of the folder that a file is in; NULL if memory is
 * short.
 */
static char *
folder_of (const char *path)
{
  const char *slash = strrchr (path, '/');

  return slash == NULL ? strdup (".")
    : strndup (path, slash == path ? 1 : slash - path);
}

/* May it be a trap?  In a folder where anybody may put files, such as /tmp, one
 * that is not ours is, as whoever owns it reads and changes what we keep there.
 * Linux has this rule for O_CREAT, where it is told to.  A folder for a group is taken
 * for such only if it is sticky, as others are shared by those who trust each other.
 */
static int
check_owner (const char *path, const struct stat *st)
{
  CLEANUP_FREE char *folder = NULL;
  struct stat in;

  if (st->st_uid == geteuid ())
    return 0;
  folder = folder_of (path);
  if (folder == NULL || stat (folder, &in) == -1)
    return errno;
  return (in.st_mode & (in.st_mode & S_ISVTX ? S_IWGRP | S_IWOTH : S_IWOTH)) != 0 &&
    st->st_uid != in.st_uid ? DISK_FOREIGN : 0;
}

int
disk_open (const char *path, bool create)
{
  struct stat st;
  int fd, err;

  fd = open (path, OPEN_FLAGS | (create ? O_CREAT | O_EXCL : 0), MODE_OWNER_ONLY);
  if (fd == -1)
    return -1;
  err = fstat (fd, &st) == -1 ? errno : S_ISREG (st.st_mode)
    ? check_owner (path, &st) : EINVAL;
  if (err != 0) {
    close (fd);
    errno = err;
    return -1;
  }
  return fd;
}

int
disk_open_temporary (void)
{
  const char *folder = getenv ("TMPDIR");
  CLEANUP_FREE char *path = NULL;
  int fd;

  if (folder == NULL || *folder == '\0')
    folder = "/var/tmp";
  if (asprintf (&path, "%s/nbdkit-clone-XXXXXX", folder) == -1) {
    path = NULL;
    nbdkit_error ("clone: asprintf: %m");
    return -1;
  }
  fd = mkostemp (path, O_CLOEXEC);
  if (fd == -1) {
    nbdkit_error ("clone: cannot make a temporary file %s: %m; TMPDIR says "
                  "where", path);
    return -1;
  }
  unlink (path);
  return fd;
}

int
disk_sync_folder (const char *path)
{
  CLEANUP_FREE char *folder = folder_of (path);
  int fd, err;

  if (folder == NULL)
    return errno;
  fd = open (folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd == -1)
    return errno;
  do
    err = fsync (fd) == -1 ? errno : 0;
  while (err == EINTR);
  close (fd);
  /* So say file systems that have none for folders; they have their own ways. */
  return err == EINVAL ? 0 : err;
}

/* What QEMU's programs say to each other, in bytes that they lock for reading: one from
 * 100 on for what they do to an image, and one from 200 on for what others must not do.
 */
#define QEMU_WRITES 101
#define QEMU_NO_WRITES 201

static int
lock_bytes (int fd, short type, off_t from, off_t count)
{
  struct flock lock = {
    .l_type = type, .l_whence = SEEK_SET, .l_start = from, .l_len = count,
  };

  if (fcntl (fd, F_OFD_SETLK, &lock) == 0)
    return 0;
  return errno == EACCES ? EAGAIN : errno;
}

/* Has somebody else locked this byte, be it for reading? */
static int
check_byte (int fd, off_t byte)
{
  struct flock lock = {
    .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1,
  };

  if (fcntl (fd, F_OFD_GETLK, &lock) == -1)
    return errno;
  return lock.l_type == F_UNLCK ? 0 : EAGAIN;
}

/* The first bytes keep out servers like us; an earlier version locked all there are.  As
 * QEMU does, it is locked before it is looked at, so that of two that come at once one
 * sees the other.
 */
int
disk_lock (int fd)
{
  int err = lock_bytes (fd, F_WRLCK, 0, 100);

  if (err == 0)
    err = lock_bytes (fd, F_RDLCK, QEMU_WRITES, 1);
  if (err == 0)
    err = lock_bytes (fd, F_RDLCK, QEMU_NO_WRITES, 1);
  if (err == 0)
    err = check_byte (fd, QEMU_WRITES);
  if (err == 0)
    err = check_byte (fd, QEMU_NO_WRITES);
  return err;
}

void
disk_close (int fd)
{
  struct flock lock = { .l_type = F_UNLCK, .l_whence = SEEK_SET };

  if (fd == -1)
    return;
  fcntl (fd, F_OFD_SETLK, &lock);
  close (fd);
}

int
disk_read (int fd, void *buf, size_t count, uint64_t offset)
{
  ssize_t n;

  while (count > 0) {
    n = pread (fd, buf, count, offset);
    if (n == -1 && errno == EINTR)
      continue;
    if (n == -1)
      return errno;
    if (n == 0)
      return EIO;
    buf = (char *) buf + n;
    count -= n;
    offset += n;
  }
  return 0;
}

int
disk_write (int fd, const void *buf, size_t count, uint64_t offset)
{
  ssize_t n;

  while (count > 0) {
    n = pwrite (fd, buf, count, offset);
    if (n == -1 && errno == EINTR)
      continue;
    if (n == -1)
      return errno;
    buf = (const char *) buf + n;
    count -= n;
    offset += n;
  }
  return 0;
}

int
disk_sync (int fd)
{
  while (fdatasync (fd) == -1)
    if (errno != EINTR)
      return errno;
  return 0;
}

void
disk_forget_cached (int fd)
{
  posix_fadvise (fd, 0, 0, POSIX_FADV_DONTNEED);
}

static int
set_size (int fd, uint64_t size)
{
  while (ftruncate (fd, size) == -1)
    if (errno != EINTR)
      return errno;
  return 0;
}

int
disk_make_empty (int fd, uint64_t size, bool allocate)
{
  int err = set_size (fd, 0);

  if (err == 0)
    err = set_size (fd, size);
  if (err != 0)
    return err;
  while (allocate && fallocate (fd, 0, 0, size) == -1) {
    if (errno == EINTR)
      continue;
    return errno == EOPNOTSUPP || errno == ENOSYS ? 0 : errno;
  }
  return 0;
}

/* FUSE asks its daemon where data is, which may not have yet what is in the page cache. */
static bool
knows_no_holes (int fd)
{
  struct statfs st;

  return fstatfs (fd, &st) == -1 || st.f_type == FUSE_SUPER_MAGIC;
}

uint64_t
disk_extent (int fd, uint64_t offset, uint64_t end, bool *is_hole)
{
  off_t data = lseek (fd, offset, SEEK_DATA), hole;
  struct stat st;

  if (data == -1 && errno == ENXIO && fstat (fd, &st) == 0)
    data = st.st_size;
  *is_hole = data != -1 && (uint64_t) data > offset && !knows_no_holes (fd);
  if (*is_hole)
    return (uint64_t) data > end ? end : (uint64_t) data;
  if (data != -1 && (uint64_t) data > offset)
    return end;
  hole = lseek (fd, offset, SEEK_HOLE);
  return hole == -1 || (uint64_t) hole > end || (uint64_t) hole <= offset
    ? end : (uint64_t) hole;
}

bool
disk_is_hole (int fd)
{
  /* Then FUSE's daemon knows, too. */
  return disk_sync (fd) == 0 && lseek (fd, 0, SEEK_DATA) == -1 && errno == ENXIO;
}

/* Holes are zeroes already. */
static int
write_zeroes (int fd, uint64_t count, uint64_t offset, bool keep_holes)
{
  const uint64_t end = offset + count;
  bool is_hole;
  uint64_t n;
  int err;

  for (; offset < end; offset += n) {
    n = disk_extent (fd, offset, end, &is_hole) - offset;
    if (is_hole && keep_holes)
      continue;
    if (n > sizeof zeroes)
      n = sizeof zeroes;
    err = disk_write (fd, zeroes, n, offset);
    if (err != 0)
      return err;
  }
  return 0;
}

int
disk_zero (int fd, uint64_t count, uint64_t offset, enum disk_zero how,
           bool quick)
{
  const int mode = how == DISK_PUNCH ? FALLOC_FL_PUNCH_HOLE
    : FALLOC_FL_ZERO_RANGE;

  if (count == 0)
    return 0;
  while (fallocate (fd, mode | FALLOC_FL_KEEP_SIZE, offset, count) == -1) {
    if (errno == EINTR)
      continue;
    /* There may be room for zeroes where there is none for what would say so.  And where
     * there was none in the midst, ext4 reads as zeroes until it looks at the disk again.
     */
    if (errno != EOPNOTSUPP && errno != ENOSYS)
      posix_fadvise (fd, offset - offset % HOLE_UNIT, count + 2 * HOLE_UNIT,
                     POSIX_FADV_DONTNEED);
    return quick ? EOPNOTSUPP
      : write_zeroes (fd, count, offset, how == DISK_PUNCH);
  }
  return 0;
}

/* How much there is of the unit that this offset is in. */
static size_t
rest_of_unit (uint64_t offset, size_t count)
{
  const size_t rest = HOLE_UNIT - offset % HOLE_UNIT;

  return rest < count ? rest : count;
}

int
disk_write_sparse (int fd, const void *buf, size_t count, uint64_t offset)
{
  const char *data = buf;
  size_t n, rest;
  bool zero;
  int err;

  for (; count > 0; data += n, offset += n, count -= n) {
    n = rest_of_unit (offset, count);
    zero = memcmp (data, zeroes, n) == 0;
    for (; n < count; n += rest) {
      rest = rest_of_unit (offset + n, count - n);
      if ((memcmp (data + n, zeroes, rest) == 0) != zero)
        break;
    }
    err = zero ? disk_zero (fd, n, offset, DISK_PUNCH, false)
      : disk_write (fd, data, n, offset);
    if (err != 0)
      return err;
  }
  return 0;
}

int
disk_space (int fd, uint64_t *free_bytes, uint64_t *size)
{
  struct statvfs st;

  if (fstatvfs (fd, &st) == -1)
    return errno;
  *free_bytes = (uint64_t) st.f_bavail * st.f_frsize;
  *size = (uint64_t) st.f_blocks * st.f_frsize;
  return 0;
}
