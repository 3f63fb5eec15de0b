/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See default-export.h. */

#include <stdlib.h>
#include <string.h>

#include <pthread.h>

#include "cleanup.h"
#include "default-export.h"

#define NR_ASKERS 4

/* A leaf; guards the names. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *names[NR_ASKERS];  /* NULL: not known */

static __thread bool told;

/* Of the exportname filter; written at start-up only. */
static bool is_made_up;

void
default_export_note_parameter (const char *key)
{
  is_made_up |= strcmp (key, "default-export") == 0;
}

void
default_export_set_told (bool is_told)
{
  told = is_told && !is_made_up;
}

bool
default_export_is_told (void)
{
  return told;
}

unsigned
default_export_asker (int readonly, int is_tls)
{
  return 1u << (2 * (readonly != 0) + (is_tls != 0));
}

/* If memory is short it isn't known. */
void
default_export_note (unsigned asker, const char *name)
{
  char **const noted = &names[__builtin_ctz (asker)];
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lock);

  free (*noted);
  *noted = strdup (name);
}

unsigned
default_export_askers (const char *name)
{
  unsigned i, askers = 0;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lock);

  for (i = 0; i < NR_ASKERS; ++i)
    if (names[i] != NULL && strcmp (names[i], name) == 0)
      askers |= 1u << i;
  return askers;
}

void
default_export_free (void)
{
  unsigned i;

  for (i = 0; i < NR_ASKERS; ++i) {
    free (names[i]);
    names[i] = NULL;
  }
}
