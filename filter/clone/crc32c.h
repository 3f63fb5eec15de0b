/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* The checksum of pages of a map: CRC-32C (Castagnoli). */

#ifndef CLONE_CRC32C_H
#define CLONE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Any thread may call it. */
extern uint32_t crc32c (const void *data, size_t count);

#endif /* CLONE_CRC32C_H */
