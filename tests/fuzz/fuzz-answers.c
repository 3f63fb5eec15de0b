/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Fuzz target: the policy is answers.lua, which does what the input says, byte by
 * byte from its beginning; what it is told comes from the end.
 */

#include <stdio.h>
#include <stdlib.h>

#include "fuzz.h"
#include "library.h"

/* From the top of the source tree. */
#define POLICY "tests/fuzz/answers.lua"

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  char error[LIBRARY_ERROR_MAX];

  if (library_policy (POLICY, error) == NULL ||
      library_add_file ("input", fuzz_file (data, size), error) == -1) {
    fprintf (stderr, "fuzz-answers: %s\n", error);
    exit (EXIT_FAILURE);
  }
  fuzz_run (POLICY, data, size);
  return 0;
}
