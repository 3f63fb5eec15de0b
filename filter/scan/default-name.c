/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See default-name.h. */

#include <string.h>

#include <pthread.h>

#include "default-name.h"

/* The name, by whether it was said over TLS; NULL if the client has not asked. */
static pthread_key_t keys[2];
static int nr_keys;             /* made */

int
default_name_load (void)
{
  int err = 0;

  while (nr_keys < 2 && err == 0) {
    err = pthread_key_create (&keys[nr_keys], NULL);
    if (err == 0)
      nr_keys++;
  }
  return err;
}

void
default_name_unload (void)
{
  while (nr_keys > 0)
    pthread_key_delete (keys[--nr_keys]);
}

void
default_name_forget (void)
{
  pthread_setspecific (keys[false], NULL);
  pthread_setspecific (keys[true], NULL);
}

void
default_name_note (const char *name, bool is_tls)
{
  pthread_setspecific (keys[is_tls], name);
}

bool
default_name_is (const char *name, bool is_tls)
{
  const char *of_default = pthread_getspecific (keys[is_tls]);

  return *name == '\0' ||
    (of_default != NULL && strcmp (name, of_default) == 0);
}
