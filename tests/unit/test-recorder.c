/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* recorder and journal: what is in the file after which reads, when it is
 * written, how runs are merged, and what is refused.  No thread, and a clock
 * that is a number.
 */

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "journal.h"
#include "library.h"
#include "recorder.h"
#include "stubs.h"

#define HEADER "# nbdkit scan trace: "

static char dir[] = "/tmp/test-recorder-XXXXXX";
static char path[64];

static void
put_bytes (const char *bytes, size_t n)
{
  FILE *fp = fopen (path, "w");

  fwrite (bytes, 1, n, fp);
  fclose (fp);
}

static void
put_file (const char *text)
{
  put_bytes (text, strlen (text));
}

static bool
file_is (const char *text)
{
  static char buf[65536];
  FILE *fp = fopen (path, "r");
  size_t n;

  if (fp == NULL)
    return text == NULL;
  n = fread (buf, 1, sizeof buf - 1, fp);
  buf[n] = '\0';
  fclose (fp);
  if (text == NULL || strcmp (buf, text) != 0) {
    printf ("# the file is:\n%s", buf);
    return false;
  }
  return true;
}

static void
add (struct journal *j, uint64_t offset, uint64_t count)
{
  journal_add (j, (struct range) { offset, count });
}

static struct journal *
open_journal (char error[JOURNAL_ERROR_MAX])
{
  bool busy;
  struct journal *j = journal_open (path, &busy, error);

  check (!busy, "nobody else records in it");
  return j;
}

/* A run that reads these blocks; the last is followed by -1. */
static void
run_of (int first, ...)
{
  char error[JOURNAL_ERROR_MAX];
  struct journal *j = open_journal (error);
  va_list args;
  int block;

  va_start (args, first);
  for (block = first; block >= 0; block = va_arg (args, int))
    add (j, (uint64_t) block * JOURNAL_BLOCK, 1);
  va_end (args);
  if (journal_write (j) == -1)
    perror (path);
  journal_free (j);
}

static void
test_one_run (void)
{
  char error[JOURNAL_ERROR_MAX];
  struct journal *j = open_journal (error);

  check (j != NULL && !journal_counts (j), "a file that is not there is a new one");
  add (j, 1000000, 10000);
  add (j, 0, 512);
  add (j, 4000, 200);
  add (j, 999999, 1);
  check (journal_length (j) == 5, "a block that is read again is the same");
  check (journal_counts (j) && file_is (NULL), "nothing is written by itself");
  check (journal_write (j) == 0, "it can be written");
  check (file_is (HEADER "1 run\n999424 12288 # 1\n0 8192 # 1\n"),
         "blocks in the order of the first read, neighbours as one");
  add (j, 1 << 20, 1);
  journal_write (j);
  check (file_is (HEADER "1 run\n999424 12288 # 1\n0 8192 # 1\n1048576 4096 # 1\n"),
         "and again, in the same run");
  add (j, INT64_MAX - 10 * JOURNAL_BLOCK, 10 * JOURNAL_BLOCK);
  check (journal_write (j) == 0, "the end of the largest disk");
  journal_free (j);
  j = open_journal (error);
  check (j != NULL, "can be read again, without what ends after it: %s", error);
  journal_free (j);
  unlink (path);
}

static void
test_merge (void)
{
  run_of (10, 20, 30, -1);
  run_of (20, 40, 10, -1);
  check (file_is (HEADER "2 runs\n81920 4096 # 11\n40960 4096 # 11\n"
                  "163840 4096 # 10\n122880 4096 # 01\n"),
         "what both runs read comes first, in the order of the newer");
  run_of (40, 20, -1);
  check (file_is (HEADER "3 runs\n163840 4096 # 110\n81920 4096 # 111\n"
                  "40960 4096 # 011\n122880 4096 # 001\n"),
         "what most of three read comes first");
  put_file ("\n0 8192\n  # a comment\n0x10000 4096 # and one\n");
  run_of (0, -1);
  check (file_is (HEADER "2 runs\n0 4096 # 11\n4096 4096 # 01\n65536 4096 # 01\n"),
         "a plain list counts as a run");
  put_file ("010000 04096\n0X10 1\n");
  run_of (9, -1);
  check (file_is (HEADER "2 runs\n36864 4096 # 10\n8192 8192 # 01\n"
                  "0 4096 # 01\n"),
         "zeroes before a number do not make it octal");
  put_file ("# nbdkit scan trace: 2 runs\n4096 4096 # 01\n8192 4096 #");
  run_of (1, -1);
  check (file_is (HEADER "3 runs\n4096 4096 # 101\n8192 4096 # 010\n"),
         "a comment of nothing, at the end of the file, is no history");
  unlink (path);
}

