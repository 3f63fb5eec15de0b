/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Says of maps of the clone filter, named on standard input, a line each:
 *
 *   ok|repaired written|unwritten FIRST-END,...     the runs of present blocks
 *   refused: WHY
 *   unborn
 */

#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "clone/map-file.h"

/* What the server gives to a filter. */
void nbdkit_error (const char *fs, ...);

void
nbdkit_error (const char *fs, ...)
{
}

static void
dump (int fd)
{
  struct map_identity identity;
  char error[MAP_ERROR_MAX];
  uint64_t first = 0, end;
  struct map *map;
  bool repaired;

  if (map_file_is_unborn (fd) == 1) {
    puts ("unborn");
    return;
  }
  map = map_load (fd, &identity, &repaired, error);
  if (map == NULL) {
    printf ("refused: %s\n", error);
    return;
  }
  printf ("%s %s ", repaired ? "repaired" : "ok",
          map_written (map) ? "written" : "unwritten");
  while ((first = map_find (map, first, map_blocks (map), true)) <
         map_blocks (map)) {
    end = map_find (map, first, map_blocks (map), false);
    printf ("%" PRIu64 "-%" PRIu64 ",", first, end);
    first = end;
  }
  putchar ('\n');
  map_free (map);
}

int
main (void)
{
  char path[4096];
  int fd;

  while (fgets (path, sizeof path, stdin)) {
    path[strcspn (path, "\n")] = '\0';
    fd = open (path, O_RDWR);
    if (fd == -1)
      printf ("refused: cannot be opened\n");
    else {
      dump (fd);
      close (fd);
    }
    fflush (stdout);
  }
  return 0;
}
