/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See map-file.h.
 *
 * The file consists of pages of 4096 bytes, each with a checksum; numbers are
 * little-endian:
 *
 *   0, 1      identity: what this is a clone of; the same twice
 *   2, 3      record: of the last commit, and of the one before
 *   4         settled: the last commit that is known to be durable
 *   5 to 7    not used
 *   8 + 2 n,  the bits of page n of the map: its newest version and the one
 *   9 + 2 n   before, or zeroes
 *
 * A commit writes over what is not the newest: of each page of bits that has
 * changed the older version, and the older record; then it syncs the file.  So
 * whatever part of it reaches the disk before a crash, the state of the commit
 * before is whole.  Each page says at which commit it was written.
 *
 * A page that a crash has torn must not be taken for one that the disk has
 * damaged: the first is harmless, the second may have held the only trace of a
 * client's write.  So the record has a digest of all pages and their commits,
 * apart from those that this very commit writes, which it lists.  When the map
 * is loaded the pages found must have this digest.  The page "settled" is
 * written after the sync and not synced itself; if it is there, the pages in
 * the list are durable too, and must be found.  What does not pass this has
 * lost bits.  They can be fetched again if no client has ever written; else it
 * is refused.
 *
 * Pages that are newer than the last record are taken when the map is loaded.
 * The first commit after that only makes a record of them, and writes the pages
 * anew that were torn: it may end in a crash as well, which must find what the
 * last record speaks of, and must not complete a page that was not counted.  A
 * batch that could not be written is the next one again, as what it has left is
 * not to be counted either.
 */

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "crc32c.h"
#include "disk.h"
#include "map-file.h"
#include "map-internal.h"

#define VERSION 1
#define PAGE 4096
#define BATCH_PAGES 64          /* most pages that one commit writes */

enum page_number { IDENTITY, RECORD = 2, SETTLED = 4, BITS = 8 };

/* In the order of the file. */
static const char magics[][8] = {
  "nbdclone", "clonerec", "cloneset", "clonemap"
};
enum kind { KIND_IDENTITY, KIND_RECORD, KIND_SETTLED, KIND_BITS };

struct head {
  char magic[8];
  uint32_t crc;                 /* of the page, with this being 0 */
  uint32_t version;
  uint64_t generation;          /* of the commit that wrote it */
  uint64_t number;              /* bits: of the page; else 0 */
};

struct identity_page {
  struct head head;
  uint64_t size;
  uint32_t block_size;
  uint32_t default_askers;      /* earlier: 0 */
  char id[MAP_ID_MAX + 1];
  char export_name[MAP_EXPORT_MAX + 1];
};

struct record_page {            /* also "settled", with no list */
  struct head head;
  uint64_t digest;              /* of the pages that are not in the list */
  uint32_t written;             /* has a client ever written? */
  uint32_t nr_listed;
  uint32_t listed[BATCH_PAGES];
};

struct bits_page {
  struct head head;
  uint64_t words[PAGE_WORDS];
};

union page {
  struct head head;
  struct identity_page identity;
  struct record_page record;
  struct bits_page bits;
  unsigned char bytes[PAGE];
};

_Static_assert (sizeof (union page) == PAGE, "a page is a page");
_Static_assert (sizeof (struct bits_page) == PAGE, "bits fill it");

/* Of a page of bits, as it is in the file. */
struct version {
  uint64_t generation;          /* 0: never written */
  unsigned char slot;           /* where the newest is, 0 or 1 */
};

/* For whoever loads or commits, but for written_recorded. */
struct map_file {
  int fd;
  uint64_t generation;          /* the highest used */
  unsigned record_slot;         /* where the last record is, 0 or 1 */
  struct version *versions;     /* for each page */
  uint64_t digest;              /* of all of them */
  union page *batch;            /* BATCH_PAGES, and one more */
  uint32_t listed[BATCH_PAGES]; /* the pages of the batch */
  bool again;                   /* the next batch is of these, */
  unsigned nr_again;            /* so many, which may be none */

  /* The record says "written"; also asked by other threads. */
  atomic_bool written_recorded;
};

