/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See quirks.h. */

#include <string.h>

#include "options.h"
#include "plugin.h"
#include "quirks.h"

bool
quirks_cache_hangs (void)
{
  return strcmp (plugin_name (), "split") == 0 && !options.cache_below &&
    !options.clone_below;
}
