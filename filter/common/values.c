/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See values.h. */

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include <nbdkit-filter.h>

#include "clock.h"
#include "values.h"

int
value_is_bad (const char *key, const char *value, const char *allowed)
{
  nbdkit_error ("%s: '%s' is not valid; it should be %s", key, value, allowed);
  return -1;
}

static bool
is_bool (const char *value)
{
  static const char *const words[] = {
    "1", "true", "t", "yes", "y", "on", "0", "false", "f", "no", "n", "off",
  };
  size_t i;

  for (i = 0; i < sizeof words / sizeof words[0]; ++i)
    if (strcasecmp (value, words[i]) == 0)
      return true;
  return false;
}

bool
value_to_bool (const char *value, bool *result)
{
  const int r = is_bool (value) ? nbdkit_parse_bool (value) : -1;

  *result = r == 1;
  return r != -1;
}

/* Digits, perhaps with what strtoimax skips before them and a unit after
 * them, and not too large.
 */
static bool
is_size (const char *text)
{
  static const char units[] = "bkmgtpe";
  const char *start = text + strspn (text, " \t\n\v\f\r");
  const char *value = start + (*start == '+');
  const size_t n = strspn (value, "0123456789");
  const char unit = tolower ((unsigned char) value[n]);
  const char *p = strchr (units, unit); /* the end, if there is no unit */
  int shift = unit == 's' ? 9 : 0;

  if (unit != '\0' && unit != 's') {
    if (p == NULL)
      return false;
    shift = 10 * (p - units);
  }
  return n > 0 && (unit == '\0' || value[n+1] == '\0') &&
    ldexpl (strtold (value, NULL), shift) < 0x1p63L;
}

bool
value_to_size (const char *value, uint64_t *result)
{
  const int64_t n = is_size (value) ? nbdkit_parse_size (value) : -1;

  *result = n;
  return n != -1;
}

/* This parser names what it is told to, and the value if there are digits. */
int
value_parse_number (const char *key, const char *value, unsigned max,
                    const char *allowed, unsigned *result)
{
  char what[128];
  unsigned n;

  if (!isdigit ((unsigned char) value[0]))
    return value_is_bad (key, value, allowed);
  snprintf (what, sizeof what, "%s, which should be %s", key, allowed);
  if (nbdkit_parse_unsigned (what, value, &n) == -1)
    return -1;
  if (n < 1 || n > max)
    return value_is_bad (key, value, allowed);
  *result = n;
  return 0;
}

int
value_parse_seconds (const char *key, const char *value,
                     double min, double max, const char *allowed,
                     uint64_t *result_ns)
{
  char *end;
  const double n = strtod (value, &end);

  if (end == value || *end != '\0' || !(n >= min && n <= max))
    return value_is_bad (key, value, allowed);
  *result_ns = n * NS_PER_SECOND;
  return 0;
}

char *
value_parse_path (const char *key, const char *value)
{
  if (*value == '\0') {
    value_is_bad (key, value, "a path");
    return NULL;
  }
  return nbdkit_absolute_path (value);
}