/* Give a map its file.  Returns -1 with errno set if memory is short. */
static int
add_file (struct map *map, int fd)
{
  struct map_file *file = calloc (1, sizeof *file);

  if (file == NULL)
    return -1;
  file->fd = fd;
  file->versions = calloc (map->nr_pages + 1, sizeof file->versions[0]);
  file->batch = calloc (BATCH_PAGES + 1, sizeof file->batch[0]);
  if (file->versions == NULL || file->batch == NULL) {
    map_file_free (file);
    errno = ENOMEM;
    return -1;
  }
  map->file = file;
  return 0;
}

void
map_file_free (struct map_file *file)
{
  if (file == NULL)
    return;
  free (file->versions);
  free (file->batch);
  free (file);
}

/* -- pages ----------------------------------------------------------------- */

static uint64_t
file_size (uint64_t nr_pages)
{
  return (BITS + 2 * nr_pages) * PAGE;
}

static uint32_t
page_crc (const union page *page)
{
  union page copy = *page;

  copy.head.crc = 0;
  return crc32c (&copy, sizeof copy);
}

static void
seal (union page *page, enum kind kind, uint64_t generation, uint64_t number)
{
  memcpy (page->head.magic, magics[kind], sizeof page->head.magic);
  page->head.version = htole32 (VERSION);
  page->head.generation = htole64 (generation);
  page->head.number = htole64 (number);
  page->head.crc = htole32 (page_crc (page));
}

static bool
is_sealed (const union page *page, enum kind kind, uint64_t number)
{
  return memcmp (page->head.magic, magics[kind], sizeof page->head.magic) == 0
    && le32toh (page->head.version) == VERSION
    && le64toh (page->head.number) == number
    && le32toh (page->head.crc) == page_crc (page);
}

static bool
is_zero (const union page *page)
{
  static const union page zeroes;

  return memcmp (page, &zeroes, sizeof zeroes) == 0;
}

/* What a page adds to the digest. */
static uint64_t
digest_of (uint64_t number, uint64_t generation)
{
  uint64_t x = number * UINT64_C (0x9e3779b97f4a7c15) ^ generation;

  if (generation == 0)
    return 0;
  x = (x ^ x >> 30) * UINT64_C (0xbf58476d1ce4e5b9);
  x = (x ^ x >> 27) * UINT64_C (0x94d049bb133111eb);
  return x ^ x >> 31;
}

static int
write_page (const struct map_file *file, const union page *page, uint64_t where)
{
  return disk_write (file->fd, page, sizeof *page, where * PAGE);
}

/* -- commit ---------------------------------------------------------------- */

static void
make_record (union page *page, enum kind kind, uint64_t generation,
             uint64_t digest, bool written, const uint32_t *listed,
             unsigned nr_listed)
{
  unsigned i;

  memset (page, 0, sizeof *page);
  page->record.digest = htole64 (digest);
  page->record.written = htole32 (written);
  page->record.nr_listed = htole32 (nr_listed);
  for (i = 0; i < nr_listed; ++i)
    page->record.listed[i] = htole32 (listed[i]);
  seal (page, kind, generation, 0);
}

/* Add a page to the batch, with its bits as they are now. */
static void
take_page (struct map *map, uint64_t p, unsigned n)
{
  uint64_t *const words = map->file->batch[n].bits.words;
  unsigned i;

  map_take_page (map, p, words);
  for (i = 0; i < PAGE_WORDS; ++i)
    words[i] = htole64 (words[i]);
  map->file->listed[n] = p;
}

/* Take the next dirty pages; or, before all others, those to be written again.
 * Returns how many; *from is where to go on.
 */
static unsigned
take_batch (struct map *map, uint64_t *from)
{
  const struct map_file *const file = map->file;
  unsigned n;
  uint64_t p;

  for (n = 0; n < file->nr_again; ++n)
    take_page (map, file->listed[n], n);
  if (file->again)
    return n;
  for (p = *from; p < map->nr_pages && n < BATCH_PAGES; ++p)
    if (map_page_is_dirty (map, p))
      take_page (map, p, n++);
  *from = p;
  return n;
}

