/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* The system calls of the clone filter's files, whole: they go on after a
 * signal or a short transfer.  Everything that reaches a file goes through
 * here.
 *
 * Functions return 0, or an errno, and print nothing, unless said otherwise.
 * Any thread may call them.
 */

#ifndef CLONE_DISK_H
#define CLONE_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What errno says of a file that somebody else may have put in a folder for all; no
 * system call fails with that.
 */
#define DISK_FOREIGN 0x10000

/* Open a regular file for reading and writing, never through a link; if create, make
 * it, for its owner alone.  Returns the descriptor, or -1 with errno set: ENOENT if it is
 * missing, ELOOP for a link, EINVAL for what is not a regular file, or DISK_FOREIGN.
 */
extern int disk_open (const char *path, bool create);

/* Make a file without a name, in TMPDIR or /var/tmp, that is gone when it is
 * closed.  Returns the descriptor, or -1 after nbdkit_error.
 */
extern int disk_open_temporary (void);

/* Make the names in this file's folder durable. */
extern int disk_sync_folder (const char *path);

/* Lock a file against all other open files, also of this process, and against QEMU, but
 * for those of its programs that are told to read what somebody writes to.  EAGAIN if
 * somebody has it; it may be locked in part then.
 */
extern int disk_lock (int fd);

/* Close a file that may be locked.  -1 is allowed.  A process that was forked since it
 * was opened, such as that which runs the command of --run, does not keep the lock.
 */
extern void disk_close (int fd);

/* A read past the end of the file is EIO. */
extern int disk_read (int fd, void *buf, size_t count, uint64_t offset);
extern int disk_write (int fd, const void *buf, size_t count, uint64_t offset);
extern int disk_sync (int fd);

/* What is read from now on is read from the disk, and not from the page cache.  Only of
 * what is synced, and where the kernel can do that; it can't fail.
 */
extern void disk_forget_cached (int fd);

/* Make the file all zeroes and of this size; if allocate, with room on the file
 * system for all of it, where that can be had.
 */
extern int disk_make_empty (int fd, uint64_t size, bool allocate);

/* How to make a range zeroes. */
enum disk_zero {
  DISK_PUNCH,                   /* and give the space back */
  DISK_ALLOCATE,                /* and keep the space */
};

/* If there is no quick way, or no room for it: EOPNOTSUPP if `quick`; else it writes
 * zeroes, and only over what is data if that is to be a hole.
 */
extern int disk_zero (int fd, uint64_t count, uint64_t offset,
                      enum disk_zero how, bool quick);

/* Write, but make a hole of each aligned 64K, or what there is of it, that is zeroes. */
extern int disk_write_sparse (int fd, const void *buf, size_t count, uint64_t offset);

/* Where the data or hole that begins at offset ends, up to end.  On a file system
 * that can't tell, such as FUSE, all is data; so is what lies behind the end of the file.
 */
extern uint64_t disk_extent (int fd, uint64_t offset, uint64_t end,
                             bool *is_hole);

/* Is the file one hole, or empty?  It is synced.  False where that can't be told. */
extern bool disk_is_hole (int fd);

/* Bytes free on the file system for us, and its size. */
extern int disk_space (int fd, uint64_t *free_bytes, uint64_t *size);

#endif /* CLONE_DISK_H */
