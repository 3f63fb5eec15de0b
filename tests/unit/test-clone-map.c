/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* The map of the clone filter: bits, and a file that survives a crash at any
 * point of a commit and notices damage.
 */

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "check.h"
#include "clone/map-file.h"
#include "stubs.h"

#define PAGE 4096
#define SECTOR 512
#define PAGE_BLOCKS (508 * 64)
#define PAGES 5
#define BLOCK 512
#define BLOCKS (PAGES * PAGE_BLOCKS - 100)
#define FILE_PAGES (8 + 2 * PAGES)
#define FILE_BYTES (FILE_PAGES * PAGE)
#define SETTLED 4               /* the page that is written after the sync */

static unsigned
random_below (unsigned n)
{
  static uint64_t state = 1;

  state = state * UINT64_C (6364136223846793005) + 1442695040888963407;
  return (state >> 33) % n;
}

static int
new_file (void)
{
  return memfd_create ("map", 0);
}

static void
get_image (int fd, unsigned char *image)
{
  if (pread (fd, image, FILE_BYTES, 0) != FILE_BYTES)
    abort ();
}

static void
put_image (int fd, const unsigned char *image)
{
  if (pwrite (fd, image, FILE_BYTES, 0) != FILE_BYTES)
    abort ();
}

static struct map_identity identity = {
  .size = (uint64_t) BLOCKS * BLOCK, .block_size = BLOCK, .id = "id",
  .export_name = "export",
};

static struct map *
create (int fd)
{
  struct map *map = map_new (identity.size, BLOCK);
  char error[MAP_ERROR_MAX];

  if (map == NULL || map_create (map, fd, &identity, error) == -1)
    abort ();
  return map;
}

static struct map *
load (int fd, bool *repaired, char *error)
{
  struct map_identity found;

  strcpy (error, "");
  return map_load (fd, &found, repaired, error);
}

static unsigned syncs;
static int sync_result;

static int
sync_data (void *opaque)
{
  syncs++;
  return sync_result;
}

static int
commit (struct map *map)
{
  bool lost = false;

  return map_commit (map, sync_data, NULL, &lost);
}

/* Has a every bit of b? */
static bool
includes (const struct map *a, const struct map *b)
{
  uint64_t first, end;

  for (first = 0; (first = map_find (b, first, BLOCKS, true)) < BLOCKS;
       first = end) {
    end = map_find (b, first, BLOCKS, false);
    if (!map_has (a, first, end))
      return false;
  }
  return true;
}

/* -------------------------------------------------------------------------- */

static void
test_bits (void)
{
  struct map *map = map_new (1000 * BLOCK + 1, BLOCK);
  static bool model[1001];
  unsigned round, first, end, i, n;
  bool ok = true;

  check (map_blocks (map) == 1001, "a part of a block is one");
  check (map_find (map, 0, 1001, true) == 1001, "nothing is present");
  for (round = 0; round < 2000; ++round) {
    first = random_below (1001);
    end = first + 1 + random_below (round % 2 ? 5 : 1001 - first);
    end = end > 1001 ? 1001 : end;
    if (random_below (10) == 0) {
      map_set (map, first, end);
      memset (model + first, true, end - first);
    }
    for (i = first; i < end && model[i]; ++i)
      ;
    ok = ok && map_find (map, first, end, false) == i;
    ok = ok && map_has (map, first, end) == (i == end);
    for (i = first; i < end && !model[i]; ++i)
      ;
    ok = ok && map_find (map, first, end, true) == i;
  }
  for (i = n = 0; i < 1001; ++i)
    n += model[i];
  check (ok, "it is as an array of booleans");
  check (map_present (map) == n, "and counts what is set once");
  map_set (map, 0, 1001);
  check (map_complete (map), "until all are");
  map_free (map);

  map = map_new (INT64_MAX, BLOCK);
  check (map == NULL, "no memory has room for the largest disk");
  map_free (map);

  map = map_new (0, BLOCK);
  check (map_complete (map), "an empty disk is complete");
  map_free (map);
}

