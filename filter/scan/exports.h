/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* The exports that are scanned, by name: each has counters of its own, and for
 * each size that its disk has had a generation: a map and a policy state, shared
 * by the connections that were told that size, and by their scans.
 *
 * The newest generation is kept; an older one goes with the last who uses it.
 * The default export is kept from start to end.  Others are kept while a
 * connection uses them, and EXPORTS_IDLE_MAX of them after that, so that a
 * client that opens any number of names doesn't grow memory.
 *
 * Any thread may call these functions, but for exports_init and exports_free.
 * Under their lock, which is taken before a map's and no other, nothing is written,
 * and of the counters only the policy states' are read: those of a state that goes
 * are added to its export's there, so that each is counted once.
 */

#ifndef SCAN_EXPORTS_H
#define SCAN_EXPORTS_H

#include "map.h"
#include "stats.h"
#include "vm.h"

#define EXPORTS_IDLE_MAX 16

struct generation {
  /* Immutable. */
  struct export *export;
  struct vm *vm;
  struct map *map;              /* knows the size */

  /* Private to exports.c, protected by its lock. */
  struct generation *next;      /* an older one */
  unsigned users;
};

struct export {
  /* Immutable. */
  char *name;
  struct stats *stats;

  /* Private to exports.c, protected by its lock. */
  struct export *next;
  struct generation *generations; /* the newest one first; never NULL */
  unsigned users;               /* of all its generations */
  struct vm_totals past;        /* of generations that have gone */
};

/* At start-up: how policies run.  Makes the default export and loads its policy;
 * returns -1 after saying what is wrong with it.
 */
extern int exports_init (const struct vm_config *config);

/* At unload. */
extern void exports_free (void);

/* The generation of this export whose disk has this size, made if need be;
 * exports_put gives it back.  Returns NULL with errno set if memory runs out.
 */
extern struct generation *exports_get (const char *name, uint64_t size);

/* The same for one who doesn't know the size yet, and tells the map later. */
extern struct generation *exports_get_newest (const char *name);

/* NULL is allowed. */
extern void exports_put (struct generation *generation);

/* What is known of an export at one moment; of its newest generation, where it
 * is about the disk.
 */
struct export_totals {
  const char *name;
  const char *error;            /* why the policy failed, or NULL */
  struct stats_totals stats;
  struct map_totals map;
  struct vm_totals vm;

  /* Private to exports.c. */
  struct generation *generation;
};

/* All exports, nr of them; exports_forget_totals gives back the array and what
 * it points to.  Returns NULL with errno set if memory runs out.
 */
extern struct export_totals *exports_get_totals (size_t *nr);
extern void exports_forget_totals (struct export_totals *totals, size_t nr);

/* Add what was counted of exports that are not remembered any more. */
extern void exports_add_forgotten (struct stats_totals *sum);

#endif /* SCAN_EXPORTS_H */
