/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See map.h. */

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "map-internal.h"

static uint64_t
blocks_of (uint64_t size, uint32_t block_size)
{
  return size / block_size + (size % block_size != 0);
}

uint64_t
map_pages_of (uint64_t size, uint32_t block_size)
{
  return (blocks_of (size, block_size) + PAGE_WORDS * 64 - 1) /
    (PAGE_WORDS * 64);
}

struct map *
map_new (uint64_t size, uint32_t block_size)
{
  struct map *map = calloc (1, sizeof *map);
  size_t nr_words, nr_changed;
  void *words;

  if (map == NULL)
    return NULL;
  map->blocks = blocks_of (size, block_size);
  map->nr_pages = map_pages_of (size, block_size);
  if (map->nr_pages >= SIZE_MAX / (2 * PAGE_WORDS * sizeof map->words[0])) {
    free (map);
    errno = ENOMEM;
    return NULL;
  }
  nr_words = (map->nr_pages + 1) * PAGE_WORDS;
  nr_changed = nr_words / (CHANGE_BLOCKS / 64);
  map->mapped_bytes = (nr_words + nr_changed) * sizeof map->words[0];
  words = mmap (NULL, map->mapped_bytes, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  map->words = words == MAP_FAILED ? NULL : words;
  map->dirty = calloc (map->nr_pages + 1, sizeof map->dirty[0]);
  if (map->words == NULL || map->dirty == NULL) {
    map_free (map);
    errno = ENOMEM;
    return NULL;
  }
  map->changed = map->words + nr_words;
  return map;
}

void
map_free (struct map *map)
{
  if (map == NULL)
    return;
  if (map->words != NULL)
    munmap ((void *) map->words, map->mapped_bytes);
  map_file_free (map->file);
  free (map->dirty);
  free (map);
}

uint64_t
map_blocks (const struct map *map)
{
  return map->blocks;
}

uint64_t
map_present (const struct map *map)
{
  return atomic_load_explicit (&map->present, memory_order_acquire);
}

void
map_note_write (struct map *map)
{
  if (!atomic_load_explicit (&map->written, memory_order_relaxed))
    atomic_store (&map->written, true);
}

bool
map_written (const struct map *map)
{
  return atomic_load (&map->written);
}

/* The bits of one word that are in the range; first is in it. */
static uint64_t
word_mask (uint64_t first, uint64_t end)
{
  const uint64_t base = first / 64 * 64;
  uint64_t mask = UINT64_MAX << (first - base);

  if (end - base < 64)
    mask &= ~(UINT64_MAX << (end - base));
  return mask;
}

static uint64_t
next_word (uint64_t block, uint64_t end)
{
  const uint64_t next = (block / 64 + 1) * 64;

  return next < end ? next : end;
}

uint64_t
map_find (const struct map *map, uint64_t first, uint64_t end, bool present)
{
  uint64_t word;

  for (; first < end; first = next_word (first, end)) {
    word = atomic_load_explicit (&map->words[first / 64],
                                 memory_order_acquire);
    if (!present)
      word = ~word;
    word &= word_mask (first, end);
    if (word != 0)
      return first / 64 * 64 + __builtin_ctzll (word);
  }
  return end;
}

bool
map_has (const struct map *map, uint64_t first, uint64_t end)
{
  return map_find (map, first, end, false) == end;
}

/* What map->dirty has of a page: has it bits that the file may lack, and how
 * many threads are setting bits in it?  Others rely on a bit as soon as they
 * see it, so a page counts as dirty from before it is set.
 */
#define DIRTY 1
#define SETTING 2

/* Set bits in one page.  Returns how many there are more. */
static uint64_t
set_in_page (struct map *map, uint64_t first, uint64_t end)
{
  atomic_uint *const dirty = &map->dirty[first / 64 / PAGE_WORDS];
  uint64_t mask, old, added = 0;

  atomic_fetch_add (dirty, SETTING);
  for (; first < end; first = next_word (first, end)) {
    mask = word_mask (first, end);
    old = atomic_fetch_or (&map->words[first / 64], mask);
    added += __builtin_popcountll (mask & ~old);
  }
  /* After the bits: who takes this flag away sees them. */
  if (added > 0)
    atomic_fetch_or (dirty, DIRTY);
  atomic_fetch_sub (dirty, SETTING);
  return added;
}

void
map_set (struct map *map, uint64_t first, uint64_t end)
{
  const uint64_t page_blocks = PAGE_WORDS * 64;
  uint64_t stop, added = 0;

  for (; first < end; first = stop) {
    stop = (first / page_blocks + 1) * page_blocks;
    if (stop > end)
      stop = end;
    added += set_in_page (map, first, stop);
  }
  if (added > 0)
    atomic_fetch_add (&map->present, added);
}

void
map_note_change (struct map *map, uint64_t first, uint64_t end, uint64_t when)
{
  uint64_t i, old;

  for (i = first / CHANGE_BLOCKS; i * CHANGE_BLOCKS < end; ++i) {
    old = atomic_load (&map->changed[i]);
    while (old < when &&
           !atomic_compare_exchange_weak (&map->changed[i], &old, when))
      ;
  }
}

uint64_t
map_last_change (const struct map *map, uint64_t first, uint64_t end)
{
  uint64_t i, when, last = 0;

  for (i = first / CHANGE_BLOCKS; i * CHANGE_BLOCKS < end; ++i) {
    when = atomic_load (&map->changed[i]);
    last = when > last ? when : last;
  }
  return last;
}

/* -- for the file ---------------------------------------------------------- */

bool
map_page_is_dirty (const struct map *map, uint64_t page)
{
  return atomic_load_explicit (&map->dirty[page], memory_order_acquire) != 0;
}

void
map_take_page (struct map *map, uint64_t page, uint64_t words[PAGE_WORDS])
{
  unsigned i;

  atomic_fetch_and (&map->dirty[page], ~(unsigned) DIRTY);
  for (i = 0; i < PAGE_WORDS; ++i)
    words[i] = atomic_load (&map->words[page * PAGE_WORDS + i]);
}

void
map_give_back_page (struct map *map, uint64_t page)
{
  atomic_fetch_or (&map->dirty[page], DIRTY);
}

void
map_put_page (struct map *map, uint64_t page, const uint64_t words[PAGE_WORDS])
{
  const uint64_t first = page * PAGE_WORDS;
  uint64_t i, word, block, added = 0;

  for (i = 0; i < PAGE_WORDS; ++i) {
    block = (first + i) * 64;
    if (block >= map->blocks)
      break;
    word = words[i] & word_mask (block, map->blocks);
    if (word == 0)
      continue;
    atomic_store_explicit (&map->words[first + i], word, memory_order_relaxed);
    added += __builtin_popcountll (word);
  }
  map->present += added;
}
