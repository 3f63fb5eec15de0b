/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See quirks.h. */

#include <string.h>

#include "contexts.h"
#include "options.h"
#include "quirks.h"

static bool
is_over_split (void)
{
  return strcmp (contexts_plugin_name (), "split") == 0;
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
