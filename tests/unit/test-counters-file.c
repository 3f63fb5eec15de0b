/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* counters_file: two servers that write one file, and what is in the way. */

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/stat.h>

#include <pthread.h>
#include <semaphore.h>

#include "check.h"
#include "counters-file.h"
#include "stubs.h"

#define BEGINS "# counters: "

static char dir[] = "/tmp/counters-XXXXXX", path[sizeof dir + 16];

/* How many files there are in the directory. */
static unsigned
count_files (void)
{
  const struct dirent *entry;
  unsigned n = 0;
  DIR *d = opendir (dir);

  if (d == NULL)
    abort ();
  while ((entry = readdir (d)) != NULL)
    n += entry->d_name[0] != '.';
  closedir (d);
  return n;
}

static const char *
get_text (void)
{
  static char text[64];
  FILE *fp = fopen (path, "re");

  if (fp == NULL)
    return "";
  text[fread (text, 1, sizeof text - 1, fp)] = '\0';
  fclose (fp);
  return text;
}

/* One of two writers is done with its text when the other has half of its own. */
static sem_t first_printed, second_printed, first_ended;

static int
print_first (FILE *fp)
{
  fprintf (fp, BEGINS "first, whole\n");
  fflush (fp);
  sem_post (&first_printed);
  sem_wait (&second_printed);
  return 0;
}

static int
print_second (FILE *fp)
{
  fprintf (fp, BEGINS "second,");
  fflush (fp);
  sem_post (&second_printed);
  sem_wait (&first_ended);
  fprintf (fp, " whole\n");
  return 0;
}

static void *
write_second (void *result)
{
  char why[COUNTERS_FILE_WHY_MAX];

  sem_wait (&first_printed);
  *(int *) result = counters_file_write (path, BEGINS, print_second, why);
  return NULL;
}

static void
test_two_writers (void)
{
  char why[COUNTERS_FILE_WHY_MAX];
  pthread_t thread;
  int second = -2;

  sem_init (&first_printed, 0, 0);
  sem_init (&second_printed, 0, 0);
  sem_init (&first_ended, 0, 0);
  if (pthread_create (&thread, NULL, write_second, &second) != 0)
    abort ();
  check (counters_file_write (path, BEGINS, print_first, why) == 0, "one writes");
  check (strcmp (get_text (), BEGINS "first, whole\n") == 0,
         "and what is seen is whole: %s", get_text ());
  sem_post (&first_ended);
  pthread_join (thread, NULL);
  check (second == 0, "the other writes");
  check (strcmp (get_text (), BEGINS "second, whole\n") == 0,
         "and what is seen is whole: %s", get_text ());
  check (count_files () == 1, "nothing else is left");
}

static int
print_text (FILE *fp)
{
  fprintf (fp, BEGINS "text");
  return 0;
}

static int
print_nothing (FILE *fp)
{
  errno = ENOMEM;
  return -1;
}

static void
test_failures (void)
{
  char why[COUNTERS_FILE_WHY_MAX];

  check (counters_file_write (path, BEGINS, print_nothing, why) == -1 &&
         strcmp (why, "Cannot allocate memory") == 0, "nothing to print: %s", why);
  check (count_files () == 1 && strstr (get_text (), "second") != NULL, "the old one is there");
  unlink (path);
  if (mkfifo (path, 0600) == -1)
    abort ();
  check (counters_file_write (path, BEGINS, print_text, why) == -1 &&
         strcmp (why, "it is there and is not a regular file") == 0,
         "a fifo is not replaced");
  check (count_files () == 1, "nothing else is left");
  unlink (path);
  umask (022);
  check (counters_file_write (path, BEGINS, print_text, why) == 0, "a new one");
  check (access (path, R_OK) == 0 && strcmp (get_text (), BEGINS "text") == 0,
         "has all");
}

/* What is there before, and whether counters replace it. */
static void
test_replaces (const char *text, bool does)
{
  char why[COUNTERS_FILE_WHY_MAX];
  FILE *fp = fopen (path, "we");

  if (fp == NULL || fputs (text, fp) == EOF || fclose (fp) == EOF)
    abort ();
  check ((counters_file_check ("scan-stats", path, BEGINS) == 0) == does,
         "it %s be replaced: '%s'", does ? "may" : "may not", text);
  check ((counters_file_write (path, BEGINS, print_text, why) == 0) == does &&
         strcmp (get_text (), does ? BEGINS "text" : text) == 0,
         "it is%s", does ? "" : " not");
  check (does || strcmp (why, "it is there and holds something else than these "
                         "counters") == 0, "and why");
  check (count_files () == 1, "nothing else is left");
}

