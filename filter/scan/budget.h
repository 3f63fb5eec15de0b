/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* What all scans of the server together may fetch: scan-rate and scan-limit.
 *
 * A scan takes room for a block before it asks its policy, so that what the
 * policy says is not stale by the time it is done, and gives back what was not
 * used.
 *
 * Any thread may call these functions.
 */

#ifndef SCAN_BUDGET_H
#define SCAN_BUDGET_H

#include <stdint.h>

/* No limit, for either of budget_new's arguments. */
#define BUDGET_NONE UINT64_MAX

struct budget;

/* Returns NULL with errno set if memory runs out. */
extern struct budget *budget_new (uint64_t bytes_per_second,
                                  uint64_t limit_bytes);

/* NULL is allowed. */
extern void budget_free (struct budget *budget);

/* Take room for up to count bytes.  Returns how many were taken, 0 when the
 * limit is used up, and stores in *wait_until_ns (see clock.h) when they may
 * be fetched: whoever takes must wait until then or give them back.
 */
extern uint32_t budget_take (struct budget *budget, uint32_t count,
                             uint64_t *wait_until_ns);

/* Give back what has been taken and not used. */
extern void budget_give (struct budget *budget, uint32_t count);

#endif /* SCAN_BUDGET_H */
