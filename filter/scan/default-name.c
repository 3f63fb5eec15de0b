/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See default-name.h. */

#include <stddef.h>
#include <string.h>

#include "default-name.h"

/* The name, by whether it was said over TLS; NULL if the client has not asked. */
static __thread const char *names[2];

void
default_name_forget (void)
{
  names[false] = names[true] = NULL;
}

void
default_name_note (const char *name, bool is_tls)
{
  names[is_tls] = name;
}

bool
default_name_is (const char *name, bool is_tls)
{
  return *name == '\0' ||
    (names[is_tls] != NULL && strcmp (name, names[is_tls]) == 0);
}