static void
test_file (void)
{
  static unsigned char image[FILE_BYTES];
  const int fd = new_file ();
  struct map *map, *again;
  struct map_identity found;
  char error[MAP_ERROR_MAX];
  bool repaired;
  struct stat st;

  check (map_file_is_unborn (fd) == 1, "an empty file is unborn");
  map = create (fd);
  check (map_file_is_unborn (fd) == 0, "one with a map is not");
  get_image (fd, image);
  memset (image, 0, PAGE);
  put_image (fd, image);
  check (map_file_is_unborn (fd) == 0, "nor one that was about to be done");
  again = load (fd, &repaired, error);
  check (again != NULL, "which can be read");
  map_free (again);
  memset (image + PAGE + 100, 0, SECTOR);
  put_image (fd, image);
  check (map_file_is_unborn (fd) == 1, "before that it is");
  memset (image + PAGE, 0, PAGE);
  put_image (fd, image);
  check (map_file_is_unborn (fd) == 1, "and while only its record is there");
  image[FILE_BYTES - 1] = 1;
  put_image (fd, image);
  check (map_file_is_unborn (fd) == 0, "not if there is anything else");
  map_free (map);
  map = create (fd);
  fstat (fd, &st);
  check (st.st_size == FILE_BYTES, "it is as large as it will ever be");
  check (!map_dirty (map), "nothing to commit");
  map_set (map, 10, 20);
  map_set (map, BLOCKS - 1, BLOCKS);
  check (map_dirty (map), "something to commit");
  syncs = 0;
  check (commit (map) == 0 && syncs == 1, "data is synced first");
  check (!map_dirty (map), "that was it");
  check (commit (map) == 0 && syncs == 1, "nothing to do: nothing is done");

  again = map_load (fd, &found, &repaired, error);
  check (again != NULL && !repaired, "it is read");
  check (found.size == identity.size && found.block_size == BLOCK &&
         strcmp (found.id, "id") == 0 &&
         strcmp (found.export_name, "export") == 0, "with its identity");
  check (map_present (again) == 11 && includes (again, map), "and its bits");
  check (!map_written (again), "and that nobody wrote");
  map_free (again);

  map_note_write (map);
  check (map_dirty (map), "that somebody writes is to be committed too");
  check (commit (map) == 0 && !map_dirty (map), "which is done once");
  again = load (fd, &repaired, error);
  check (again != NULL && map_written (again), "and is there");
  map_free (again);

  sync_result = 5;
  map_set (map, 100, 101);
  check (commit (map) == 5 && map_dirty (map), "a sync that fails is reported");
  sync_result = 0;
  again = load (fd, &repaired, error);
  check (again != NULL && !map_has (again, 100, 101), "and no bit is written");
  map_free (again);
  map_free (map);
  close (fd);
}

/* Bits that are set while data is synced are not of this commit. */
static struct map *late_map;

static int
set_late (void *opaque)
{
  map_set (late_map, 7, 8);
  return 0;
}

static void
test_late_bits (void)
{
  const int fd = new_file ();
  char error[MAP_ERROR_MAX];
  bool repaired, lost;
  struct map *again;

  late_map = create (fd);
  map_set (late_map, 1, 2);
  check (map_commit (late_map, set_late, NULL, &lost) == 0, "a commit");
  again = load (fd, &repaired, error);
  check (map_has (again, 1, 2) && !map_has (again, 7, 8),
         "has no bits that came during its sync");
  check (map_dirty (late_map), "they are for the next");
  map_free (again);
  check (commit (late_map) == 0, "which comes");
  again = load (fd, &repaired, error);
  check (map_has (again, 7, 8), "and has them");
  map_free (again);
  map_free (late_map);
  close (fd);
}

/* -- crashes --------------------------------------------------------------- */

#define COMMITS 40
#define CRASHES 30

/* What a crash leaves of a page: the old, the new, or some sectors of each. */
static void
mix_page (unsigned char *page, const unsigned char *new_page)
{
  const unsigned how = random_below (4);
  unsigned sector;

  for (sector = 0; sector < PAGE / SECTOR; ++sector)
    if (how == 0 || (how == 1 && random_below (2)))
      memcpy (page + sector * SECTOR, new_page + sector * SECTOR, SECTOR);
}

