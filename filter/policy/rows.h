/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Rows of numbers in a text: "offset count" lines, and the reads in a log of
 * nbdkit's log filter.
 *
 * lua/library/scan/trace.lua says what such files are, and policies do with other
 * lines what they like.  This reads the rows that are plainly right, a hundred times
 * as fast, and leaves all others to them.
 *
 * Any thread may call these functions.
 */

#ifndef SCAN_ROWS_H
#define SCAN_ROWS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A text, and how far it has been read. */
struct rows {
  const char *text;
  size_t length;                /* bytes */
  size_t position;              /* of the beginning of a line */
  size_t lines;                 /* that were passed */
};

struct row {
  int64_t offset, count;        /* bytes; from 0 up, from 1 up; no overflow */
  bool has_third;
  int64_t third;                /* any integer */
};

enum rows_result {
  ROWS_ROW,                     /* here it is; the line is passed */
  ROWS_OTHER,                   /* the line at position is for the caller */
  ROWS_END,                     /* nothing is left */
};

/* Go to the next row, or to the next line that is not plainly one, and pass lines
 * that have none: empty ones, comments, and in a log what is no read.  columns is
 * how many numbers a line may have, 2 or 3; log says whether there may be lines of
 * a log.
 */
extern enum rows_result rows_next (struct rows *rows, unsigned columns,
                                   bool log, struct row *row);

#endif /* SCAN_ROWS_H */
