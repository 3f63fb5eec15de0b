/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* rows: what is taken, what is passed, and what is left to the policy. */

#include <inttypes.h>
#include <string.h>

#include "check.h"
#include "rows.h"

#define TIME "2026-01-31 23:59:59.999000 connection=1 "

static struct row row;

static enum rows_result
first (const char *text, unsigned columns, bool log, struct rows *rows)
{
  *rows = (struct rows) { .text = text, .length = strlen (text) };
  return rows_next (rows, columns, log, &row);
}

/* The text has one row, and that is this one. */
static void
takes (const char *text, int64_t offset, int64_t count)
{
  struct rows rows;

  check (first (text, 2, true, &rows) == ROWS_ROW && row.offset == offset &&
         row.count == count && rows_next (&rows, 2, true, &row) == ROWS_END &&
         rows.position == rows.length, "a row: '%s'", text);
}

static void
passes (const char *text, size_t lines)
{
  struct rows rows;

  check (first (text, 2, true, &rows) == ROWS_END && rows.lines == lines &&
         rows.position == rows.length, "none: '%s'", text);
}

/* The line after so many is for the caller. */
static void
leaves (const char *text, unsigned columns, bool log, size_t lines)
{
  struct rows rows;
  enum rows_result result = first (text, columns, log, &rows);

  while (result == ROWS_ROW)
    result = rows_next (&rows, columns, log, &row);
  check (result == ROWS_OTHER && rows.lines == lines &&
         (rows.position == 0 || text[rows.position - 1] == '\n'),
         "for the caller: '%s'", text);
}

static void
test_lists (void)
{
  static const char *const bad[] = {
    "x 1", "1 x", "1", "1 2 3", "-1 1", "1.5 1", "1 0", "0x 1", "1 0x", "1Q 1",
    "99999999999999999999 1", "0x8000000000000000 1", "8E 1", "16777216T 1",
    "9223372036854775807 1", "0x10K 1", "1KK 1", "1 2 x", "K 1", "1 2 3 4",
    "\xe9 1", "1 2\xa0",
  };
  size_t i;

  takes ("0 512", 0, 512);
  takes ("\n# a comment\n  \n4K\t0x10  # the header\n", 4096, 16);
  takes ("1 2\r\n", 1, 2);
  takes ("0x1b 0X1B", 27, 27);
  takes ("8b 1s", 8, 512);
  takes ("7E 1", INT64_C (7) << 60, 1);
  takes ("9223372036854775806 1", INT64_MAX - 1, 1);
  takes ("0x7ffffffffffffffe 1", INT64_MAX - 1, 1);
  takes ("0000000000000000000000004 1", 4, 1);
  passes ("", 0);
  passes ("\n\n", 2);
  passes ("# 1 2", 1);
  for (i = 0; i < sizeof bad / sizeof bad[0]; ++i)
    leaves (bad[i], 2, true, 0);
  leaves ("1 1\n\n2 x\n3 3", 2, true, 2);
}

static void
test_thirds (void)
{
  struct rows rows;

  check (first ("1 2 -3", 3, false, &rows) == ROWS_ROW && row.has_third &&
         row.third == -3, "a third number");
  check (first ("1 2", 3, false, &rows) == ROWS_ROW && !row.has_third,
         "may be left out");
  leaves ("1 2 3.5", 3, false, 0);
  leaves ("1 2 3 4", 3, false, 0);
  leaves (TIME "Read id=1 offset=0x0 count=0x200 ...", 3, false, 0);
}

static void
test_logs (void)
{
  takes (TIME "Connect export=\"\" tls=0 size=0x800000\n"
         TIME "Read id=1 offset=0x200 count=0x400 ...\n"
         TIME "...Read id=1 return=0\n"
         TIME "Write id=2 offset=0x1000 count=0x200 fua=0 ...\n", 0x200, 0x400);
  takes ("! connection=1 Read id=5 offset=0x400 count=0x200 ...\n", 0x400, 0x200);
  passes (TIME "Extents id=1 offset=0x0 count=0x1 ...\n" "! Preconnect", 2);
  leaves (TIME "Read id=1 offset=0x0 count=0x0 ...", 2, true, 0);
  leaves (TIME "Read id=1 offset=12 count=0x1 ...", 2, true, 0);
  leaves (TIME "Read id=1 count=0x1 ...", 2, true, 0);
  leaves (TIME "Read id=1 offset=0x8000000000000000 count=0x1", 2, true, 0);
  leaves ("2026-01-31 Read id=1 offset=0x0 count=0x1", 2, true, 0);
}

/* Nothing after the end is looked at. */
static void
test_ends (void)
{
  struct rows rows = { .text = "1 234", .length = 3 };

  check (rows_next (&rows, 2, true, &row) == ROWS_ROW && row.count == 2,
         "the text ends where it ends");
  rows = (struct rows) { .text = TIME "Read id=1 offset=0x10 count=0x20",
                         .length = strlen (TIME) + 25 };
  check (rows_next (&rows, 2, true, &row) == ROWS_OTHER, "a log too");
}

int
main (void)
{
  test_lists ();
  test_thirds ();
  test_logs ();
  test_ends ();
  return done ();
}