/* A commit that syncs more than once. */
static unsigned char at_sync[FILE_BYTES];
static bool synced;

static int
note_sync (void *opaque)
{
  synced = true;
  get_image (*(int *) opaque, at_sync);
  return 0;
}

/* The first commit after a crash ends in one, too.  Takes the map that was loaded
 * in between, and gives back what is found next.
 */
static struct map *
crash_again (int fd, struct map *map, unsigned *refused, unsigned *lost,
             char *error)
{
  static unsigned char image[FILE_BYTES], after[FILE_BYTES];
  struct map *old, *found;
  bool repaired, early;
  unsigned p;

  get_image (fd, image);
  old = load (fd, &repaired, error);
  for (p = 0; p < PAGES; ++p)
    if (p == 0 || random_below (2))
      map_set (map, p * PAGE_BLOCKS + 100, p * PAGE_BLOCKS + 101
               + random_below (1000));
  synced = false;
  map_commit (map, note_sync, &fd, &early);
  map_free (map);
  get_image (fd, after);
  if (!synced)
    get_image (fd, at_sync);
  early = random_below (3) == 0;
  if (!early) {                 /* what came before that sync is there */
    mix_page (at_sync + SETTLED * PAGE, image + SETTLED * PAGE);
    memcpy (image, at_sync, sizeof image);
  }
  for (p = 0; p < FILE_PAGES; ++p)
    if (p != SETTLED)
      mix_page (image + p * PAGE, (early ? at_sync : after) + p * PAGE);
  put_image (fd, image);
  found = load (fd, &repaired, error);
  *refused += found == NULL || repaired;
  *lost += found != NULL && !includes (found, old);
  map_free (old);
  return found;
}

static void
test_crashes (bool write)
{
  static unsigned char before[FILE_BYTES], after[FILE_BYTES],
    crashed[FILE_BYTES];
  const int fd = new_file ();
  struct map *map = create (fd), *old, *found;
  char error[MAP_ERROR_MAX] = "", first_error[MAP_ERROR_MAX] = "";
  unsigned round, crash, p, i, refused = 0, lost = 0, invented = 0, forgot = 0;
  unsigned mended = 0;
  bool repaired;

  for (round = 0; round < COMMITS; ++round) {
    get_image (fd, before);
    old = load (fd, &repaired, error);
    if (old == NULL)
      abort ();
    for (i = random_below (6); i > 0; --i) {
      p = random_below (BLOCKS - 10);
      map_set (map, p, p + 1 + random_below (10));
    }
    if (write && round == COMMITS / 3) {
      map_note_write (map);
      map_set (map, BLOCKS - 1, BLOCKS); /* nothing else has this one */
    }
    commit (map);
    get_image (fd, after);
    for (crash = 0; crash < CRASHES; ++crash) {
      memcpy (crashed, before, sizeof crashed);
      if (crash % 4 == 0) {     /* between the sync and the settled page */
        memcpy (crashed, after, sizeof crashed);
        memcpy (crashed + SETTLED * PAGE, before + SETTLED * PAGE, PAGE);
        mix_page (crashed + SETTLED * PAGE, after + SETTLED * PAGE);
      }
      else
        for (p = 0; p < FILE_PAGES; ++p)
          if (p != SETTLED)
            mix_page (crashed + p * PAGE, after + p * PAGE);
      put_image (fd, crashed);
      found = load (fd, &repaired, error);
      if (found == NULL) {
        refused++;
        strcpy (first_error, error);
        continue;
      }
      mended += repaired;
      lost += !includes (found, old);
      lost += crash % 4 == 0 && !includes (found, map);
      invented += !includes (map, found);
      forgot += map_written (old) && !map_written (found);
      /* Bits of a commit with writes, of which the record may be lost. */
      forgot += map_written (map) && !includes (old, found) &&
        !map_written (found);
      /* And it can go on from there, whatever is left. */
      if (crash % 3 == 0) {
        map_set (found, 5, 6);
        commit (found);
        map_free (found);
        found = load (fd, &repaired, error);
        refused += found == NULL || repaired;
        lost += found != NULL && !map_has (found, 5, 6);
      }
      else if (crash % 3 == 1)
        for (i = 0; found != NULL && i < 3; ++i)
          found = crash_again (fd, found, &refused, &lost, first_error);
      map_free (found);
    }
    put_image (fd, after);
    map_free (old);
  }
  check (refused == 0, "no crash makes a map unusable%s (%u, %s)",
         write ? ", with writes" : "", refused, first_error);
  check (mended == 0, "or is taken for damage (%u)", mended);
  check (lost == 0, "or loses a committed bit (%u)", lost);
  check (invented == 0, "or makes one up (%u)", invented);
  check (forgot == 0, "or forgets that there are writes (%u)", forgot);
  map_free (map);
  close (fd);
}

