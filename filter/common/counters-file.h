/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* A file with counters, for whoever looks now and then: scan-stats and
 * clone-stats.
 *
 * It is written aside, under its name with .tmp- and a random number at the end, and
 * put in its place, so that a reader sees the old file or the new one, never a part,
 * however many servers write it.  It replaces nothing but counters of its own kind, as
 * the name may be a slip, and that of a disk.
 */

#ifndef COUNTERS_FILE_H
#define COUNTERS_FILE_H

#include <stdio.h>

#define COUNTERS_FILE_WHY_MAX 256 /* bytes, with the NUL */

/* At start-up: may this file be written, as far as can be told without writing it?  Not
 * if there is no such folder, or the user may not write there; nor if it is there and is
 * no regular file, or one that doesn't begin with this text, as what is written does.
 * One that is empty may be.  It waits for nothing, whatever has been put there.  path is
 * absolute.  Returns 0, or -1 after nbdkit_error, which names the parameter.
 */
extern int counters_file_check (const char *parameter, const char *path,
                                const char *begins);

/* Write the file anew, if it may be; path is absolute.  `write` prints the counters,
 * and what they begin with first; it leaves an error of the file to be found there, and
 * returns -1 with errno set if it has none to print.  Returns 0, or -1 with the reason
 * in why.  For one thread at a time.
 */
extern int counters_file_write (const char *path, const char *begins,
                                int (*write) (FILE *fp),
                                char why[COUNTERS_FILE_WHY_MAX]);

/* The same for a file that is written now and then, the one of this filter.  Warns once if
 * that fails: a file system is full, or the server has become a user who may not.
 * parameter is that which names the file, as scan-stats of the scan filter.
 */
extern void counters_file_update (const char *parameter, const char *path,
                                  const char *begins, int (*write) (FILE *fp));

#endif /* COUNTERS_FILE_H */
