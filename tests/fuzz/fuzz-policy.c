/* Fuzz target: the input is the text of a policy. */

#include "fuzz.h"

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  fuzz_run (fuzz_file (data, size), data, size);
  return 0;
}