static void
test_forgets (void)
{
  unsigned i;

  run_of (1, 2, -1);
  for (i = 0; i < JOURNAL_RUNS_MAX - 1; ++i)
    run_of (1, -1);
  check (file_is (HEADER "8 runs\n4096 4096 # 11111111\n8192 4096 # 00000001\n"),
         "what was read eight runs ago is still there");
  run_of (1, -1);
  check (file_is (HEADER "8 runs\n4096 4096 # 11111111\n"), "but not longer");
  unlink (path);
}

static void
test_refuses (void)
{
  static const char *bad[] = {
    "2024-01-01 10:00:00.000000 connection=1 Read id=1 offset=0x0 count=0x1 ...\n",
    "4096\n", "4096 0\n", "0 4K\n", "-1 1\n", "0 1 2\n", "0 5000000000\n",
    "9223372036854775807 1\n", "99999999999999999999 1\n", "\177ELF\n",
  };
  static const struct {
    const char *bytes;
    size_t n;
    const char *why;
  } others[] = {
    { "\0\0\0\0", 4, "line 1 is none of a trace" },
    { "\0\n0 4096\n", 9, "line 1 is none of a trace" },
    { "0 4096\n\0", 8, "line 2 is none of a trace" },
    { "0 4096\0\n", 8, "line 1 is none of a trace" },
    { "# comment\0\n0 4096\n", 18, "line 1 is none of a trace" },
    { "# my config\n#\n", 14, "it has not one line of a trace" },
    { "\n#\n", 3, "it has not one line of a trace" },
    { "#!/bin/sh", 9, "it has not one line of a trace" },
  };
  static const char *empty[] = { "", "\n \n", HEADER "1 run\n", HEADER "3 runs\n# none\n" };
  char error[JOURNAL_ERROR_MAX] = "";
  struct journal *j;
  size_t i;

  for (i = 0; i < sizeof bad / sizeof *bad; ++i) {
    put_file ("0 4096\n");
    FILE *fp = fopen (path, "a");
    fputs (bad[i], fp);
    fclose (fp);
    j = open_journal (error);
    check (j == NULL && strstr (error, "line 2 is none of a trace") != NULL,
           "refused: %.*s", (int) strcspn (bad[i], "\n"), bad[i]);
    journal_free (j);
  }
  for (i = 0; i < sizeof others / sizeof *others; ++i) {
    put_bytes (others[i].bytes, others[i].n);
    j = open_journal (error);
    check (j == NULL && strstr (error, others[i].why) != NULL,
           "refused: other file %zu: %s", i, error);
    journal_free (j);
  }
  for (i = 0; i < sizeof empty / sizeof *empty; ++i) {
    put_file (empty[i]);
    j = open_journal (error);
    check (j != NULL, "taken: a file without an entry, %zu: %s", i, error);
    journal_free (j);
  }
  unlink (path);
  check (journal_probe ("/nowhere/trace", error) == -1 &&
         strstr (error, "No such file or directory") != NULL,
         "a directory that is not there: %s", error);
  check (journal_probe (dir, error) == -1, "a directory: %s", error);
  check (journal_probe (path, error) == 0 && file_is (NULL),
         "trying a good place leaves nothing behind");
}

/* Lines of 512M, so many, and one of another block. */
static void
put_same_again (unsigned lines)
{
  FILE *fp = fopen (path, "w");

  while (lines-- > 0)
    fprintf (fp, "0 536870912\n");
  fprintf (fp, "8589934592 4096\n");
  fclose (fp);
}

/* Each line takes time for all of its blocks, which may be known. */
static void
test_same_again (void)
{
  put_same_again (127);
  run_of (1, -1);
  check (file_is (HEADER "2 runs\n4096 4096 # 11\n0 4096 # 01\n8192 536862720 # 01\n"
                  "8589934592 4096 # 01\n"), "64G are read");
  put_same_again (128);
  run_of (1, -1);
  check (file_is (HEADER "2 runs\n4096 4096 # 11\n0 4096 # 01\n8192 536862720 # 01\n"),
         "and no more");
  unlink (path);
}

