/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* What the plugin makes of the name of an export, and so whether a scan may open the
 * layer below for itself.
 *
 * A context that is opened outside of a connection has no export name that the
 * plugin could ask for: nbdkit gives it NULL (1.32.5), and several plugins die
 * of it, and the server with them.  Filters are told the name all the same.
 *
 * So what a plugin will do is found out before: a plugin that does not use
 * nbdkit_export_name at all serves one disk, whatever the name, and may be
 * opened at any time.  Of those that use it, a few are known to do without, or
 * to do so with the right parameters.  The others are never opened.
 */

#ifndef CONTEXTS_H
#define CONTEXTS_H

#include <stdbool.h>

/* A parameter passes by, on its way to the plugin.  At start-up only. */
extern void contexts_note (const char *key);

/* All layers are loaded and have their parameters: look at the plugin.  At
 * start-up only.
 */
extern void contexts_init (void);

/* May the default export have a name of its own, by which the plugin tells it from
 * others?  Then what the empty name opens may be another disk, and only a client can
 * find out that name.  Any thread.
 */
extern bool contexts_default_has_name (void);

/* Does the plugin serve one disk, whatever the name?  Any thread. */
extern bool contexts_one_disk (void);

/* NULL if a scan may open the layer below as this export, or why not: the
 * subject and verb of a message, valid until the filter is unloaded.  Any
 * thread.
 */
extern const char *contexts_why_not (const char *export_name);

#endif /* CONTEXTS_H */
