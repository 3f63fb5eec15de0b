/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* A file with counters, for whoever looks now and then: scan-stats and
 * clone-stats.
 *
 * It is written aside, under its name with .tmp- and a random number at the end, and
 * put in its place, so that a reader sees the old file or the new one, never a part,
 * however many servers write it.  Nothing but a new file is ever opened, so the writer
 * can't be made to wait by who has put something else there.
 */

#ifndef COUNTERS_FILE_H
#define COUNTERS_FILE_H

#include <stdio.h>

#define COUNTERS_FILE_WHY_MAX 256 /* bytes, with the NUL */

/* Write the file anew; path is absolute.  What is there and is no regular file is
 * left alone, and an error.  `write` prints the counters; it leaves an
 * error of the file to be found there, and returns -1 with errno set if it has none
 * to print.  Returns 0, or -1 with the reason in why.  For one thread at a time.
 */
extern int counters_file_write (const char *path, int (*write) (FILE *fp),
                                char why[COUNTERS_FILE_WHY_MAX]);

#endif /* COUNTERS_FILE_H */