/* -- what can't be written ----------------------------------------------------- */

#define MANY_PAGES 200
#define MANY_BLOCKS ((uint64_t) MANY_PAGES * PAGE_BLOCKS)
#define MANY_BYTES ((8 + 2 * MANY_PAGES) * PAGE)

static void
set_pages (struct map *map, unsigned first, unsigned end)
{
  for (; first < end; ++first)
    map_set (map, (uint64_t) first * PAGE_BLOCKS,
             (uint64_t) first * PAGE_BLOCKS + 1);
}

/* At each sync of the data: what a crash would leave now. */
static unsigned unusable;

static int
look_at_sync (void *opaque)
{
  static unsigned char image[MANY_BYTES];
  const int fd = *(int *) opaque, copy = new_file ();
  char error[MAP_ERROR_MAX];
  struct map *found;
  bool repaired;

  if (pread (fd, image, sizeof image, 0) != sizeof image ||
      pwrite (copy, image, sizeof image, 0) != sizeof image)
    abort ();
  found = load (copy, &repaired, error);
  unusable += found == NULL || repaired || !map_has (found, 0, 1);
  map_free (found);
  close (copy);
  return 0;
}

/* A file can't be made longer, but it can be made so that it can't be written
 * behind some place.
 */
static int
commit_up_to (struct map *map, uint64_t page)
{
  const struct rlimit some = { (8 + 2 * page) * PAGE, RLIM_INFINITY };
  const struct rlimit all = { RLIM_INFINITY, RLIM_INFINITY };
  int err;

  setrlimit (RLIMIT_FSIZE, &some);
  err = commit (map);
  setrlimit (RLIMIT_FSIZE, &all);
  return err;
}

/* Only some pages of a batch have been written; then there are others that would
 * come first.
 */
static void
test_failed_batch (void)
{
  const struct map_identity was = identity;
  struct map *map, *found;
  char error[MAP_ERROR_MAX];
  int fd = new_file ();
  bool repaired, lost = false;

  signal (SIGXFSZ, SIG_IGN);
  identity.size = MANY_BLOCKS * BLOCK;
  map = create (fd);
  map_note_write (map);
  set_pages (map, 0, MANY_PAGES);
  check (commit (map) == 0, "many pages");
  map_set (map, 150 * PAGE_BLOCKS + 1, 150 * PAGE_BLOCKS + 2);
  map_set (map, 160 * PAGE_BLOCKS + 1, 160 * PAGE_BLOCKS + 2);
  check (commit_up_to (map, 155) != 0 && map_dirty (map),
         "a page that can't be written");
  for (unsigned p = 0; p < 100; ++p)
    map_set (map, p * PAGE_BLOCKS + 1, p * PAGE_BLOCKS + 2);
  check (map_commit (map, look_at_sync, &fd, &lost) == 0 && !map_dirty (map),
         "is written later");
  check (unusable == 0, "and no crash before makes a map unusable (%u)",
         unusable);
  found = load (fd, &repaired, error);
  check (found != NULL && !repaired && includes (found, map) &&
         map_present (found) == map_present (map), "it has all");
  map_free (found);
  map_free (map);
  close (fd);
  identity = was;
}

