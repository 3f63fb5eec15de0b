/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Preloaded into nbdkit beside a sanitizer, to get around what would spoil its
 * report.
 */

#include <locale.h>

/* Keeps filters and plugins loaded until nbdkit exits, so that a report of a leak
 * can name their functions.
 */
int dlclose (void *handle);

int
dlclose (void *handle)
{
  (void) handle;
  return 0;
}

/* With libasan or libtsan preloaded, glibc 2.36 comes out of its start with one
 * reader less than none on its lock of locales (seen in __libc_setlocale_lock,
 * before any filter is loaded).  Nothing minds, until one strerror has been
 * called: then the freelocale that libp11-kit does when nbdkit exits waits for
 * ever.  Nobody needs it.
 */
void
freelocale (locale_t locale)
{
  (void) locale;
}
