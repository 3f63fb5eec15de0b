/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* library: what is found where, what is refused, and that it is kept. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/stat.h>

#include "check.h"
#include "library.h"

static char dir[] = "/tmp/test-library-XXXXXX";
static char error[LIBRARY_ERROR_MAX];

static const char *
in_dir (const char *name)
{
  static char paths[4][512];
  static unsigned i;
  char *path = paths[i++ % 4];

  snprintf (path, sizeof paths[0], "%s/%s", dir, name);
  return path;
}

static void
write_file (const char *name, const char *text)
{
  FILE *fp = fopen (in_dir (name), "w");

  if (fp == NULL || fputs (text, fp) == EOF || fclose (fp) != 0) {
    perror (in_dir (name));
    exit (1);
  }
}

static bool
holds (const struct text *text, const char *s)
{
  return text != NULL && text->length == strlen (s) &&
    memcmp (text->data, s, text->length) == 0;
}

static void
test_policies (void)
{
  const struct text *text, *again;

  text = library_policy ("default", error);
  check (text && text->builtin && strcmp (text->name, "policies/default.lua") == 0,
         "a built-in policy");
  check (library_policy ("default.lua", error) == text, "with .lua");
  check (library_policy ("nowhere", error) == NULL &&
         strstr (error, "no built-in policy of that name") &&
         strstr (error, "default, forever"), "an unknown one: the list");
  check (library_policy ("", error) == NULL, "no name at all");

  write_file ("mine.lua", "return 1");
  text = library_policy (in_dir ("mine.lua"), error);
  check (holds (text, "return 1") && !text->builtin, "a file");
  unlink (in_dir ("mine.lua"));
  again = library_policy (in_dir ("mine.lua"), error);
  check (again == text, "it is kept when the file is gone");
  check (library_policy (in_dir ("other.lua"), error) == NULL &&
         strstr (error, "other.lua: No such file"), "one that is not there");
  check (library_policy (dir, error) == NULL && strstr (error, "Is a directory"),
         "a directory");
  /* Nobody's file is run because it has the name of a built-in. */
  write_file ("default", "error ()");
  write_file ("unique", "return 4");
  if (chdir (dir) == -1)
    perror (dir);
  check (library_policy ("default", error)->builtin,
         "a built-in comes before a file of its name");
  check (holds (library_policy ("./default", error), "error ()"),
         "which a slash makes a file");
  check (holds (library_policy ("unique", error), "return 4"),
         "a file that no built-in has the name of");
  write_file ("empty.lua", "");
  text = library_policy (in_dir ("empty.lua"), error);
  check (text != NULL && text->length == 0, "an empty file");
}

static void
test_modules (void)
{
  static const char *const bad[] = {
    "", ".", "..", "a.", ".a", "a..b", "a/b", "../a", "/etc/passwd", "a b", "a\n",
    "scan/args",
  };
  const struct text *text;
  char long_name[300];
  size_t i;
  bool ok = true;

  text = library_module ("scan.args", error);
  check (text && text->builtin, "a module of ours");
  check (library_module ("mine", error) == NULL &&
         strstr (error, "not a built-in module"),
         "a built-in policy has no neighbours");

  write_file ("main.lua", "");
  write_file ("mine.lua", "return 2");
  mkdir (in_dir ("sub"), 0700);
  write_file ("sub/deep.lua", "return 3");
  library_set_policy (library_policy (in_dir ("main.lua"), error));
  check (holds (library_module ("mine", error), "return 2"), "a neighbour");
  check (holds (library_module ("sub.deep", error), "return 3"),
         "in a directory below");
  check (library_module ("scan.args", error) == text, "ours come first");
  check (library_module ("nowhere", error) == NULL &&
         strstr (error, "nowhere.lua: No such file"), "one that is not there");
  for (i = 0; i < sizeof bad / sizeof bad[0]; ++i)
    ok = ok && library_module (bad[i], error) == NULL;
  memset (long_name, 'a', sizeof long_name - 1);
  long_name[sizeof long_name - 1] = '\0';
  ok = ok && library_module (long_name, error) == NULL;
  check (ok, "names that are none");

  mkfifo (in_dir ("pipe.lua"), 0600);
  check (library_module ("pipe", error) == NULL &&
         strstr (error, "not a regular file"), "a pipe would never end");
  unlink (in_dir ("pipe.lua"));
}

static void
test_neighbours (void)
{
  check (holds (library_neighbour ("mine", false, error), "return 2"),
         "a policy beside the policy");
  check (holds (library_neighbour ("mine.lua", false, error), "return 2"),
         "with .lua");
  write_file ("clock.lua", "error ()");
  check (library_neighbour ("clock", false, error)->builtin,
         "a built-in comes first");
  check (library_neighbour (in_dir ("mine.lua"), false, error) == NULL &&
         strstr (error, "no built-in"), "never a path");
  check (holds (library_neighbour (in_dir ("sub/deep.lua"), true, error), "return 3"),
         "unless the operator gave it");
  check (library_neighbour ("sub/deep", false, error) == NULL,
         "not even one below");
  check (library_neighbour ("..", false, error) == NULL, "nor above");
}

static void
test_files (void)
{
  write_file ("trace", "1 2\n");
  check (library_file ("trace") == NULL, "a file that was not given");
  check (library_add_file ("trace", in_dir ("trace"), error) == 0 &&
         holds (library_file ("trace"), "1 2\n"), "one that was");
  check (library_add_file ("no", in_dir ("no"), error) == -1 &&
         strstr (error, "No such file"), "one that is not there");
  check (library_file ("mine.lua") == NULL && library_file ("main.lua") == NULL,
         "policies are no files");
}

int
main (void)
{
  static const char *const names[] = {
    "clock.lua", "default", "empty.lua", "main.lua", "mine.lua", "sub/deep.lua",
    "trace", "unique",
  };
  size_t i;

  if (mkdtemp (dir) == NULL) {
    perror (dir);
    return 1;
  }
  test_policies ();
  test_modules ();
  test_neighbours ();
  test_files ();
  check (library_builtin ("filter/policy/boot.lua") != NULL, "texts of our own");
  library_free ();
  check (library_file ("trace") == NULL, "nothing is kept after the end");

  for (i = 0; i < sizeof names / sizeof names[0]; ++i)
    unlink (in_dir (names[i]));
  rmdir (in_dir ("sub"));
  rmdir (dir);
  return done ();
}