/* Write one batch.  On failure all that was durable before still is. */
static int
write_batch (struct map_file *file, unsigned n, bool written, bool *lost)
{
  union page *const record = &file->batch[BATCH_PAGES];
  const uint32_t *const listed = file->listed;
  const uint64_t generation = ++file->generation;
  const struct version *v;
  uint64_t rest = file->digest;
  unsigned i;
  int err = 0;

  for (i = 0; i < n && err == 0; ++i) {
    v = &file->versions[listed[i]];
    rest -= digest_of (listed[i], v->generation);
    seal (&file->batch[i], KIND_BITS, generation, listed[i]);
    err = write_page (file, &file->batch[i],
                      BITS + 2 * (uint64_t) listed[i] + !v->slot);
  }
  if (err == 0) {
    make_record (record, KIND_RECORD, generation, rest, written, listed, n);
    err = write_page (file, record, RECORD + !file->record_slot);
  }
  if (err != 0)
    return err;
  err = disk_sync (file->fd);
  if (err != 0) {
    *lost = true;
    return err;
  }

  file->record_slot = !file->record_slot;
  file->digest = rest;
  file->written_recorded = written;
  for (i = 0; i < n; ++i) {
    file->versions[listed[i]] = (struct version) {
      generation, !file->versions[listed[i]].slot
    };
    file->digest += digest_of (listed[i], generation);
  }
  /* Only a help against damage, so a failure does not matter. */
  make_record (record, KIND_SETTLED, generation, 0, written, NULL, 0);
  write_page (file, record, SETTLED);
  return 0;
}

/* Does the record have to learn that there are writes? */
static bool
owes_written (const struct map *map)
{
  return map_written (map) && !atomic_load (&map->file->written_recorded);
}

bool
map_dirty (const struct map *map)
{
  uint64_t p;

  if (owes_written (map))
    return true;
  for (p = 0; p < map->nr_pages; ++p)
    if (map_page_is_dirty (map, p))
      return true;
  return false;
}

int
map_commit (struct map *map, int (*sync_data) (void *), void *opaque,
            bool *lost)
{
  struct map_file *const file = map->file;
  uint64_t from = 0;
  unsigned n, i;
  bool written;
  int err;

  while ((n = take_batch (map, &from)) > 0 || file->again) {
    /* Bits that come from here on are not in the batch, and their data need
     * not be durable.  The flag is read after the bits: it is set before them.
     */
    written = map_written (map);
    err = sync_data (opaque);
    if (err != 0)
      *lost = true;
    else
      err = write_batch (file, n, written, lost);
    file->again = err != 0;
    file->nr_again = file->again ? n : 0;
    for (i = 0; i < file->nr_again; ++i)
      map_give_back_page (map, file->listed[i]);
    if (err != 0)
      return err;
  }
  /* A write to what was present has changed no bit. */
  return owes_written (map) ? write_batch (file, 0, true, lost) : 0;
}

/* -- what is durable ------------------------------------------------------- */

/* Put the bits of a page of the file into a map. */
static void
put_bits (struct map *map, uint64_t number, union page *page)
{
  uint64_t *const words = page->bits.words;
  unsigned i;

  for (i = 0; i < PAGE_WORDS; ++i)
    words[i] = le64toh (words[i]);
  map_put_page (map, number, words);
}

/* A commit doesn't write over the newest version of a page, so it is as it was when
 * the commit that wrote it was synced.
 */
bool
map_get_durable (const struct map *map, struct map *durable)
{
  const struct map_file *const file = map->file;
  const struct version *v;
  union page page;
  uint64_t p;

  for (p = 0; p < map->nr_pages; ++p) {
    v = &file->versions[p];
    if (v->generation == 0)
      continue;
    if (disk_read (file->fd, &page, sizeof page, (BITS + 2 * p + v->slot) * PAGE) != 0
        || !is_sealed (&page, KIND_BITS, p) ||
        le64toh (page.head.generation) != v->generation)
      return false;
    put_bits (durable, p, &page);
  }
  return true;
}

/* -- create ---------------------------------------------------------------- */

/* Is there nothing but zeroes from this page on?  Returns -1 with errno set if it
 * can't be read.
 */
static int
is_blank_from (int fd, uint64_t where, uint64_t size)
{
  uint64_t offset = where * PAGE, next;
  union page page;
  bool is_hole;
  int err;

  for (; offset < size; offset = next) {
    next = disk_extent (fd, offset, size, &is_hole);
    if (is_hole)
      continue;
    next = offset + PAGE < size ? offset + PAGE : size;
    memset (&page, 0, sizeof page);
    err = disk_read (fd, &page, next - offset, offset);
    if (err != 0) {
      errno = err;
      return -1;
    }
    if (!is_zero (&page))
      return 0;
  }
  return 1;
}