/* A file of zeros of this size. */
static void
put_zeros (off_t size)
{
  put_file ("");
  if (truncate (path, size) == -1)
    abort ();
}

static void
test_too_large (void)
{
  char error[JOURNAL_ERROR_MAX] = "";
  struct journal *j;

  put_zeros ((off_t) TEXT_MAX_BYTES + 1);
  j = open_journal (error);
  check (j == NULL && strstr (error, "it has 268435457 bytes, and a trace may have up to "
                              "256M") != NULL, "a file that is too large: %s", error);
  journal_free (j);
  unlink (path);
}

/* There is enough for a journal, and not for a line as long as the file. */
static void
test_long_line (void)
{
  char error[JOURNAL_ERROR_MAX] = "";
  struct rlimit limit, before;
  unsigned long pages = 0;
  struct journal *j;
  FILE *fp;

#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
  return;                       /* they have terabytes */
#endif
  fp = fopen ("/proc/self/statm", "re");
  if (fp == NULL || fscanf (fp, "%lu", &pages) != 1)
    abort ();
  fclose (fp);
  put_zeros (128 << 20);
  getrlimit (RLIMIT_AS, &before);
  limit = before;
  limit.rlim_cur = pages * sysconf (_SC_PAGESIZE) + (64 << 20);
  setrlimit (RLIMIT_AS, &limit);
  j = open_journal (error);
  setrlimit (RLIMIT_AS, &before);
  check (j == NULL && strcmp (error, "Cannot allocate memory") == 0,
         "no memory for a line is no end of the file: %s", error);
  journal_free (j);
  unlink (path);
}

static void
test_bounds (void)
{
  char error[JOURNAL_ERROR_MAX];
  struct journal *j = open_journal (error);

  add (j, 0, (uint64_t) (JOURNAL_BLOCKS_MAX - 1) * JOURNAL_BLOCK);
  check (!journal_is_full (j), "not full");
  add (j, INT64_C (1) << 40, 10 * JOURNAL_BLOCK);
  check (journal_is_full (j) && journal_length (j) == JOURNAL_BLOCKS_MAX, "full");
  journal_write (j);
  journal_free (j);

  /* The next run has room for others, and the file for those most read. */
  j = open_journal (error);
  add (j, INT64_C (1) << 40, (uint64_t) JOURNAL_BLOCKS_MAX * JOURNAL_BLOCK);
  check (journal_is_full (j), "full of others");
  check (journal_write (j) == 0, "written");
  journal_free (j);
  j = open_journal (error);
  check (j != NULL, "what was written can be read");
  journal_free (j);
  unlink (path);
}

/* -- when it is written ---------------------------------------------------- */

static const uint64_t second = NS_PER_SECOND;

static struct recorder *
new_recorder (void)
{
  stub_reset ();
  return recorder_new ("scan-record", path);
}

/* So many blocks from here on. */
static void
reads (struct recorder *r, uint64_t block, uint64_t n)
{
  const struct met_read read = {
    .range = { block * JOURNAL_BLOCK, n * JOURNAL_BLOCK }, .met = MET_MISS
  };

  recorder_add (r, &read, 1, 0);
}

static void
test_writes (void)
{
  struct recorder *r = new_recorder ();

  recorder_step (r, 100 * second);
  reads (r, 0, 1);
  recorder_step (r, 200 * second);
  check (file_is (NULL), "not at the first read");
  recorder_step (r, 202 * second);
  check (file_is (HEADER "1 run\n0 4096 # 1\n"), "but soon after it");
  recorder_step (r, 300 * second);
  check (recorder_is_on (r), "one read is no start");
  reads (r, 0, 300);
  recorder_step (r, 301 * second);
  recorder_step (r, 310 * second);
  check (recorder_is_on (r), "a pause of nine seconds");
  reads (r, 5, 5);
  recorder_step (r, 310 * second);
  recorder_step (r, 311 * second);
  check (!recorder_is_on (r), "over, when nothing new was read for ten seconds");
  check (file_is (HEADER "1 run\n0 1228800 # 1\n"), "all is in the file");
  reads (r, 1000, 1);
  recorder_step (r, 400 * second);
  recorder_free (r);
  check (file_is (HEADER "1 run\n0 1228800 # 1\n"), "what came later is not");
  unlink (path);
}

