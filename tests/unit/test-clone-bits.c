/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* A bit of the clone filter's map is seen before whoever sets it is done
 * with it.  Another that finds it relies on it, and may be told that all is
 * durable: so it has to be in a commit that begins then.
 */

#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>
#include <sys/mman.h>

#include "check.h"
#include "clone/map-file.h"
#include "stubs.h"

/* map_set counts the bits it has set, so here it calls us in between. */
static int just_set (unsigned long long bits);
#define __builtin_popcountll(bits) just_set (bits)
#include "clone/map.c"
#undef __builtin_popcountll

#define BLOCKS 100

static struct map *map;
static int fd;
static bool in_map_set;
static unsigned calls, seen, kept;

static int
sync_data (void *opaque)
{
  return 0;
}

static int
just_set (unsigned long long bits)
{
  struct map_identity identity;
  char error[MAP_ERROR_MAX];
  struct map *loaded;
  bool repaired, lost = false;

  if (in_map_set) {
    in_map_set = false;
    calls++;
    seen += map_has (map, 10, 20);
    if (map_commit (map, sync_data, NULL, &lost) != 0)
      abort ();
    loaded = map_load (fd, &identity, &repaired, error);
    if (loaded == NULL)
      abort ();
    kept += map_has (loaded, 10, 20);
    map_free (loaded);
  }
  return __builtin_popcountll (bits);
}

int
main (void)
{
  struct map_identity identity = { .size = BLOCKS * 512, .block_size = 512 };
  char error[MAP_ERROR_MAX];

  fd = memfd_create ("map", 0);
  map = map_new (identity.size, identity.block_size);
  if (map == NULL || map_create (map, fd, &identity, error) == -1)
    abort ();
  in_map_set = true;
  map_set (map, 10, 20);
  check (calls == 1 && seen == 1, "the bits are seen while they are being set");
  check (kept == 1, "and are in a commit that begins then");
  check (map_dirty (map), "there may be more of them, so another is due");
  map_free (map);
  close (fd);
  return done ();
}
