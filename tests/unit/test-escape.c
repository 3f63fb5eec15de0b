/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* escape: what each style makes of text, and where room ends. */

#include <string.h>

#include "check.h"
#include "escape.h"

static const struct {
  const char *text, *name, *lines, *label;
} cases[] = {
  { "", "''", "", "" },
  { "disk 1", "'disk 1'", "disk 1", "disk 1" },
  { "a\nb\tc\r", "'a\\nb\\tc\\r'", "a\nb\tc\\x0d", "a\\nb\tc\r" },
  { "\\ ' \"", "'\\\\ \\' \"'", "\\ ' \"", "\\\\ ' \\\"" },
  { "\x1b[2J\x7f", "'\\x1b[2J\\x7f'", "\\x1b[2J\\x7f", "\x1b[2J\x7f" },
  /* UTF-8, and what only looks like it: cut short, too long, a surrogate, too
   * large.
   */
  { "\xe2\x98\x83", "'\xe2\x98\x83'", "\xe2\x98\x83", "\xe2\x98\x83" },
  { "\xe2\x98", "'\\xe2\\x98'", "\\xe2\\x98",
    "\xef\xbf\xbd""e2\xef\xbf\xbd""98" },
  { "\xc0\x80", "'\\xc0\\x80'", "\\xc0\\x80",
    "\xef\xbf\xbd""c0\xef\xbf\xbd""80" },
  { "\xed\xa0\x80", "'\\xed\\xa0\\x80'", "\\xed\\xa0\\x80",
    "\xef\xbf\xbd""ed\xef\xbf\xbd""a0\xef\xbf\xbd""80" },
  { "\xf5\x80\x80\x80", "'\\xf5\\x80\\x80\\x80'", "\\xf5\\x80\\x80\\x80",
    "\xef\xbf\xbd""f5\xef\xbf\xbd""80\xef\xbf\xbd""80\xef\xbf\xbd""80" },
  /* A control character of two bytes, and one that turns text round. */
  { "\xc2\x9b", "'\\xc2\\x9b'", "\\xc2\\x9b", "\xc2\x9b" },
  { "\xe2\x80\xae", "'\\xe2\\x80\\xae'", "\\xe2\\x80\\xae", "\xe2\x80\xae" },
  { "\xef\xbf\xbd""ff", "'\xef\xbf\xbd""ff'", "\xef\xbf\xbd""ff",
    "\xef\xbf\xbd""ef\xef\xbf\xbd""bf\xef\xbf\xbd""bdff" },
};

static void
check_style (enum escape_style style, const char *text, const char *expected)
{
  char out[128], full[128], file[128] = "";
  size_t size, bad = 0;
  FILE *fp;

  escape (style, text, full, sizeof full);
  check (strcmp (full, expected) == 0, "style %d, %zu bytes", style,
         strlen (expected));
  fp = fmemopen (file, sizeof file, "w");
  escape_to_file (style, text, fp);
  fclose (fp);
  check (style == ESCAPE_NAME || strcmp (file, expected) == 0,
         "the same in a file");

  for (size = 8; size < sizeof out; ++size) {
    memset (out, 'x', sizeof out);
    escape (style, text, out, size);
    bad += strlen (out) >= size || out[size] != 'x' ||
      (strcmp (out, full) != 0 && strstr (out, "...") == NULL);
  }
  check (bad == 0, "in any room");
}

int
main (void)
{
  size_t i;

  for (i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
    check_style (ESCAPE_NAME, cases[i].text, cases[i].name);
    check_style (ESCAPE_TEXT, cases[i].text, cases[i].lines);
    check_style (ESCAPE_LABEL, cases[i].text, cases[i].label);
  }
  return done ();
}