/* The first page is the last to be written; the second is durable before it, and
 * the record before that.  Nothing else is written before there is a map, so what
 * holds more is another file, or a map that was damaged.
 */
int
map_file_is_unborn (int fd)
{
  union page pages[RECORD + 1];
  struct stat st;
  int err;

  if (fstat (fd, &st) == -1)
    return -1;
  if (st.st_size < BITS * PAGE)
    return st.st_size == 0;
  err = disk_read (fd, pages, sizeof pages, IDENTITY * PAGE);
  if (err != 0) {
    /* One that has become a map says so twice. */
    if (disk_read (fd, &pages[0], PAGE, (IDENTITY + 1) * PAGE) == 0 &&
        is_sealed (&pages[0], KIND_IDENTITY, 0))
      return 0;
    errno = err;
    return -1;
  }
  if (!is_zero (&pages[IDENTITY]) ||
      is_sealed (&pages[IDENTITY + 1], KIND_IDENTITY, 0) ||
      (!is_sealed (&pages[RECORD], KIND_RECORD, 0) &&
       !(is_zero (&pages[RECORD]) && is_zero (&pages[IDENTITY + 1]))))
    return 0;
  return is_blank_from (fd, RECORD + 1, st.st_size);
}

bool
map_file_may_be_of (uint64_t bytes, uint64_t disk_size)
{
  uint32_t block_size = MAP_BLOCK_MIN;

  while (block_size <= MAP_BLOCK_MAX &&
         file_size (map_pages_of (disk_size, block_size)) != bytes)
    block_size *= 2;
  return block_size <= MAP_BLOCK_MAX;
}

int
map_create (struct map *map, int fd, const struct map_identity *identity,
            char *error)
{
  const char *what = "cannot be held in memory";
  union page *page;
  int err;

  if (add_file (map, fd) == -1) {
    err = errno;
    goto error;
  }
  page = map->file->batch;
  /* With all the room that it will ever need, so that no commit fails for lack
   * of it, but on a file system that copies on write.  What is not written yet stays as
   * cheap to read as a hole.
   */
  what = "cannot be made as large as it has to be";
  err = disk_make_empty (fd, file_size (map->nr_pages), true);
  if (err != 0)
    goto error;

  what = "cannot be written";
  make_record (page, KIND_RECORD, 0, 0, false, NULL, 0);
  err = write_page (map->file, page, RECORD);
  if (err == 0)
    err = disk_sync (fd);
  if (err != 0)
    goto error;
  memset (page, 0, sizeof *page);
  page->identity.size = htole64 (identity->size);
  page->identity.block_size = htole32 (identity->block_size);
  page->identity.default_askers = htole32 (identity->default_askers);
  memcpy (page->identity.id, identity->id, sizeof identity->id);
  memcpy (page->identity.export_name, identity->export_name,
          sizeof identity->export_name);
  seal (page, KIND_IDENTITY, 0, 0);
  err = write_page (map->file, page, IDENTITY + 1);
  if (err == 0)
    err = disk_sync (fd);
  if (err == 0)
    err = write_page (map->file, page, IDENTITY);
  if (err == 0)
    err = disk_sync (fd);
  if (err == 0)
    return 0;

 error:
  snprintf (error, MAP_ERROR_MAX, "%s: %s", what, strerror (err));
  /* Some file systems keep what room they had found. */
  disk_make_empty (fd, 0, false);
  return -1;
}

/* -- load ------------------------------------------------------------------ */

#define DAMAGED                                                         \
  "is damaged, and the clone holds what clients have written, which "   \
  "could be lost; put back a copy of both files, or move both away to " \
  "begin anew"

/* Where it doesn't say any more if they have, or what it is a map of. */
#define UNKNOWN                                                         \
  "is damaged, and can't tell what is in the clone any more, which "    \
  "may be what clients have written; put back a copy of both files, "   \
  "or move both away to begin anew"

/* Read one page.  Returns false, with the error, if that fails. */
static bool
read_page (int fd, union page *page, uint64_t where, char *error)
{
  const int err = disk_read (fd, page, sizeof *page, where * PAGE);

  if (err != 0)
    snprintf (error, MAP_ERROR_MAX, "cannot be read: %s", strerror (err));
  return err == 0;
}

