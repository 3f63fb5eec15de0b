/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See escape.h. */

#include <stdbool.h>
#include <string.h>

#include "escape.h"

/* The most that one character becomes: four bytes, five each. */
#define PIECE_MAX 24

static const char MORE[] = "...";

/* How many bytes the UTF-8 character has that begins here, and its number;
 * returns 0 if it isn't one.
 */
static size_t
utf8_length (const unsigned char *s, unsigned *code)
{
  static const unsigned least[] = { 0, 0, 0x80, 0x800, 0x10000 };
  size_t n, i;

  *code = s[0];
  if (s[0] < 0x80)
    return 1;
  n = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
  if (s[0] < 0xc2 || s[0] > 0xf4)
    return 0;
  *code &= 0xff >> (n + 1);
  for (i = 1; i < n; ++i) {
    if ((s[i] & 0xc0) != 0x80)
      return 0;
    *code = *code << 6 | (s[i] & 0x3f);
  }
  if (*code < least[n] || *code > 0x10ffff ||
      (*code >= 0xd800 && *code <= 0xdfff))
    return 0;
  return n;
}

/* May this character stand in a message as it is?  Not what moves the cursor,
 * or changes the order in which a terminal shows text.
 */
static bool
is_printable (unsigned code)
{
  return code >= 0x20 && !(code >= 0x7f && code < 0xa0) &&
    !(code >= 0x200e && code <= 0x200f) &&
    !(code >= 0x2028 && code <= 0x202e) &&
    !(code >= 0x2066 && code <= 0x2069);
}

/* The letter after the backslash for this character in this style, or 0. */
static char
short_escape (enum escape_style style, unsigned code)
{
  switch (style) {
  case ESCAPE_NAME:
    return code == '\n' ? 'n' : code == '\t' ? 't' : code == '\r' ? 'r'
      : code == '\\' || code == '\'' ? (char) code : 0;
  case ESCAPE_LABEL:
    return code == '\n' ? 'n' : code == '\\' || code == '"' ? (char) code : 0;
  case ESCAPE_TEXT:
    break;
  }
  return 0;
}

/* Write the next character to piece.  Returns the text after it. */
static const char *
next_piece (enum escape_style style, const char *text, char piece[PIECE_MAX])
{
  const unsigned char *s = (const unsigned char *) text;
  unsigned code;
  size_t n = utf8_length (s, &code), i;
  const char letter = n == 1 ? short_escape (style, code) : 0;
  const bool as_it_is = n > 0 &&
    (style == ESCAPE_LABEL ? code != 0xfffd
     : is_printable (code) ||
     (style == ESCAPE_TEXT && (code == '\n' || code == '\t')));

  if (n == 0)
    n = 1;
  if (letter != 0)
    snprintf (piece, PIECE_MAX, "\\%c", letter);
  else if (as_it_is)
    snprintf (piece, PIECE_MAX, "%.*s", (int) n, text);
  else
    for (i = 0; i < n; ++i)
      piece += sprintf (piece, style == ESCAPE_LABEL ? "\xef\xbf\xbd%02x"
                        : "\\x%02x", s[i]);
  return text + n;
}

const char *
escape (enum escape_style style, const char *text, char *out, size_t size)
{
  const char *quote = style == ESCAPE_NAME ? "'" : "";
  /* For the dots, the quote and the end. */
  const size_t room = size - sizeof MORE - strlen (quote);
  size_t used = strlen (quote), n;
  char piece[PIECE_MAX];

  strcpy (out, quote);
  while (*text != '\0') {
    text = next_piece (style, text, piece);
    n = strlen (piece);
    if (n > room - used) {
      quote = *quote ? "...'" : MORE;
      break;
    }
    memcpy (out + used, piece, n);
    used += n;
  }
  strcpy (out + used, quote);
  return out;
}

void
escape_to_file (enum escape_style style, const char *text, FILE *fp)
{
  char piece[PIECE_MAX];

  while (*text != '\0') {
    text = next_piece (style, text, piece);
    fputs (piece, fp);
  }
}
