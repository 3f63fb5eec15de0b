/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See library.h. */

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <poll.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "embedded.h"
#include "library.h"

/* Where our own modules are in the source tree: those that policies may require,
 * and those that run policies.
 */
#define LIBRARY_MODULES "lua/library/"
#define RUNTIME_MODULES "lua/runtime/"

/* In errno, from read_all. */
#define NOT_REGULAR ENODEV
#define NOBODY_WRITES EPIPE

/* For so long it is waited for somebody who writes to a fifo, each time that it is asked
 * for: who starts both at once need not care which is first.
 */
#define WRITER_PATIENCE_MS 1000

/* A file that has been read.  Entries are only ever added. */
struct file {
  struct file *next;
  char *key;                    /* "policy:NAME", "file:NAME", "beside:PATH" */
  struct text text;
};

/* Leaf lock, and held while a file is read; guards the list. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct file *files;

/* Absolute directory of the policy file, NULL if it is a built-in.  Written
 * at start-up only.
 */
static char *policy_dir;

const struct text *
library_builtin (const char *path)
{
  const struct text *text;

  for (text = embedded_texts; text->name != NULL; ++text)
    if (strcmp (text->name, path) == 0)
      return text;
  return NULL;
}

/* Open a file for reading.  What is read while the server serves must be a
 * regular file: a pipe could hold up a scan for ever.  What is read before may be one,
 * and reads of that don't block.
 */
static int
open_file (const char *path, bool only_regular)
{
  const int fd = open (path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  struct stat st;

  if (fd == -1)
    return -1;
  if (fstat (fd, &st) == -1 ||
      (only_regular && !S_ISREG (st.st_mode) && !S_ISDIR (st.st_mode))) {
    close (fd);
    errno = NOT_REGULAR;
    return -1;
  }
  if (!S_ISFIFO (st.st_mode))
    fcntl (fd, F_SETFL, 0);
  return fd;
}

/* Wait until there is something to read, or the last who could write has gone.  Where
 * nobody could so far, that is for timeout_ms.
 */
static void
wait_to_read (int fd, int timeout_ms)
{
  struct pollfd pollfd = { .fd = fd, .events = POLLIN };

  poll (&pollfd, 1, timeout_ms);
}

/* As read, for a pipe, too, of which so many bytes have been read.  For one that nobody
 * writes to, that fails.
 */
static ssize_t
read_some (int fd, char *buf, size_t count, size_t length)
{
  bool has_waited = false;
  struct stat st;
  ssize_t r;

  for (;;) {
    r = read (fd, buf, count);
    if (r == -1 && errno == EINTR)
      continue;
    if (r == -1 && errno == EAGAIN) {
      wait_to_read (fd, -1);
      continue;
    }
    if (r != 0 || length > 0 || fstat (fd, &st) == -1 || !S_ISFIFO (st.st_mode))
      return r;
    if (has_waited) {
      errno = NOBODY_WRITES;
      return -1;
    }
    wait_to_read (fd, WRITER_PATIENCE_MS);
    has_waited = true;
  }
}

/* Read all of a file.  Directories give EISDIR.  The caller frees *data. */
static int
read_all (const char *path, bool only_regular, char **data, size_t *length)
{
  const int fd = open_file (path, only_regular);
  size_t size = 0;
  ssize_t r;
  char *p, *new_p;
  int err;

  if (fd == -1)
    return -1;
  *length = 0;
  p = NULL;
  do {
    if (size - *length < 65536) {
      size = size < 65536 ? 131072 : size * 2;
      new_p = size > 2 * (size_t) TEXT_MAX_BYTES ? NULL : realloc (p, size);
      if (new_p == NULL) {
        errno = size > 2 * (size_t) TEXT_MAX_BYTES ? EFBIG : ENOMEM;
        goto err;
      }
      p = new_p;
    }
    r = read_some (fd, p + *length, size - *length, *length);
    if (r == -1)
      goto err;
    *length += r;
  } while (r > 0);
  if (*length > TEXT_MAX_BYTES) {
    errno = EFBIG;
    goto err;
  }
  close (fd);
  *data = p;
  return 0;

 err:
  err = errno;
  free (p);
  close (fd);
  errno = err;
  return -1;
}

/* What errno says of a file. */
static const char *
fault (int err)
{
  return err == NOT_REGULAR ? "not a regular file"
    : err == NOBODY_WRITES ? "a fifo that nobody writes to"
    : err == EFBIG ? "larger than 256M, the most that is read"
    : strerror (err);
}

/* Look among the files that have been read.  The lock must be held. */
static const struct text *
find_file (const char *kind, const char *name)
{
  const size_t n = strlen (kind);
  struct file *file;

  for (file = files; file != NULL; file = file->next)
    if (strncmp (file->key, kind, n) == 0 && strcmp (file->key + n, name) == 0)
      return &file->text;
  return NULL;
}

/* Read a file and keep it.  A kind of "by-..." is asked for by a policy, maybe while the
 * server serves.  The lock must be held.
 */
static const struct text *
add_file (const char *kind, const char *name, const char *path,
          char error[LIBRARY_ERROR_MAX])
{
  struct file *file = calloc (1, sizeof *file);
  char *data = NULL;

  if (file == NULL ||
      asprintf (&file->key, "%s%s", kind, name) == -1) {
    snprintf (error, LIBRARY_ERROR_MAX, "%s: %s", path, strerror (ENOMEM));
    free (file);
    return NULL;
  }
  if (read_all (path, strncmp (kind, "by-", 3) == 0, &data,
                &file->text.length) == -1) {
    snprintf (error, LIBRARY_ERROR_MAX, "%s: %s", path, fault (errno));
    free (file->key);
    free (file);
    return NULL;
  }
  file->text.name = file->key + strlen (kind);
  file->text.data = data;
  file->next = files;
  files = file;
  return &file->text;
}

static const struct text *
get_file (const char *kind, const char *name, const char *path,
          char error[LIBRARY_ERROR_MAX])
{
  const struct text *text;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lock);

  text = find_file (kind, name);
  if (text == NULL && path != NULL)
    text = add_file (kind, name, path, error);
  return text;
}

