/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See default-name.h. */

#include <string.h>

#include <pthread.h>

#include "default-name.h"

static pthread_key_t key;       /* the name; NULL if the client has not asked */
static bool key_made;

int
default_name_load (void)
{
  const int err = pthread_key_create (&key, NULL);

  key_made = err == 0;
  return err;
}

void
default_name_unload (void)
{
  if (key_made)
    pthread_key_delete (key);
  key_made = false;
}

void
default_name_forget (void)
{
  pthread_setspecific (key, NULL);
}

void
default_name_note (const char *name)
{
  pthread_setspecific (key, name);
}

bool
default_name_is (const char *name)
{
  const char *of_default = pthread_getspecific (key);

  return *name == '\0' ||
    (of_default != NULL && strcmp (name, of_default) == 0);
}
