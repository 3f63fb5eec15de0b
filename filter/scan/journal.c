/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See journal.h. */

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "file-mode.h"
#include "journal.h"
#include "library.h"

/* Twice what the file may hold: its own, and those of this run. */
#define ENTRIES_MAX (2 * JOURNAL_BLOCKS_MAX)

/* A power of two, so that at most half of it is in use. */
#define SLOTS (2 * ENTRIES_MAX)

/* How many blocks of the file's lines are looked at.  We write each block once; a list
 * that somebody else has made may have the same ones in every line.
 */
#define WALK_MAX (64 * JOURNAL_BLOCKS_MAX)

/* A run counts if it has read this part of what most runs before did. */
#define COUNTS_FRACTION 8

#define HEADER "# nbdkit scan trace: "

struct entry {
  uint64_t block;
  uint32_t turn;                /* in this run, from 1; 0 if not read in it */
  uint8_t history;              /* a bit for each run before, newest lowest */
};

struct journal {
  const char *path;
  FILE *file;                   /* with a lock; NULL if it is not there yet */
  unsigned runs;                /* before this one, JOURNAL_RUNS_MAX - 1 count */
  size_t nr_usual;              /* blocks that most of them read */
  size_t nr_entries;
  size_t nr_walked;             /* blocks of the file's lines */
  uint32_t nr_read;             /* in this run */
  struct entry entries[ENTRIES_MAX];
  uint32_t slots[SLOTS];        /* an entry's index and 1, by its block; or 0 */
};

/* -- the set of blocks ----------------------------------------------------- */

/* The entry of a block; made if there is room, else NULL. */
static struct entry *
get_entry (struct journal *j, uint64_t block)
{
  size_t slot = block * UINT64_C (0x9e3779b97f4a7c15) >> 32 & (SLOTS - 1);
  struct entry *entry;

  for (; j->slots[slot] != 0; slot = (slot + 1) & (SLOTS - 1)) {
    entry = &j->entries[j->slots[slot] - 1];
    if (entry->block == block)
      return entry;
  }
  if (j->nr_entries == ENTRIES_MAX)
    return NULL;
  entry = &j->entries[j->nr_entries++];
  *entry = (struct entry) { .block = block };
  j->slots[slot] = j->nr_entries;
  return entry;
}

bool
journal_is_full (const struct journal *j)
{
  return j->nr_read == JOURNAL_BLOCKS_MAX;
}

size_t
journal_add (struct journal *j, struct range range)
{
  uint64_t block = range.offset / JOURNAL_BLOCK;
  uint64_t last = (range_end (range) - 1) / JOURNAL_BLOCK;
  struct entry *entry;
  size_t added = 0;

  /* A whole one after this would end beyond what an offset can say. */
  if (last > INT64_MAX / JOURNAL_BLOCK - 1)
    last = INT64_MAX / JOURNAL_BLOCK - 1;
  for (; block <= last && !journal_is_full (j); ++block) {
    entry = get_entry (j, block);
    if (entry != NULL && entry->turn == 0) {
      entry->turn = ++j->nr_read;
      added++;
    }
  }
  return added;
}

size_t
journal_length (const struct journal *j)
{
  return j->nr_read;
}

bool
journal_counts (const struct journal *j)
{
  return j->nr_read > 0 && j->nr_read >= j->nr_usual / COUNTS_FRACTION;
}

/* -- reading the file ------------------------------------------------------ */

static unsigned
bits_set (uint8_t history)
{
  return __builtin_popcount (history);
}

/* A history as it is written, of so many runs: 1 and 0, the newest first. */
static bool
parse_history (const char *text, uint8_t *history)
{
  unsigned i;

  text += *text == ' ';
  *history = 0;
  for (i = 0; text[i] == '0' || text[i] == '1'; ++i) {
    if (i == JOURNAL_RUNS_MAX)
      return false;
    *history |= (text[i] - '0') << i;
  }
  return *history != 0 && text[i + strspn (text + i, " \r\n")] == '\0';
}

