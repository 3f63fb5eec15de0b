/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Counters in the Prometheus text format. */

#ifndef SCAN_METRICS_H
#define SCAN_METRICS_H

#include <stdio.h>

/* Write the counters of all exports.  Any thread. */
extern void metrics_write (FILE *fp, const char *policy);

#endif /* SCAN_METRICS_H */
