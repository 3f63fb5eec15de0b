/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See quirks.h. */

#include <dlfcn.h>
#include <stddef.h>

#include "options.h"
#include "quirks.h"

bool
quirks_cache_hangs (void)
{
  void *split = dlopen ("nbdkit-split-plugin.so", RTLD_LAZY | RTLD_NOLOAD);

  if (split == NULL)
    return false;
  dlclose (split);
  return !options.cache_below;
}
