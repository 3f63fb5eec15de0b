/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Text from elsewhere (a client's export name, a line of a file) made fit for
 * where it is printed: what it says can't be taken for something else, and two
 * names that differ stay different.
 *
 * Any thread may call these functions.  None allocates or reports an error.
 */

#ifndef ESCAPE_H
#define ESCAPE_H

#include <stddef.h>
#include <stdio.h>

enum escape_style {
  /* For a message: in single quotes, on one line.  What isn't printable or
   * isn't UTF-8 is written as in C, like \n or \xff.
   */
  ESCAPE_NAME,

  /* The same for a message of several lines of which only bytes are from
   * elsewhere: without quotes, and line ends, tabs and backslashes as they are.
   */
  ESCAPE_TEXT,

  /* For a label's value in the Prometheus text format, without its quotes.
   * Each byte that isn't UTF-8 becomes U+FFFD and two hexadecimal digits, and
   * so do those of a U+FFFD that was there before.
   */
  ESCAPE_LABEL,
};

/* Enough for most names; and for a message with a traceback. */
#define ESCAPE_NAME_MAX 512
#define ESCAPE_TEXT_MAX 8192

/* Write text to out, which has room for so many bytes, at least 8.  What finds
 * no room is left out and three dots say so.  Returns out.
 */
extern const char *escape (enum escape_style style, const char *text,
                           char *out, size_t size);

/* Write all of it to a file.  An error is left for ferror. */
extern void escape_to_file (enum escape_style style, const char *text,
                            FILE *fp);

#endif /* ESCAPE_H */