static void
test_ends (void)
{
  struct recorder *r = new_recorder ();
  unsigned i;

  for (i = 0; i <= 600; ++i) {
    if (i == 600)
      check (recorder_is_on (r), "it goes on while something new is read");
    reads (r, 2 * i, 1);
    recorder_step (r, (1000 + i) * second);
  }
  check (!recorder_is_on (r), "but not for more than ten minutes");
  recorder_free (r);
  unlink (path);

  r = new_recorder ();
  reads (r, 7, 1);
  recorder_step (r, second);
  recorder_free (r);
  check (file_is (HEADER "1 run\n28672 4096 # 1\n"), "over when the server ends");

  r = new_recorder ();
  recorder_free (r);
  check (file_is (HEADER "1 run\n28672 4096 # 1\n"),
         "a run without a read is none");

  put_file ("0 1048576\n");
  r = new_recorder ();
  reads (r, 0, 31);
  recorder_step (r, second);
  recorder_step (r, 10 * second);
  recorder_free (r);
  check (file_is ("0 1048576\n"), "nor is one of next to nothing");
  r = new_recorder ();
  reads (r, 0, 32);
  recorder_step (r, second);
  recorder_free (r);
  check (file_is (HEADER "2 runs\n0 131072 # 11\n131072 917504 # 01\n"),
         "a short one is");
  unlink (path);
}

static void
test_overflow (void)
{
  static struct met_read many[RECORDER_READS_MAX + 10];
  struct recorder *r = new_recorder ();
  size_t i;

  for (i = 0; i < sizeof many / sizeof *many; ++i)
    many[i] = (struct met_read) {
      .range = { i * JOURNAL_BLOCK, 1 }, .met = MET_MISS
    };
  recorder_add (r, many, 10, 3);
  recorder_add (r, many + 10, RECORDER_READS_MAX, 0);
  recorder_step (r, second);
  recorder_free (r);
  check (file_is (HEADER "1 run\n0 16777216 # 1\n"),
         "what there is no room for is left out");
  unlink (path);
}

static void
test_faults (void)
{
  struct recorder *r;

  stub_reset ();
  check (recorder_new ("scan-record", "/nowhere/trace") == NULL && stub_errors == 1 &&
         strstr (stub_last_error, "scan-record=/nowhere/trace: no file can be made "
                 "beside it: No such file") != NULL, "no directory");

  r = new_recorder ();
  chmod (dir, 0500);
  if (access (dir, W_OK) == -1) {
    check (recorder_start (r) == -1 && strstr (stub_last_error, "Permission denied")
           != NULL, "a directory that the user may not write to");
    recorder_free (r);
    chmod (dir, 0700);
    r = new_recorder ();
  }
  rmdir (dir);
  check (recorder_start (r) == -1 && stub_errors >= 1 && !recorder_is_on (r),
         "a directory that has gone");
  recorder_free (r);
  mkdir (dir, 0700);
  r = new_recorder ();
  rmdir (dir);
  stub_errors = 0;
  reads (r, 0, 1);
  recorder_step (r, second);
  recorder_step (r, 4 * second);
  reads (r, 1, 1);
  recorder_step (r, 8 * second);
  check (stub_errors == 1 && strstr (stub_last_error, "scan: warning: scan-record=")
         != NULL, "one warning, however often it can't be written");
  mkdir (dir, 0700);
  recorder_free (r);
  check (file_is (HEADER "1 run\n0 8192 # 1\n"), "and it is tried again");
  unlink (path);
}