/* A number, decimal or 0x…; moves the text on behind it. */
static bool
parse_number (char **text, uint64_t *number)
{
  bool is_hex;

  *text += strspn (*text, " \t");
  if (**text < '0' || **text > '9')
    return false;
  is_hex = (*text)[0] == '0' && tolower ((unsigned char) (*text)[1]) == 'x';
  errno = 0;
  *number = strtoull (*text, text, is_hex ? 16 : 10);
  return errno == 0;
}

/* Say that a file is not one to be written anew. */
static void
refuse (char error[JOURNAL_ERROR_MAX], const char *what)
{
  snprintf (error, JOURNAL_ERROR_MAX, "%s a trace that can be added to ('offset count' "
            "in bytes, of at most 4G each); move the file away, or name another one",
            what);
}

/* Returns false if a line, of so many bytes, is not one of ours. */
static bool
parse_line (struct journal *j, char *line, size_t length)
{
  const char *comment;
  struct range range;
  uint64_t count, block;
  uint8_t history = 1;
  struct entry *entry;

  if (strlen (line) < length)   /* a NUL is in it, as in a disk */
    return false;
  line += strspn (line, " \t\r\n");
  if (*line == '\0')
    return true;
  comment = strchr (line, '#');
  if (comment == line) {
    sscanf (line, HEADER "%u runs", &j->runs);
    return true;
  }
  if (!parse_number (&line, &range.offset) || !parse_number (&line, &count) ||
      count == 0 || count > UINT32_MAX || range.offset > INT64_MAX - count)
    return false;
  line += strspn (line, " \t\r\n");
  if (*line != '\0' && line != comment)
    return false;
  if (comment != NULL && !parse_history (comment + 1, &history))
    history = 1;
  range.count = count;
  for (block = range.offset / JOURNAL_BLOCK;
       block <= (range_end (range) - 1) / JOURNAL_BLOCK &&
         j->nr_entries < JOURNAL_BLOCKS_MAX && j->nr_walked < WALK_MAX; ++block) {
    j->nr_walked++;
    entry = get_entry (j, block);
    entry->history |= history;
  }
  return true;
}

static int
load (struct journal *j, FILE *fp, char error[JOURNAL_ERROR_MAX])
{
  CLEANUP_FREE char *line = NULL;
  size_t size = 0, number = 0, i;
  bool is_blank = true;
  struct stat st;
  char what[64];
  ssize_t n;

  if (fstat (fileno (fp), &st) == 0 && st.st_size > TEXT_MAX_BYTES) {
    snprintf (error, JOURNAL_ERROR_MAX, "it has %jd bytes, and a trace may have up to "
              "%dM; move the file away, or name another one", (intmax_t) st.st_size,
              TEXT_MAX_BYTES >> 20);
    return -1;
  }
  while ((n = getline (&line, &size, fp)) != -1) {
    number++;
    is_blank &= line[strspn (line, " \t\r\n")] == '\0';
    if (!parse_line (j, line, n)) {
      snprintf (what, sizeof what, "line %zu is none of", number);
      refuse (error, what);
      return -1;
    }
  }
  if (!feof (fp)) {             /* also if there is no memory for a line */
    snprintf (error, JOURNAL_ERROR_MAX, "%s", strerror (errno));
    return -1;
  }
  /* Comments alone may be anybody's. */
  if (!is_blank && j->nr_entries == 0 && j->runs == 0) {
    refuse (error, "it has not one line of");
    return -1;
  }
  if (j->nr_entries == 0 || j->runs < 1)
    j->runs = j->nr_entries > 0;
  if (j->runs > JOURNAL_RUNS_MAX)
    j->runs = JOURNAL_RUNS_MAX;
  for (i = 0; i < j->nr_entries; ++i)
    j->nr_usual += bits_set (j->entries[i].history) * 2 > j->runs;
  return 0;
}

/* Is this file the one of that name? */
static bool
is_at (FILE *fp, const char *path)
{
  struct stat there, ours;

  return stat (path, &there) == 0 && fstat (fileno (fp), &ours) == 0 &&
    there.st_dev == ours.st_dev && there.st_ino == ours.st_ino;
}

