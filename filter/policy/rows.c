/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See rows.h. */

#include <ctype.h>
#include <string.h>

#include "rows.h"

/* A part of a text; end is after it. */
struct part {
  const char *p, *end;
};

static bool
is_space (char c)
{
  return c == ' ' || (c >= '\t' && c <= '\r');
}

static bool
is_digit (char c)
{
  return c >= '0' && c <= '9';
}

/* Take the digits of a number that is below 2^63. */
static bool
take_number (struct part *part, unsigned base, int64_t *result)
{
  const char *start = part->p;
  uint64_t n = 0;

  for (; part->p < part->end; ++part->p) {
    const unsigned char c = *part->p;
    unsigned digit;

    if (is_digit (c))
      digit = c - '0';
    else if (base == 16 && isxdigit (c))
      digit = (c | 0x20) - 'a' + 10;
    else
      break;
    if (n > ((uint64_t) INT64_MAX - digit) / base)
      return false;
    n = n * base + digit;
  }
  *result = n;
  return part->p > start;
}

/* 4096, 0x1000 or 4K; see sizes.lua. */
static bool
to_size (struct part word, int64_t *result)
{
  static const char units[] = "bkmgtpe";
  const char *unit;
  unsigned shift;

  if (word.end - word.p > 2 && word.p[0] == '0' && (word.p[1] | 0x20) == 'x') {
    word.p += 2;
    return take_number (&word, 16, result) && word.p == word.end;
  }
  if (!take_number (&word, 10, result))
    return false;
  if (word.p == word.end)
    return true;
  if (word.end - word.p != 1 || !isalpha ((unsigned char) *word.p))
    return false;
  unit = strchr (units, *word.p | 0x20);
  if (unit == NULL && (*word.p | 0x20) != 's')
    return false;
  shift = unit == NULL ? 9 : 10 * (unit - units);
  if (*result > INT64_MAX >> shift)
    return false;
  *result <<= shift;
  return true;
}

static bool
to_integer (struct part word, int64_t *result)
{
  const bool negative = word.p < word.end && *word.p == '-';

  word.p += negative;
  if (!take_number (&word, 10, result) || word.p != word.end)
    return false;
  if (negative)
    *result = -*result;
  return true;
}

static struct part
take_word (struct part *line)
{
  struct part word;

  while (line->p < line->end && is_space (*line->p))
    line->p++;
  word.p = line->p;
  while (line->p < line->end && !is_space (*line->p))
    line->p++;
  word.end = line->p;
  return word;
}

static bool
is_range (const struct row *row)
{
  return row->count > 0 && row->offset <= INT64_MAX - row->count;
}

/* "offset count [third]"; an empty line is ROWS_END. */
static enum rows_result
read_list_line (struct part line, unsigned columns, struct row *row)
{
  const char *comment = memchr (line.p, '#', line.end - line.p);
  struct part words[4];
  unsigned i;

  if (comment != NULL)
    line.end = comment;
  for (i = 0; i < 4; ++i)
    words[i] = take_word (&line);
  if (words[0].p == words[0].end)
    return ROWS_END;
  row->has_third = words[2].p < words[2].end;
  if (words[3].p < words[3].end || (row->has_third && columns < 3) ||
      !to_size (words[0], &row->offset) || !to_size (words[1], &row->count) ||
      (row->has_third && !to_integer (words[2], &row->third)) ||
      !is_range (row))
    return ROWS_OTHER;
  return ROWS_ROW;
}

/* A line of a log begins with its time, or with "!" where there was none. */
static bool
is_log_line (struct part line)
{
  static const char pattern[] = "0000-00-00 00:00:00.000000 ";
  size_t i;

  if (line.end - line.p >= 2 && memcmp (line.p, "! ", 2) == 0)
    return true;
  if ((size_t) (line.end - line.p) < sizeof pattern - 1)
    return false;
  for (i = 0; i < sizeof pattern - 1; ++i)
    if (pattern[i] == '0' ? !is_digit (line.p[i]) : line.p[i] != pattern[i])
      return false;
  return true;
}

static const char *
find (struct part line, const char *text)
{
  return memmem (line.p, line.end - line.p, text, strlen (text));
}

/* A field of a log line, which it writes in hexadecimal. */
static bool
read_field (struct part line, const char *name, int64_t *result)
{
  const char *p = find (line, name);

  if (p == NULL)
    return false;
  line.p = p + strlen (name);
  if (line.end - line.p < 3 || memcmp (line.p, "0x", 2) != 0)
    return false;
  line.p += 2;
  return take_number (&line, 16, result);
}

/* A line that is no read is ROWS_END. */
static enum rows_result
read_log_line (struct part line, struct row *row)
{
  if (find (line, " Read ") == NULL || find (line, " ...Read ") != NULL)
    return ROWS_END;
  row->has_third = false;
  if (!read_field (line, " offset=", &row->offset) ||
      !read_field (line, " count=", &row->count) || !is_range (row))
    return ROWS_OTHER;
  return ROWS_ROW;
}

enum rows_result
rows_next (struct rows *rows, unsigned columns, bool log, struct row *row)
{
  enum rows_result result = ROWS_END;

  while (result == ROWS_END && rows->position < rows->length) {
    const char *start = rows->text + rows->position;
    const size_t left = rows->length - rows->position;
    const char *newline = memchr (start, '\n', left);
    const struct part line = { start, newline ? newline : start + left };

    result = log && is_log_line (line) ? read_log_line (line, row)
      : read_list_line (line, columns, row);
    if (result != ROWS_OTHER) {
      rows->position += line.end - line.p + (newline != NULL);
      rows->lines++;
    }
  }
  return result;
}
