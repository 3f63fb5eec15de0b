/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Which plugin is below, as a fact: it is looked at where the loader has it.
 *
 * Any thread may call these functions, once all layers are loaded.
 */

#ifndef PLUGIN_H
#define PLUGIN_H

#include <stdbool.h>

/* Its name, as in nbdkit-NAME-plugin.so; empty if it isn't known.  Valid until the
 * filter is unloaded.
 */
extern const char *plugin_name (void);

/* May it call a function of this name, of the server's?  True if in doubt. */
extern bool plugin_may_use (const char *function);

/* True if the server would die of .extents: the split plugin's, of a range that
 * doesn't reach to the end of a file (seen with nbdkit 1.32.5).  Layers between may ask
 * for such ranges, whatever they were asked; the cow filter does.
 * tests/upstream/split-extents-crash tells whether that is mended.
 */
extern bool plugin_extents_crash (void);

#endif /* PLUGIN_H */