static void
list_policies (char *out, size_t size)
{
  const struct text *text;
  size_t used = 0;

  for (text = embedded_texts; text->name != NULL; ++text) {
    const char *name = text->name + strlen ("policies/");

    if (strncmp (text->name, "policies/", strlen ("policies/")) != 0)
      continue;
    used += snprintf (out + used, size - used, "%s%.*s", used ? ", " : "",
                      (int) (strlen (name) - strlen (".lua")), name);
    if (used >= size)
      return;
  }
}

/* The length of a name without ".lua". */
static size_t
stem_length (const char *name)
{
  const size_t n = strlen (name);

  return n > 4 && strcmp (name + n - 4, ".lua") == 0 ? n - 4 : n;
}

/* The built-in policy of this name, or NULL. */
static const struct text *
builtin_policy (const char *name)
{
  char path[PATH_MAX];
  int n;

  if (strchr (name, '/') != NULL)
    return NULL;
  n = snprintf (path, sizeof path, "policies/%.*s.lua",
                (int) stem_length (name), name);
  return n > 0 && (size_t) n < sizeof path ? library_builtin (path) : NULL;
}

static const struct text *
unknown_policy (const char *name, char error[LIBRARY_ERROR_MAX])
{
  char policies[LIBRARY_ERROR_MAX / 2] = "";

  list_policies (policies, sizeof policies);
  snprintf (error, LIBRARY_ERROR_MAX,
            "there is no file '%.128s' and no built-in policy of that name; "
            "the built-in policies are: %s", name, policies);
  return NULL;
}

const struct text *
library_policy (const char *name, char error[LIBRARY_ERROR_MAX])
{
  const struct text *text = builtin_policy (name);

  if (text == NULL)
    text = get_file ("policy:", name, NULL, error);
  if (text != NULL)
    return text;
  if (strchr (name, '/') != NULL || access (name, F_OK) == 0)
    return get_file ("policy:", name, name, error);
  return unknown_policy (name, error);
}

bool
library_is (const struct text *policy, const char *builtin)
{
  return policy != NULL && policy->builtin && policy == builtin_policy (builtin);
}

