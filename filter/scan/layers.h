/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Which filters lie below this one, as far as it can be known, and what can be
 * said about that.
 *
 * nbdkit doesn't tell a filter what is below it.  It does load plugin and
 * filters from the inside out, so what was loaded before us is below us.  Only
 * for advice: nothing may depend on the answer.
 */

#ifndef SCAN_LAYERS_H
#define SCAN_LAYERS_H

#include <stdbool.h>

/* At the end of start-up: warn of parameters (in options.h) that can't do any
 * good over the filters below us.
 */
extern void layers_advise (void);

/* True if .cache is known to hang below us: the split plugin's loops for ever
 * (nbdkit 1.32.5).
 */
extern bool layers_cache_hangs (void);

#endif /* SCAN_LAYERS_H */