/* -- damage ---------------------------------------------------------------- */

static void
test_damage (bool write)
{
  static unsigned char image[FILE_BYTES], damaged[FILE_BYTES];
  const int fd = new_file ();
  struct map *map = create (fd), *found;
  char error[MAP_ERROR_MAX];
  unsigned i, at, refused = 0, wrong = 0, silent = 0, invented = 0;
  bool repaired;

  for (i = 0; i < 40; ++i) {
    at = random_below (BLOCKS - 10);
    map_set (map, at, at + 10);
    if (write && i == 20)
      map_note_write (map);
    if (i % 4 == 0)
      commit (map);
  }
  commit (map);
  get_image (fd, image);
  for (i = 0; i < 1000; ++i) {
    memcpy (damaged, image, sizeof damaged);
    at = random_below (FILE_BYTES);
    if (i % 4 == 0)             /* a sector, a page, or a bit */
      memset (damaged + at / SECTOR * SECTOR, i % 8 ? 0 : 0x5a, SECTOR);
    else if (i % 4 == 1)
      memset (damaged + at / PAGE * PAGE, 0, PAGE);
    else
      damaged[at] ^= 1 << random_below (8);
    put_image (fd, damaged);
    found = load (fd, &repaired, error);
    if (found == NULL) {
      refused++;
      continue;
    }
    invented += !includes (map, found);
    if (!includes (found, map)) {
      wrong += write;
      silent += !repaired;
    }
    map_free (found);
  }
  check (invented == 0, "damage never makes a bit (%u)", invented);
  check (wrong == 0, "and where clients wrote none is lost (%u)", wrong);
  check (silent == 0, "elsewhere it is said (%u)", silent);
  check (write == (refused > 0), "it is refused only with writes (%u)",
         refused);
  map_free (map);
  close (fd);
}

static void
test_memory (void)
{
  const int fd = new_file ();
  struct map *map = create (fd);
  char error[MAP_ERROR_MAX];
  unsigned n, failed = 0;
  bool repaired;
  const long before = stub_outstanding ();

  commit (map);
  for (n = 1; n <= 4; ++n) {
    stub_fail_allocations (STUB_ONE_FAILS, n);
    failed += load (fd, &repaired, error) == NULL;
  }
  stub_fail_allocations (STUB_ALL_OK, 0);
  check (failed == 4, "no memory: no map");
  check (stub_outstanding () == before, "and nothing is leaked");
  map_free (map);
  close (fd);
}

/* A file that is whole and speaks of more than it can hold. */
static void
test_size_of_another (void)
{
  const int fd = new_file ();
  struct map *map = map_new (identity.size, BLOCK);
  struct map_identity vast = identity;
  char error[MAP_ERROR_MAX];
  bool repaired;

  vast.size = INT64_MAX;
  if (map == NULL || map_create (map, fd, &vast, error) == -1 ||
      commit (map) != 0)
    abort ();
  check (load (fd, &repaired, error) == NULL &&
         strstr (error, "bytes and should be") != NULL,
         "no memory is taken for a map that isn't there (%s)", error);
  map_free (map);
  close (fd);
}

/* Is a map read whose first page says this? */
static bool
is_loaded_with (uint32_t block_size)
{
  const int fd = new_file ();
  struct map *map = map_new (PAGE, BLOCK), *loaded;
  struct map_identity crafted = { .size = PAGE, .block_size = block_size };
  char error[MAP_ERROR_MAX];
  bool repaired;

  if (map == NULL || map_create (map, fd, &crafted, error) == -1)
    abort ();
  loaded = load (fd, &repaired, error);
  map_free (map);
  map_free (loaded);
  close (fd);
  return loaded != NULL;
}