const struct text *
library_neighbour (const char *name, bool given,
                   char error[LIBRARY_ERROR_MAX])
{
  const struct text *text = builtin_policy (name);
  char path[PATH_MAX];
  int n;

  if (text != NULL)
    return text;
  if (strchr (name, '/') == NULL && policy_dir != NULL) {
    n = snprintf (path, sizeof path, "%s/%.*s.lua", policy_dir,
                  (int) stem_length (name), name);
    if (n > 0 && (size_t) n < sizeof path && access (path, F_OK) == 0)
      return get_file ("by-beside:", path, path, error);
  }
  if (given && (strchr (name, '/') != NULL || access (name, F_OK) == 0))
    return get_file ("by-given:", name, name, error);
  return unknown_policy (name, error);
}

/* Module names are words joined by dots: nothing that leads out of the
 * directory.
 */
static bool
module_path (const char *name, char *path, size_t size)
{
  size_t i, n = strlen (name);

  if (n == 0 || n + strlen (".lua") >= size ||
      name[0] == '.' || name[n-1] == '.' || strstr (name, "..") != NULL)
    return false;
  if (strspn (name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
              "0123456789_-.") != n)
    return false;
  for (i = 0; i < n; ++i)
    path[i] = name[i] == '.' ? '/' : name[i];
  strcpy (path + n, ".lua");
  return true;
}

const struct text *
library_runtime (const char *name)
{
  char relative[128], path[PATH_MAX];

  if (!module_path (name, relative, sizeof relative))
    return NULL;
  snprintf (path, sizeof path, RUNTIME_MODULES "%s", relative);
  return library_builtin (path);
}

bool
library_is_ours (const char *place)
{
  return strncmp (place, LIBRARY_MODULES, strlen (LIBRARY_MODULES)) == 0 ||
    strncmp (place, RUNTIME_MODULES, strlen (RUNTIME_MODULES)) == 0;
}

const struct text *
library_module (const char *name, char error[LIBRARY_ERROR_MAX])
{
  const struct text *text;
  char relative[128], path[PATH_MAX];
  int n;

  if (!module_path (name, relative, sizeof relative)) {
    snprintf (error, LIBRARY_ERROR_MAX,
              "a module's name should be words joined by dots");
    return NULL;
  }
  snprintf (path, sizeof path, LIBRARY_MODULES "%s", relative);
  text = library_builtin (path);
  if (text != NULL)
    return text;
  if (library_runtime (name) != NULL) {
    snprintf (error, LIBRARY_ERROR_MAX, "it is not for policies");
    return NULL;
  }
  if (policy_dir == NULL) {
    snprintf (error, LIBRARY_ERROR_MAX, "not a built-in module");
    return NULL;
  }
  n = snprintf (path, sizeof path, "%s/%s", policy_dir, relative);
  if (n < 0 || (size_t) n >= sizeof path) {
    snprintf (error, LIBRARY_ERROR_MAX, "its path is too long");
    return NULL;
  }
  return get_file ("by-beside:", path, path, error);
}

void
library_set_policy (const struct text *policy)
{
  char *slash;

  free (policy_dir);
  policy_dir = NULL;
  if (policy->builtin)
    return;
  policy_dir = realpath (policy->name, NULL);
  if (policy_dir == NULL)       /* a pipe, say: then it has no neighbours */
    return;
  slash = strrchr (policy_dir, '/');
  if (slash != NULL)
    *slash = '\0';
}

int
library_add_file (const char *name, const char *path,
                  char error[LIBRARY_ERROR_MAX])
{
  return get_file ("file:", name, path, error) == NULL ? -1 : 0;
}

const struct text *
library_file (const char *name)
{
  char error[LIBRARY_ERROR_MAX];

  return get_file ("file:", name, NULL, error);
}

size_t
library_files_bytes (void)
{
  const struct file *file;
  size_t bytes = 0;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lock);

  for (file = files; file != NULL; file = file->next)
    if (strncmp (file->key, "file:", strlen ("file:")) == 0)
      bytes += file->text.length;
  return bytes;
}

void
library_free (void)
{
  struct file *file;

  while ((file = files) != NULL) {
    files = file->next;
    free ((char *) file->text.data);
    free (file->key);
    free (file);
  }
  free (policy_dir);
  policy_dir = NULL;
}