static void
test_mode (void)
{
  char why[COUNTERS_FILE_WHY_MAX];
  struct stat st;

  check (stat (path, &st) == 0 && (st.st_mode & 0777) == 0644,
         "as many may read it as the umask says");
  if (chmod (path, 0600) == -1)
    abort ();
  check (counters_file_write (path, BEGINS, print_text, why) == 0 &&
         stat (path, &st) == 0 && (st.st_mode & 0777) == 0600,
         "and as before, if it is there");
}

static void
test_start (void)
{
  static const struct {
    const char *name, *why;
  } bad[] = {
    { "", "it is there and is not a regular file" },
    { "/none/file", "No such file or directory" },
    { "/file/none", "Not a directory" },
    { "/none/", "No such file or directory" },
  };
  char name[sizeof dir + 16], error[128];
  size_t i;

  check (counters_file_check ("scan-stats", path, BEGINS) == 0, "one that is there");
  check (count_files () == 1, "looking makes none");
  for (i = 0; i < sizeof bad / sizeof *bad; ++i) {
    snprintf (name, sizeof name, "%s%s", dir, bad[i].name);
    snprintf (error, sizeof error, "scan-stats=%s cannot be written: %s", name,
              bad[i].why);
    check (counters_file_check ("scan-stats", name, BEGINS) == -1 &&
           strcmp (stub_last_error, error) == 0, "refused: %s", stub_last_error);
  }
}

/* Where only root may read it, or write there, who we are no more. */
static void
test_another_user (void)
{
  char why[COUNTERS_FILE_WHY_MAX];
  struct stat st;
  FILE *fp;

  if (geteuid () != 0)
    return;
  if (chmod (dir, 0755) == -1 || seteuid (65534) == -1)
    abort ();
  unlink (path);
  check (counters_file_check ("scan-stats", path, BEGINS) == -1 &&
         strstr (stub_last_error, ": Permission denied") != NULL,
         "where it may not be made: %s", stub_last_error);
  if (seteuid (0) == -1)
    abort ();
  unlink (path);
  fp = fopen (path, "we");
  if (fp == NULL || fputs ("a disk", fp) == EOF || fclose (fp) == EOF ||
      chmod (path, 0600) == -1 || chmod (dir, 0777) == -1 || seteuid (65534) == -1)
    abort ();
  check (counters_file_write (path, BEGINS, print_text, why) == -1 &&
         strcmp (why, "it is there and can't be read: Permission denied") == 0,
         "what may not be read: %s", why);
  if (seteuid (0) == -1)
    abort ();
  check (strcmp (get_text (), "a disk") == 0, "which is as it was");

  /* Of a group that we can't give it: those of ours are others, who may read it. */
  unlink (path);
  fp = fopen (path, "we");
  if (fp == NULL || fclose (fp) == EOF || chmod (path, 0664) == -1 ||
      chown (path, 1234, 1234) == -1 || seteuid (65534) == -1)
    abort ();
  check (counters_file_write (path, BEGINS, print_text, why) == 0 &&
         stat (path, &st) == 0 && st.st_uid == 65534 && (st.st_mode & 0777) == 0644,
         "another's, of another group: 0%o", st.st_mode & 0777);
  if (seteuid (0) == -1)
    abort ();
}

int
main (void)
{
  if (mkdtemp (dir) == NULL)
    abort ();
  snprintf (path, sizeof path, "%s/file", dir);
  test_two_writers ();
  test_failures ();
  test_mode ();
  test_start ();
  test_another_user ();
  test_replaces ("", true);
  test_replaces (BEGINS "of another time, and longer", true);
  test_replaces (BEGINS, true);
  test_replaces ("# counters", false);  /* some of it */
  test_replaces ("a disk, which is longer", false);
  test_replaces (" " BEGINS, false);
  unlink (path);
  rmdir (dir);
  return done ();
}
