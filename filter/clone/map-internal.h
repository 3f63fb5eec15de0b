/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* A map in memory, as map.c and map-file.c see it.  Nothing else may include
 * this.
 */

#ifndef CLONE_MAP_INTERNAL_H
#define CLONE_MAP_INTERNAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "map.h"

/* Bits are in pages, which are what a commit writes. */
#define PAGE_WORDS 508          /* 64-bit words of bits in a page */

/* Changes are noted of so many blocks at a time: a MiB, if they are of 4096 bytes. */
#define CHANGE_BLOCKS 256

struct map_file;

struct map {
  /* Immutable. */
  uint64_t blocks;
  uint64_t nr_pages;

  /* Any thread. */
  _Atomic uint64_t *words;      /* mapped, so untouched parts cost nothing */
  _Atomic uint64_t *changed;    /* for each CHANGE_BLOCKS, when; likewise */
  size_t mapped_bytes;          /* both */
  atomic_uint *dirty;           /* for each page; see map_set */
  _Atomic uint64_t present;     /* blocks */
  atomic_bool written;          /* set before the bit */

  struct map_file *file;        /* NULL: none */
};

/* -- map.c ----------------------------------------------------------------- */

/* How many pages the map of a disk has; both in bytes. */
extern uint64_t map_pages_of (uint64_t size, uint32_t block_size);

/* Has a page bits that the file may lack?  Any thread. */
extern bool map_page_is_dirty (const struct map *map, uint64_t page);

/* Take a page's bits as they are now, and it for clean.  For who commits. */
extern void map_take_page (struct map *map, uint64_t page,
                           uint64_t words[PAGE_WORDS]);

/* What was taken has not come to the file. */
extern void map_give_back_page (struct map *map, uint64_t page);

/* The bits of a page of the file, before other threads see the map.  Those
 * beyond the last block are left out.
 */
extern void map_put_page (struct map *map, uint64_t page,
                          const uint64_t words[PAGE_WORDS]);

/* -- map-file.c ------------------------------------------------------------ */

/* NULL is allowed.  Does not close the file. */
extern void map_file_free (struct map_file *file);

#endif /* CLONE_MAP_INTERNAL_H */
