/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Which plugin is below, and what nbdkit has loaded else, as facts: they are looked at
 * where the loader has them.
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

/* True if .extents must not be called, as with nbdkit 1.32.5 and 1.42.3 over
 * - the split plugin: the server dies of a range that doesn't reach to the end of a
 *   file.  Layers between may ask for such ranges, whatever they were asked; the cow
 *   filter does.
 * - the ext2 filter, wherever it is in the chain: the answer is about the file system's
 *   disk, at the offsets in the file.
 * tests/upstream/split-extents-crash and ext2-extents tell whether that is mended.
 */
extern bool plugin_extents_are_broken (void);

/* Do extents not tell of what has been written?  True if nbdkit's cache filter is
 * loaded, wherever it is in the chain.  It keeps what is written, and passes the
 * plugin's extents on: of a hole that was written to they say that it reads as zeroes
 * (seen with nbdkit 1.32.5).  tests/upstream/cache-extents-lost-write tells whether that
 * is mended.
 */
extern bool plugin_extents_are_stale (void);

#endif /* PLUGIN_H */
