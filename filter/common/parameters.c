/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See parameters.h. */

#include <assert.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include <nbdkit-filter.h>

#include "parameters.h"

/* So many slips of the finger still tell what was meant, if more than half of it is right. */
#define NEAR 3

/* How many characters have to be changed, added or left out to make one word of
 * another; of a long one, only the beginning counts.
 */
static unsigned
distance (const char *a, const char *b)
{
  enum { MAX = 32 };
  const size_t n = strnlen (b, MAX);
  unsigned row[MAX + 1], diagonal, left, i, j;

  for (j = 0; j <= n; ++j)
    row[j] = j;
  for (i = 1; *a != '\0' && i <= MAX; ++i, ++a) {
    diagonal = row[0];
    row[0] = i;
    for (j = 1; j <= n; ++j) {
      left = row[j - 1];
      diagonal += *a != b[j - 1];
      if (diagonal > left + 1)
        diagonal = left + 1;
      if (diagonal > row[j] + 1)
        diagonal = row[j] + 1;
      left = row[j];
      row[j] = diagonal;
      diagonal = left;
    }
  }
  return row[n];
}

static int
unknown_parameter (const struct parameters *parameters, const char *key)
{
  const struct parameter *const end = parameters->first + parameters->number;
  const struct parameter *nearest = parameters->first, *p;
  char names[512];
  unsigned slips;
  size_t n = 0;

  for (p = parameters->first; p < end; ++p) {
    if (distance (key, p->name) < distance (key, nearest->name))
      nearest = p;
    n += snprintf (names + n, sizeof names - n, "%s%s", n > 0 ? ", " : "", p->name);
    assert (n < sizeof names);
  }
  slips = distance (key, nearest->name);
  if (slips <= NEAR && 2 * slips < strlen (nearest->name + strlen (parameters->filter) + 1))
    nbdkit_error ("%s: the %s filter has no such parameter; did you mean %s?",
                  key, parameters->filter, nearest->name);
  else
    nbdkit_error ("%s: the %s filter has no such parameter; it has: %s",
                  key, parameters->filter, names);
  return -1;
}

static bool
is_named (const char *key, const char *name)
{
  const size_t n = strlen (name) - strlen (PARAMETER_ANY);

  return strcmp (key, name) == 0 ||
    (strcmp (name + n, PARAMETER_ANY) == 0 && strncmp (key, name, n) == 0 && key[n] != '\0');
}

int
parameters_set (const struct parameters *parameters, const char *key, const char *value)
{
  const size_t n = strlen (parameters->filter);
  unsigned i;

  if (strncmp (key, parameters->filter, n) != 0 || key[n] != '-')
    return 0;
  for (i = 0; i < parameters->number; ++i)
    if (is_named (key, parameters->first[i].name))
      return parameters->first[i].set (key, value) == -1 ? -1 : 1;
  return unknown_parameter (parameters, key);
}
