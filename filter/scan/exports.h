/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* The exports that are scanned, by name: each has a policy state and counters
 * of its own, shared by its connections.
 *
 * The default export is kept from start to end.  Others are kept while a
 * connection uses them, and EXPORTS_IDLE_MAX of them after that, so that a
 * client that opens any number of names doesn't grow memory.
 *
 * Any thread may call these functions, but for exports_init and exports_free.
 */

#ifndef SCAN_EXPORTS_H
#define SCAN_EXPORTS_H

#include "stats.h"
#include "vm.h"

#define EXPORTS_IDLE_MAX 16

struct export {
  char *name;
  struct vm *vm;
  struct stats *stats;

  /* Private to exports.c. */
  struct export *next;
  unsigned users;
};

/* At start-up: how policies run, and whether stats need a map.  Makes the
 * default export and loads its policy; returns -1 after saying what is wrong
 * with it.
 */
extern int exports_init (const struct vm_config *config, bool want_map);

/* At unload. */
extern void exports_free (void);

/* The export of this name, made if need be; exports_put gives it back.
 * Returns NULL with errno set if memory runs out.
 */
extern struct export *exports_get (const char *name);
extern void exports_put (struct export *export);

/* Call a function for each export there is.  It must not call back here. */
extern void exports_for_each (void (*fn) (struct export *, void *), void *);

#endif /* SCAN_EXPORTS_H */
