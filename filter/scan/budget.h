/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* What all scans of the server together may fetch: scan-rate and scan-limit.
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

/* Pay for count bytes of the rate.  Returns when they may be fetched (see
 * clock.h), which may be past: whoever pays must wait until then, or until
 * there is no need any more.
 */
extern uint64_t budget_pay (struct budget *budget, uint32_t count,
                            uint64_t now_ns);

/* Take back what was paid for and not fetched. */
extern void budget_refund (struct budget *budget, uint32_t count);

/* How many bytes are left of the limit.  Draw up to count of them; returns how
 * many there were.
 */
extern uint64_t budget_left (struct budget *budget);
extern uint32_t budget_draw (struct budget *budget, uint32_t count);

#endif /* SCAN_BUDGET_H */
