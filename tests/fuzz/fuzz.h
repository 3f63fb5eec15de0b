/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* What the fuzz targets share: a policy is loaded and two scans of it are run, with
 * a driver and answers that are made up from bytes.
 *
 * Not for threads.  Whatever breaks a promise of vm.h ends the program.
 */

#ifndef SCAN_FUZZ_H
#define SCAN_FUZZ_H

#include <stddef.h>
#include <stdint.h>

/* What libFuzzer calls. */
extern int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

/* Put an input where the library can read it.  Returns the path; the text is there
 * until the next call.
 */
extern const char *fuzz_file (const uint8_t *data, size_t size);

/* Run the policy of this name.  What it is told comes from the bytes, taken from
 * their end, and is zeros when they are used up.
 */
extern void fuzz_run (const char *policy, const uint8_t *data, size_t size);

#endif /* SCAN_FUZZ_H */
