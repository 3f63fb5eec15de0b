/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* What can be said, at start-up, of parameters that can't do any good over the
 * layers below.
 *
 * All that is known of those is what options.h has seen of their parameters.  Only
 * for advice: nothing depends on it.
 */

#ifndef SCAN_LAYERS_H
#define SCAN_LAYERS_H

/* At the end of start-up: warn of what is of no use. */
extern void layers_advise (void);

#endif /* SCAN_LAYERS_H */
