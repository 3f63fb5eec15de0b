/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Flags of nbdkit's -D clone.NAME=1; they need -v too. */

#ifndef CLONE_DEBUG_H
#define CLONE_DEBUG_H

/* A line for each request that waits for somebody else's fetch. */
extern __attribute__ ((visibility ("default"))) int clone_debug_joins;

#endif /* CLONE_DEBUG_H */
