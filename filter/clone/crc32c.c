/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See crc32c.h. */

#include <pthread.h>

#include "crc32c.h"

#define POLYNOMIAL UINT32_C (0x82f63b78) /* bits reversed */

static uint32_t table[256];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void
make_table (void)
{
  uint32_t i, c;
  int bit;

  for (i = 0; i < 256; ++i) {
    c = i;
    for (bit = 0; bit < 8; ++bit)
      c = c & 1 ? c >> 1 ^ POLYNOMIAL : c >> 1;
    table[i] = c;
  }
}

uint32_t
crc32c (const void *data, size_t count)
{
  const unsigned char *p = data;
  uint32_t c = UINT32_MAX;

  pthread_once (&once, make_table);
  while (count-- > 0)
    c = table[(c ^ *p++) & 255] ^ c >> 8;
  return ~c;
}
