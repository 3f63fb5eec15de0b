/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Defects of layers below that would hold up the server, and that must be known,
 * not guessed.  One that the clone filter has to know of, too, is in plugin.h.
 *
 * Any thread may call these functions.
 */

#ifndef SCAN_QUIRKS_H
#define SCAN_QUIRKS_H

#include <stdbool.h>

/* True if a .cache would never come back: the split plugin's loops for ever,
 * whoever asks (seen with nbdkit 1.32.5), and a server with a scan in there can't
 * be ended.  tests/upstream/split-cache-hang tells whether that is mended.
 *
 * The cache and clone filters read, and do not pass .cache on; one is between us
 * and the plugin if a parameter of its has passed by.
 */
extern bool quirks_cache_hangs (void);

#endif /* SCAN_QUIRKS_H */
