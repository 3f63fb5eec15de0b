/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Defects of layers below that would hold up the server, and that must be known,
 * not guessed.
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
 * The cache filter reads, and does not pass .cache on; it is between us and the
 * plugin if a parameter of its has passed by.
 */
extern bool quirks_cache_hangs (void);

/* True if the server would die of .extents: the split plugin's, of a range that
 * doesn't reach to the end of a file (seen with nbdkit 1.32.5).  The cow filter asks
 * for such ranges, whatever it was asked.  tests/upstream/split-extents-crash tells
 * whether that is mended.
 */
extern bool quirks_extents_crash (void);

#endif /* SCAN_QUIRKS_H */