static int
load_identity (int fd, struct map_identity *identity, char *error)
{
  union page page;
  struct stat st;
  uint64_t bytes, expected;
  bool is_unread = false;
  unsigned copy;

  if (fstat (fd, &st) == -1) {
    snprintf (error, MAP_ERROR_MAX, "cannot be read: %s", strerror (errno));
    return -1;
  }
  bytes = st.st_size;
  if (bytes < BITS * PAGE) {
    snprintf (error, MAP_ERROR_MAX, "is too short for a map of a clone; put "
              "back a copy of both files, or move both away to begin anew");
    return -1;
  }
  for (copy = 0; copy < 2; ++copy) {
    if (!read_page (fd, &page, IDENTITY + copy, error))
      is_unread = true;
    else if (is_sealed (&page, KIND_IDENTITY, 0))
      break;
  }
  if (copy == 2 && is_unread)
    return -1;
  if (copy == 2) {
    if (memcmp (page.head.magic, magics[KIND_IDENTITY],
                sizeof page.head.magic) != 0)
      snprintf (error, MAP_ERROR_MAX, "is not a map of a clone, or its "
                "beginning is damaged; put back a copy of both files, or move "
                "both away to begin anew");
    else if (le32toh (page.head.version) != VERSION)
      snprintf (error, MAP_ERROR_MAX, "is a map of version %" PRIu32 ", and "
                "this filter knows version %d only; use the filter that made "
                "it, or move both files away to begin anew",
                le32toh (page.head.version), VERSION);
    else
      snprintf (error, MAP_ERROR_MAX, UNKNOWN);
    return -1;
  }

  identity->size = le64toh (page.identity.size);
  identity->block_size = le32toh (page.identity.block_size);
  identity->default_askers = le32toh (page.identity.default_askers);
  memcpy (identity->id, page.identity.id, sizeof identity->id);
  memcpy (identity->export_name, page.identity.export_name,
          sizeof identity->export_name);
  if (identity->size > INT64_MAX || identity->block_size < MAP_BLOCK_MIN ||
      identity->block_size > MAP_BLOCK_MAX ||
      (identity->block_size & (identity->block_size - 1)) != 0 ||
      memchr (identity->id, 0, sizeof identity->id) == NULL ||
      memchr (identity->export_name, 0, sizeof identity->export_name) == NULL) {
    snprintf (error, MAP_ERROR_MAX, UNKNOWN);
    return -1;
  }
  /* Before memory is taken for what the file says of itself. */
  expected = file_size (map_pages_of (identity->size, identity->block_size));
  if (bytes != expected) {
    snprintf (error, MAP_ERROR_MAX, "is %" PRIu64 " bytes and should be %"
              PRIu64 "; put back a copy of both files, or move both away to "
              "begin anew", bytes, expected);
    return -1;
  }
  return 0;
}

/* What the file says of its last commits. */
struct records {
  struct record_page last;
  uint64_t generation;          /* of it */
  uint64_t known;               /* of the last that is known of */
  unsigned slot;
  bool settled;                 /* it is durable, with all that it lists */
  bool whole;                   /* there was no later one that got lost */
  bool written;
};

static int
load_records (int fd, struct records *records, char *error)
{
  union page page;
  uint64_t generation;
  bool found = false;
  unsigned slot;

  memset (records, 0, sizeof *records);
  for (slot = 0; slot < 2; ++slot) {
    if (!read_page (fd, &page, RECORD + slot, error))
      return -1;
    generation = le64toh (page.head.generation);
    if (!is_sealed (&page, KIND_RECORD, 0) ||
        le32toh (page.record.nr_listed) > BATCH_PAGES ||
        (found && generation <= records->generation))
      continue;
    found = true;
    records->last = page.record;
    records->generation = generation;
    records->slot = slot;
  }
  if (!found) {
    snprintf (error, MAP_ERROR_MAX, UNKNOWN);
    return -1;
  }
  records->whole = true;
  records->known = records->generation;
  records->written = records->last.written != 0;
  if (!read_page (fd, &page, SETTLED, error))
    return -1;
  if (is_sealed (&page, KIND_SETTLED, 0)) {
    generation = le64toh (page.head.generation);
    records->settled = generation >= records->generation;
    records->whole = generation <= records->generation;
    if (generation > records->known)
      records->known = generation;
    records->written |= page.record.written != 0;
  }
  return 0;
}

static bool
is_listed (const struct record_page *record, uint64_t number)
{
  uint32_t i;

  for (i = 0; i < le32toh (record->nr_listed); ++i)
    if (le32toh (record->listed[i]) == number)
      return true;
  return false;
}