static void
test_block_sizes (void)
{
  static const uint32_t good[] = { 512, 1 << 20 };
  static const uint32_t bad[] = { 0, 256, 4095, 1 << 21, UINT32_C (1) << 31 };
  unsigned i;

  for (i = 0; i < sizeof good / sizeof *good; ++i)
    check (is_loaded_with (good[i]), "blocks of %u bytes", good[i]);
  for (i = 0; i < sizeof bad / sizeof *bad; ++i)
    check (!is_loaded_with (bad[i]), "no blocks of %u bytes", bad[i]);
}

/* 0: all calls go well; else the one that fails, counted down. */
static unsigned fstat_to_fail;

/* In place of the C library's. */
int
fstat (int fd, struct stat *st)
{
  if (fstat_to_fail > 0 && --fstat_to_fail == 0) {
    memset (st, 0x55, sizeof *st);
    errno = EIO;
    return -1;
  }
  return fstatat (fd, "", st, AT_EMPTY_PATH);
}

static void
test_unknown_size (void)
{
  const int fd = new_file ();
  struct map *map = create (fd), *loaded = NULL;
  char error[MAP_ERROR_MAX];
  unsigned n, silent = 0;
  bool repaired;

  commit (map);
  for (n = 1; loaded == NULL && n < 10; ++n) {
    fstat_to_fail = n;
    loaded = load (fd, &repaired, error);
    if (loaded == NULL)
      silent += strcmp (error, "cannot be read: Input/output error") != 0;
  }
  fstat_to_fail = 0;
  check (loaded != NULL && n > 2, "no size: no map");
  check (silent == 0, "and it is said why");
  map_free (loaded);
  map_free (map);
  close (fd);
}

/* -- after a failed sync --------------------------------------------------- */

static void
test_durable (void)
{
  const int fd = new_file ();
  struct map *map = create (fd), *durable = map_new (identity.size, BLOCK);
  bool lost = false;

  map_set (map, 10, 20);
  map_set (map, 3 * PAGE_BLOCKS + 5, 3 * PAGE_BLOCKS + 7);
  commit (map);
  map_set (map, 30, 40);
  commit (map);
  map_set (map, 50, 60);
  map_set (map, PAGE_BLOCKS, PAGE_BLOCKS + 9);
  sync_result = EIO;
  map_commit (map, sync_data, NULL, &lost);
  sync_result = 0;
  check (lost, "a sync fails");
  check (map_get_durable (map, durable) && map_present (durable) == 22 &&
         map_has (durable, 10, 20) && map_has (durable, 30, 40) &&
         map_has (durable, 3 * PAGE_BLOCKS + 5, 3 * PAGE_BLOCKS + 7),
         "what was committed before is durable, and no more");
  map_free (durable);

  durable = map_new (identity.size, BLOCK);
  if (pwrite (fd, "x", 1, (8 + 2 * 3) * PAGE + 100) != 1 ||
      pwrite (fd, "x", 1, (8 + 2 * 3 + 1) * PAGE + 100) != 1)
    abort ();
  check (!map_get_durable (map, durable), "not if a page is damaged");
  map_free (durable);
  map_free (map);
  close (fd);
}

static void
test_changes (void)
{
  struct map *map = map_new (identity.size, BLOCK);

  check (map_last_change (map, 0, BLOCKS) == 0, "nothing was changed");
  map_note_change (map, 1000, 1001, 3);
  map_note_change (map, BLOCKS - 1, BLOCKS, 7);
  check (map_last_change (map, 0, BLOCKS) == 7 &&
         map_last_change (map, 1000, 1001) == 3 &&
         map_last_change (map, 0, 1001) == 3 && map_last_change (map, 0, 500) == 0,
         "what was changed is known, and when");
  map_note_change (map, 500, 2000, 2);
  check (map_last_change (map, 1000, 1001) == 3 &&
         map_last_change (map, 1999, 2000) == 2, "the last time counts");
  map_free (map);
}

int
main (void)
{
  test_bits ();
  test_file ();
  test_late_bits ();
  test_crashes (false);
  test_crashes (true);
  test_failed_batch ();
  test_damage (false);
  test_damage (true);
  test_memory ();
  test_size_of_another ();
  test_block_sizes ();
  test_unknown_size ();
  test_durable ();
  test_changes ();
  return done ();
}