/* As two servers have them that are given one file. */
static void
test_two (void)
{
  struct recorder *a, *b;
  char aside[80];
  int fd, ends[2];
  pid_t pid = -1;

  /* A file that is there belongs to the first that is started. */
  put_file ("0 4096\n");
  a = new_recorder ();
  b = recorder_new ("scan-record", path);
  check (b != NULL && !recorder_is_on (b) && stub_errors == 1 &&
         strstr (stub_last_error, "scan: warning: scan-record=") != NULL &&
         strstr (stub_last_error, "another server records in it") != NULL,
         "the second says that it is not the first");
  check (recorder_start (b) == 0 && !recorder_is_on (b), "and starts");
  reads (a, 9, 1);
  recorder_step (a, second);
  recorder_step (a, 4 * second);
  recorder_free (b);
  b = recorder_new ("scan-record", path);
  check (!recorder_is_on (b) && stub_errors == 2, "also once the file was written");
  recorder_free (b);
  recorder_free (a);
  check (file_is (HEADER "2 runs\n36864 4096 # 10\n0 4096 # 01\n"), "the first's");

  /* To the next once that is over; not when it ends. */
  a = new_recorder ();
  reads (a, 0, RECORDER_LEAST_BLOCKS);
  recorder_step (a, second);
  recorder_step (a, 20 * second);
  check (!recorder_is_on (a), "a recording that is over");
  b = new_recorder ();
  check (recorder_is_on (b) && stub_errors == 0, "the next one");
  recorder_free (a);
  recorder_free (b);
  unlink (path);

  /* Also where a process that was forked holds the file open, as the one that runs the
   * command of --run does; and if there was nothing to write.
   */
  put_file ("0 4096\n");
  a = new_recorder ();
  check (pipe (ends) == 0 && (pid = fork ()) != -1, "another process");
  if (pid == 0) {
    close (ends[1]);
    _exit (read (ends[0], aside, 1));   /* until we have closed the other end */
  }
  recorder_free (a);
  b = new_recorder ();
  check (recorder_is_on (b) && stub_errors == 0, "does not keep the file");
  recorder_free (b);
  close (ends[0]);
  close (ends[1]);
  waitpid (pid, NULL, 0);
  unlink (path);

  /* One that is not there, to the first that writes it. */
  a = new_recorder ();
  b = recorder_new ("scan-record", path);
  check (recorder_is_on (a) && recorder_is_on (b) && stub_errors == 0, "both");
  reads (b, 1, 1);
  reads (a, 2, 1);
  recorder_step (a, second);
  recorder_step (a, 4 * second);
  recorder_step (b, 5 * second);
  check (stub_errors == 0, "nothing is wrong yet");
  recorder_step (b, 8 * second);
  recorder_step (b, 12 * second);
  check (!recorder_is_on (b) && stub_errors == 1 &&
         strstr (stub_last_error, "somebody else has put a file there") != NULL,
         "the second gives up, and says so once");
  recorder_free (b);
  reads (a, 5, 1);
  recorder_step (a, 12 * second);
  recorder_free (a);
  check (file_is (HEADER "1 run\n8192 4096 # 1\n20480 4096 # 1\n"), "the first's");

  /* Who takes it away, or puts another one there, means it. */
  a = new_recorder ();
  reads (a, 1, 1);
  recorder_step (a, second);
  unlink (path);
  recorder_step (a, 4 * second);
  check (recorder_is_on (a) && stub_errors == 0 && access (path, F_OK) == 0,
         "made again");
  unlink (path);
  put_file ("0 4096\n");
  reads (a, 2, 1);
  recorder_step (a, 8 * second);
  check (!recorder_is_on (a) && stub_errors == 1, "another file");
  recorder_free (a);
  check (file_is ("0 4096\n"), "is left alone");
  unlink (path);

  /* What a server has left that was killed goes; what another is writing does not. */
  snprintf (aside, sizeof aside, "%s.nbdkit-tmp", path);
  a = new_recorder ();
  b = recorder_new ("scan-record", path);
  fd = open (aside, O_WRONLY | O_CREAT, 0600);
  check (fd != -1 && flock (fd, LOCK_EX) == 0, "one that is being written");
  reads (a, 1, 1);
  recorder_step (a, second);
  recorder_step (a, 4 * second);
  check (!recorder_is_on (a) && access (aside, F_OK) == 0, "is another server's");
  close (fd);
  reads (b, 2, 1);
  recorder_step (b, second);
  recorder_step (b, 4 * second);
  check (recorder_is_on (b) && access (aside, F_OK) == -1 &&
         file_is (HEADER "1 run\n8192 4096 # 1\n"), "one that was left is gone");
  check (mkdir (aside, 0700) == 0, "a folder of that name");
  reads (b, 5, 1);
  recorder_step (b, 8 * second);
  check (strstr (stub_last_error, "can't be written: Is a directory") != NULL,
         "is in the way");
  rmdir (aside);
  recorder_step (b, 12 * second);
  check (file_is (HEADER "1 run\n8192 4096 # 1\n20480 4096 # 1\n"), "and then not");
  recorder_free (a);
  recorder_free (b);
  unlink (path);

  /* A link that leads nowhere is nobody's. */
  check (symlink ("nowhere/trace", path) == 0, "a link");
  a = new_recorder ();
  reads (a, 1, 1);
  recorder_step (a, second);
  recorder_free (a);
  check (stub_errors == 0 && file_is (HEADER "1 run\n4096 4096 # 1\n") &&
         access (path, X_OK) == -1, "replaced, and its mode is not kept");
  unlink (path);
}