/* What is found while pages are read. */
struct findings {
  uint64_t digest;              /* of those that the last record doesn't list */
  bool missing;                 /* one that it lists, and that is durable */
  bool newer;                   /* of a commit that has left no record */
};

static bool
load_page (struct map *map, uint64_t number, const struct records *records,
           struct findings *findings, char *error)
{
  struct map_file *const file = map->file;
  union page slots[2];
  uint64_t generation, newest = 0, recorded = 0;
  int slot, best = -1;
  bool torn = false;
  int err;

  err = disk_read (file->fd, slots, sizeof slots, (BITS + 2 * number) * PAGE);
  if (err != 0) {
    snprintf (error, MAP_ERROR_MAX, "cannot be read: %s", strerror (err));
    return false;
  }
  for (slot = 0; slot < 2; ++slot) {
    if (!is_sealed (&slots[slot], KIND_BITS, number)) {
      torn |= !is_zero (&slots[slot]);
      continue;
    }
    generation = le64toh (slots[slot].head.generation);
    if (generation > newest) {
      newest = generation;
      best = slot;
    }
    if (generation <= records->generation && generation > recorded)
      recorded = generation;
  }
  if (torn && file->nr_again < BATCH_PAGES)
    file->listed[file->nr_again++] = number;
  if (newest > records->known)
    findings->newer = true;
  if (!is_listed (&records->last, number))
    findings->digest += digest_of (number, recorded);
  else if (records->settled && recorded != records->generation)
    findings->missing = true;
  if (best == -1)
    return true;
  file->versions[number] = (struct version) { newest, best };
  file->digest += digest_of (number, newest);
  if (newest > file->generation)
    file->generation = newest;
  put_bits (map, number, &slots[best]);
  return true;
}

/* Read the pages there are; a pair that is all hole was never written. */
static int
load_pages (struct map *map, const struct records *records,
            struct findings *findings, char *error)
{
  const uint64_t end = file_size (map->nr_pages);
  uint64_t number = 0, offset, next;
  uint32_t i;
  bool is_hole;

  while (number < map->nr_pages) {
    offset = (BITS + 2 * number) * PAGE;
    next = disk_extent (map->file->fd, offset, end, &is_hole);
    if (is_hole) {
      if (next == end)
        break;
      number = (next / PAGE - BITS) / 2;
    }
    if (!load_page (map, number, records, findings, error))
      return -1;
    number++;
  }
  /* Those that are in holes and should not be. */
  for (i = 0; records->settled && i < le32toh (records->last.nr_listed); ++i) {
    number = le32toh (records->last.listed[i]);
    if (number >= map->nr_pages || map->file->versions[number].generation == 0)
      findings->missing = true;
  }
  return 0;
}

struct map *
map_load (int fd, struct map_identity *identity, bool *repaired, char *error)
{
  struct records records;
  struct findings findings = { 0 };
  struct map *map;
  int err;

  *repaired = false;
  /* What a server that was killed has written may not have reached the disk,
   * and what is written from now on relies on it.  If an earlier sync failed, see
   * store_open.
   */
  err = disk_sync (fd);
  if (err != 0) {
    snprintf (error, MAP_ERROR_MAX, "cannot be synced: %s", strerror (err));
    return NULL;
  }
  disk_forget_cached (fd);
  if (load_identity (fd, identity, error) == -1 ||
      load_records (fd, &records, error) == -1)
    return NULL;
  map = map_new (identity->size, identity->block_size);
  if (map == NULL || add_file (map, fd) == -1) {
    snprintf (error, MAP_ERROR_MAX, "cannot be held in memory: %s",
              strerror (errno));
    goto error;
  }
  map->file->generation = records.known;
  map->file->record_slot = records.slot;
  if (load_pages (map, &records, &findings, error) == -1)
    goto error;
  map->file->written_recorded = records.last.written != 0;
  map->written = records.written || findings.newer;
  if (!records.whole || findings.missing ||
      findings.digest != le64toh (records.last.digest)) {
    if (map->written) {
      snprintf (error, MAP_ERROR_MAX, DAMAGED);
      goto error;
    }
    *repaired = true;
  }
  map->file->again = findings.newer || *repaired || map->file->nr_again > 0;
  return map;

 error:
  map_free (map);
  return NULL;
}