/* Open the file and lock it; where files can't be locked, there is no lock.
 * Returns NULL with errno set, EWOULDBLOCK if another has the lock.
 */
static FILE *
open_locked (const char *path)
{
  FILE *fp;

  for (;;) {
    fp = fopen (path, "re");
    if (fp == NULL)
      return NULL;
    if (flock (fileno (fp), LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK) {
      fclose (fp);
      errno = EWOULDBLOCK;
      return NULL;
    }
    /* Who had the lock may have put another one in place meanwhile. */
    if (is_at (fp, path))
      return fp;
    fclose (fp);
  }
}

struct journal *
journal_open (const char *path, bool *busy, char error[JOURNAL_ERROR_MAX])
{
  struct journal *j = calloc (1, sizeof *j);

  *busy = false;
  if (j == NULL) {
    snprintf (error, JOURNAL_ERROR_MAX, "%s", strerror (errno));
    return NULL;
  }
  j->path = path;
  j->file = open_locked (path);
  if (j->file != NULL ? load (j, j->file, error) == 0 : errno == ENOENT)
    return j;
  if (j->file == NULL) {
    *busy = errno == EWOULDBLOCK;
    snprintf (error, JOURNAL_ERROR_MAX, "%s", strerror (errno));
  }
  journal_free (j);
  return NULL;
}

/* Let go of a file, also where a process that was forked since (the one that runs the
 * command of --run) has it open, and so the lock.
 */
static void
close_locked (FILE *fp)
{
  flock (fileno (fp), LOCK_UN);
  fclose (fp);
}

void
journal_free (struct journal *j)
{
  if (j != NULL && j->file != NULL)
    close_locked (j->file);
  free (j);
}

/* -- writing it ------------------------------------------------------------ */

/* An entry of the file to be. */
struct line {
  uint64_t block;
  uint32_t place;               /* in this run, or else in the file before */
  uint8_t history;              /* with this run */
  bool usual;                   /* most runs read it */
};

static int
compare (const void *va, const void *vb)
{
  const struct line *a = va, *b = vb;

  if (a->usual != b->usual)
    return a->usual ? -1 : 1;
  if (a->place != b->place)
    return a->place < b->place ? -1 : 1;
  /* One that was read in this run, and one that was not. */
  return (b->history & 1) - (a->history & 1);
}

static unsigned
runs_now (const struct journal *j)
{
  return j->runs < JOURNAL_RUNS_MAX ? j->runs + 1 : JOURNAL_RUNS_MAX;
}

/* Sorted, without those that no run has read that counts.  Returns how many. */
static size_t
make_lines (const struct journal *j, struct line *lines)
{
  const unsigned runs = runs_now (j);
  const struct entry *entry;
  size_t i, n = 0;
  uint8_t history;

  for (i = 0; i < j->nr_entries; ++i) {
    entry = &j->entries[i];
    history = entry->history << 1 | (entry->turn > 0);
    if (history == 0)
      continue;
    lines[n++] = (struct line) {
      .block = entry->block,
      .place = entry->turn > 0 ? entry->turn - 1 : i,
      .history = history,
      .usual = bits_set (history) * 2 > runs,
    };
  }
  qsort (lines, n, sizeof *lines, compare);
  return n < JOURNAL_BLOCKS_MAX ? n : JOURNAL_BLOCKS_MAX;
}

static void
print_lines (FILE *fp, const struct line *lines, size_t n, unsigned runs)
{
  char history[JOURNAL_RUNS_MAX + 1] = "";
  size_t i, length;
  unsigned run;

  fprintf (fp, HEADER "%u run%s\n", runs, runs > 1 ? "s" : "");
  for (i = 0; i < n; i += length) {
    for (length = 1; i + length < n &&
           lines[i+length].block == lines[i].block + length &&
           lines[i+length].history == lines[i].history &&
           length < UINT32_MAX / JOURNAL_BLOCK; ++length)
      ;
    for (run = 0; run < runs; ++run)
      history[run] = '0' + (lines[i].history >> run & 1);
    fprintf (fp, "%" PRIu64 " %zu # %s\n", lines[i].block * JOURNAL_BLOCK,
             length * JOURNAL_BLOCK, history);
  }
}

/* Remove the file beside ours that a server left which was killed.  Returns -1 with
 * errno set, EEXIST if another server is writing it.
 */
static int
remove_left (const struct journal *j, const char *name)
{
  bool is_busy;
  int fd;

  /* If we hold the file itself, no other has anything to write. */
  if (j->file == NULL) {
    fd = open (name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    is_busy = fd != -1 && flock (fd, LOCK_EX | LOCK_NB) == -1 &&
      errno == EWOULDBLOCK;
    if (fd != -1)
      close (fd);
    if (is_busy) {
      errno = EEXIST;
      return -1;
    }
  }
  return unlink (name) == 0 || errno == ENOENT ? 0 : -1;
}

/* Make the file beside ours, with a lock.  Returns a stream; or NULL with errno set,
 * EEXIST if another server is making it.
 */
static FILE *
open_aside (const struct journal *j, const char *name)
{
  FILE *fp;

  if (remove_left (j, name) == -1)
    return NULL;
  fp = fopen (name, "wxe");
  if (fp == NULL)
    return NULL;
  flock (fileno (fp), LOCK_EX | LOCK_NB);
  if (file_mode_keep (fp, j->path) == -1) {
    const int err = errno;

    fclose (fp);
    unlink (name);
    errno = err;
    return NULL;
  }
  return fp;
}

/* Put a file in place of the one that we hold, or where there is none if we hold
 * none.  Returns -1 with errno set, EEXIST if there is another one.
 */
static int
put_in_place (const struct journal *j, const char *name)
{
  if (access (j->path, F_OK) == 0) {
    if (j->file != NULL && is_at (j->file, j->path))
      return rename (name, j->path);
    errno = EEXIST;
    return -1;
  }
  if (renameat2 (AT_FDCWD, name, AT_FDCWD, j->path, RENAME_NOREPLACE) == 0)
    return 0;
  /* Some file systems know of no flags; and a link may lead nowhere. */
  if (errno != EINVAL && errno != ENOSYS &&
      !(errno == EEXIST && access (j->path, F_OK) == -1))
    return -1;
  return rename (name, j->path);
}

int
journal_write (struct journal *j)
{
  CLEANUP_FREE struct line *lines = NULL;
  CLEANUP_FREE char *name = NULL;
  size_t n;
  FILE *fp;
  int err;

  lines = malloc ((j->nr_entries + 1) * sizeof *lines);
  if (lines == NULL)
    return -1;
  n = make_lines (j, lines);
  if (asprintf (&name, "%s.nbdkit-tmp", j->path) == -1) {
    name = NULL;
    return -1;
  }
  fp = open_aside (j, name);
  if (fp == NULL)
    return -1;
  print_lines (fp, lines, n, runs_now (j));
  /* After a write that failed the next flush may have nothing to do. */
  if (fflush (fp) == 0 && !ferror (fp) && fsync (fileno (fp)) == 0 &&
      put_in_place (j, name) == 0) {
    if (j->file != NULL)
      close_locked (j->file);
    j->file = fp;
    return 0;
  }
  err = errno;
  if (is_at (fp, name))
    unlink (name);
  fclose (fp);
  errno = err;
  return -1;
}

int
journal_probe (const char *path, char error[JOURNAL_ERROR_MAX])
{
  CLEANUP_FREE char *name = NULL;
  struct stat st;
  int fd = -1;

  if (stat (path, &st) == 0 && !S_ISREG (st.st_mode)) {
    snprintf (error, JOURNAL_ERROR_MAX, "this is no regular file");
    return -1;
  }
  /* Not under the name that is written to, which may be another server's. */
  if (asprintf (&name, "%s.XXXXXX", path) == -1)
    name = NULL;
  else
    fd = mkostemp (name, O_CLOEXEC);
  if (fd == -1) {
    snprintf (error, JOURNAL_ERROR_MAX, "no file can be made beside it: %s",
              strerror (errno));
    return -1;
  }
  close (fd);
  unlink (name);
  return 0;
}
