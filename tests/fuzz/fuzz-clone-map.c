/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* A map of the clone filter, damaged as the input says: each 6 bytes are one
 * change.  The first byte of the input says if clients have written, and if the
 * checksums are made right again; then only what crashes is a finding.
 *
 * Of several changes only bits that are made up are a finding: what damages the
 * last record, what says that it is settled, and the pages it speaks of looks
 * like a crash.
 */

#include <endian.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/mman.h>

#include <nbdkit-filter.h>

#include "clone/crc32c.h"
#include "clone/map-file.h"

#define PAGE 4096
#define SECTOR 512
#define PAGES 3
#define BLOCK 512
#define BLOCKS (PAGES * 508 * 64 - 100)
#define FILE_PAGES (8 + 2 * PAGES)
#define FILE_BYTES (FILE_PAGES * PAGE)
#define CRC_OFFSET 8            /* in a page */

#define CHANGE 6                /* bytes of the input */

enum { WRITTEN = 1, RESEAL = 2 };

extern int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

/* disk.c says what is wrong with temporary files, of which there are none. */
void
nbdkit_error (const char *msg, ...)
{
  abort ();
}

/* A map as it was made, and its file. */
static struct {
  struct map *map;
  unsigned char image[FILE_BYTES];
} whole[2];
static int fd = -1;

static int
sync_data (void *opaque)
{
  return 0;
}

static void
make (bool written)
{
  struct map_identity identity = {
    .size = (uint64_t) BLOCKS * BLOCK, .block_size = BLOCK,
  };
  struct map *map = map_new (identity.size, BLOCK);
  char error[MAP_ERROR_MAX];
  bool lost = false;
  uint64_t i;

  if (map == NULL || ftruncate (fd, 0) == -1 ||
      map_create (map, fd, &identity, error) == -1)
    abort ();
  for (i = 0; i < 30; ++i) {
    if (written && i == 10)
      map_note_write (map);
    map_set (map, i * 7919 % (BLOCKS - 50), i * 7919 % (BLOCKS - 50) + i + 1);
    if (i % 4 == 0 && map_commit (map, sync_data, NULL, &lost) != 0)
      abort ();
  }
  if (map_commit (map, sync_data, NULL, &lost) != 0 ||
      pread (fd, whole[written].image, FILE_BYTES, 0) != FILE_BYTES)
    abort ();
  whole[written].map = map;
}

/* Has a every bit of b? */
static bool
includes (const struct map *a, const struct map *b)
{
  uint64_t block, end;

  for (block = 0; (block = map_find (b, block, BLOCKS, true)) < BLOCKS;
       block = end) {
    end = map_find (b, block, BLOCKS, false);
    if (!map_has (a, block, end))
      return false;
  }
  return true;
}

/* One change: what, a value, where. */
static void
damage (unsigned char *image, const uint8_t *how)
{
  uint32_t where;

  memcpy (&where, how + 2, sizeof where);
  where = le32toh (where) % FILE_BYTES;
  switch (how[0] % 4) {
  case 0:
    image[where] ^= how[1];
    break;
  case 1:
    memset (image + where / SECTOR * SECTOR, how[1], SECTOR);
    break;
  case 2:
    memset (image + where / PAGE * PAGE, 0, PAGE);
    break;
  case 3:                       /* a sector of another page */
    memcpy (image + where / SECTOR * SECTOR,
            image + (where / SECTOR * SECTOR + PAGE * (1 + how[1] % 13))
            % FILE_BYTES, SECTOR);
    break;
  }
}

static void
reseal (unsigned char *image)
{
  unsigned char *page;
  uint32_t crc;

  for (page = image; page < image + FILE_BYTES; page += PAGE) {
    memset (page + CRC_OFFSET, 0, sizeof crc);
    crc = htole32 (crc32c (page, PAGE));
    memcpy (page + CRC_OFFSET, &crc, sizeof crc);
  }
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  static unsigned char image[FILE_BYTES];
  struct map_identity identity;
  char error[MAP_ERROR_MAX] = "";
  struct map *map;
  bool written, repaired;
  size_t i;

  if (fd == -1) {
    fd = memfd_create ("map", MFD_CLOEXEC);
    make (false);
    make (true);
  }
  if (size == 0)
    return 0;
  written = data[0] & WRITTEN;
  memcpy (image, whole[written].image, FILE_BYTES);
  for (i = 1; i + CHANGE <= size; i += CHANGE)
    damage (image, data + i);
  if (data[0] & RESEAL)
    reseal (image);
  if (pwrite (fd, image, FILE_BYTES, 0) != FILE_BYTES)
    abort ();
  map = map_load (fd, &identity, &repaired, error);
  if (map == NULL) {
    if (*error == '\0')
      abort ();
    return 0;
  }
  if (!(data[0] & RESEAL)) {
    if (!includes (whole[written].map, map))
      abort ();
    if (size < 1 + 2 * CHANGE && !includes (map, whole[written].map) &&
        (written || !repaired))
      abort ();
  }
  map_free (map);
  return 0;
}