/* Whoever could read it, or make it anew, can as before. */
static void
test_owner (void)
{
  const uid_t owner = geteuid () == 0 ? 65534 : geteuid ();
  const gid_t group = geteuid () == 0 ? 65534 : getegid ();
  struct stat st = { 0 };

  put_file ("0 4096\n");
  check (chown (path, owner, group) == 0 && chmod (path, 0640) == 0, "somebody's file");
  run_of (0, -1);
  check (stat (path, &st) == 0 && st.st_uid == owner && st.st_gid == group &&
         (st.st_mode & 0777) == 0640, "stays theirs");
  unlink (path);
}

static void
test_exports (void)
{
  struct recorder *r = new_recorder ();

  check (recorder_claim (r, "a") && recorder_claim (r, "a"), "the first export");
  check (!recorder_claim (r, "b\n") && !recorder_claim (r, "c") &&
         stub_errors == 1 &&
         strstr (stub_last_error, "records the export 'a', not 'b\\n'") != NULL,
         "no other, and a warning on one line");
  check (!recorder_is_on (NULL), "no recorder is never on");
  recorder_free (r);
  recorder_free (NULL);
}

static void
test_thread (void)
{
  struct recorder *r = new_recorder ();

  check (recorder_start (r) == 0, "with a thread");
  reads (r, 3, 1);
  recorder_stop (r);
  check (file_is (HEADER "1 run\n12288 4096 # 1\n"), "it writes when it stops");
  check (!recorder_is_on (r) && recorder_claim (r, "a"), "who comes late may ask");
  reads (r, 4, 1);
  recorder_free (r);
  check (file_is (HEADER "1 run\n12288 4096 # 1\n"), "the last reads are not lost");
  unlink (path);

  stub_reset ();
  stub_fail_threads (1);
  r = recorder_new ("scan-record", path);
  check (recorder_start (r) == -1 &&
         strstr (stub_last_error, "could not start a thread") != NULL, "no thread");
  recorder_free (r);
  stub_reset ();
}

static void
test_memory (void)
{
  unsigned n;
  bool ok = true;
  struct recorder *r;

  put_file ("0 4096\n");
  for (n = 1; n <= 3; ++n) {
    stub_reset ();
    stub_fail_allocations (STUB_ONE_FAILS, n);
    r = recorder_new ("scan-record", path);
    ok = ok && (r != NULL || stub_errors == 1);
    recorder_free (r);
  }
  stub_reset ();
  check (ok, "out of memory is said");
  unlink (path);
}

/* At each length, up to beyond a limit for files: as whole as it was told to be.  A
 * buffer that could not be written may be gone when the next succeeds.
 */
static void
test_limit (void)
{
  const struct rlimit limit = { 8192, RLIM_INFINITY };
  char error[JOURNAL_ERROR_MAX];
  struct journal *j = open_journal (error);
  unsigned lines = 0, lines_there, failed = 0;
  struct rlimit before;
  uint64_t block;
  FILE *fp;
  int c;

  signal (SIGXFSZ, SIG_IGN);
  getrlimit (RLIMIT_FSIZE, &before);
  setrlimit (RLIMIT_FSIZE, &limit);
  for (block = 0; block < 2400; block += 2) {
    add (j, block * JOURNAL_BLOCK, 1);
    if (journal_write (j) == -1)
      failed++;
    else
      lines = block / 2 + 2;
    fp = fopen (path, "r");
    lines_there = 0;
    while ((c = getc (fp)) != EOF)
      lines_there += c == '\n';
    fclose (fp);
    if (lines_there != lines)
      break;
  }
  setrlimit (RLIMIT_FSIZE, &before);
  signal (SIGXFSZ, SIG_DFL);
  check (block == 2400, "what is said to be written is, up to the limit for files");
  check (failed > 0 && lines > 100, "and there is one");
  journal_free (j);
  unlink (path);
}

int
main (void)
{
  if (mkdtemp (dir) == NULL)
    return 1;
  snprintf (path, sizeof path, "%s/trace", dir);
  test_one_run ();
  test_merge ();
  test_forgets ();
  test_refuses ();
  test_same_again ();
  test_too_large ();
  test_long_line ();
  test_bounds ();
  test_writes ();
  test_ends ();
  test_overflow ();
  test_two ();
  test_owner ();
  test_exports ();
  test_thread ();
  test_memory ();
  test_faults ();
  test_limit ();
  rmdir (dir);
  return done ();
}
