/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Counters in the Prometheus text format. */

#ifndef SCAN_METRICS_H
#define SCAN_METRICS_H

#include <stddef.h>
#include <stdio.h>

#include "exports.h"
#include "line.h"

/* What they begin with. */
#define METRICS_BEGIN "# HELP nbdkit_scan_"

/* Write the counters of these exports, nr of them.  Any thread. */
extern void metrics_write (FILE *fp, const char *policy,
                           const struct export_totals *totals, size_t nr);

/* Write how much may be on its way.  Any thread. */
extern void metrics_write_line (FILE *fp, const struct line_state *state);

#endif /* SCAN_METRICS_H */
