/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* nbdkit's debug flags of this filter: nbdkit -D scan.decisions=1 and so on.
 * The server finds them by name and sets them before anything is served.
 */

#ifndef SCAN_DEBUG_H
#define SCAN_DEBUG_H

#include <nbdkit-filter.h>

/* Print every decision of a policy. */
extern NBDKIT_DLL_PUBLIC int scan_debug_decisions;

/* Print every client read that a policy is told of. */
extern NBDKIT_DLL_PUBLIC int scan_debug_reads;

/* -D scan.pace=1: how much may be on its way. */
extern NBDKIT_DLL_PUBLIC int scan_debug_pace;

#endif /* SCAN_DEBUG_H */
