/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* A range of bytes of a disk: what was read, prefetched or failed. */

#ifndef RANGE_H
#define RANGE_H

#include <stdbool.h>
#include <stdint.h>

struct range {
  uint64_t offset;              /* bytes */
  uint64_t count;               /* bytes, at least 1 */
};

static inline uint64_t
range_end (struct range r)
{
  return r.offset + r.count;
}

static inline bool
range_overlaps (struct range a, struct range b)
{
  return a.offset < range_end (b) && b.offset < range_end (a);
}

/* The least that both are in. */
static inline struct range
range_cover (struct range a, struct range b)
{
  const uint64_t offset = a.offset < b.offset ? a.offset : b.offset;
  const uint64_t end = range_end (a) > range_end (b) ? range_end (a) : range_end (b);

  return (struct range) { offset, end - offset };
}

/* The whole blocks, a power of two, that a range within so many bytes is in; the last
 * one may be cut short by the end.
 */
static inline struct range
range_widen (struct range r, uint32_t block, uint64_t size)
{
  const uint64_t mask = block - 1;
  const uint64_t offset = r.offset & ~mask;
  const uint64_t end = (range_end (r) + mask) & ~mask;

  return (struct range) { offset, (end < size ? end : size) - offset };
}

#endif /* RANGE_H */
