/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See quirks.h. */

#include <dlfcn.h>
#include <stddef.h>

#include "options.h"
#include "quirks.h"

/* There is one plugin in a server, so if that file is loaded it is below us. */
static bool
is_over_split (void)
{
  void *split = dlopen ("nbdkit-split-plugin.so", RTLD_LAZY | RTLD_NOLOAD);

  if (split == NULL)
    return false;
  dlclose (split);
  return true;
}

bool
quirks_cache_hangs (void)
{
  return is_over_split () && !options.cache_below;
}

bool
quirks_extents_crash (void)
{
  return is_over_split ();
}
