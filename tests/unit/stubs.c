/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See stubs.h. */

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <pthread.h>

#include "plugin.h"
#include "stubs.h"

#define STUB __attribute__ ((visibility ("default")))

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

/* Protected by lock; errors are read when no other thread runs. */
unsigned stub_errors;
char stub_last_error[4096];
static char debug_log[65536];

struct stub_layer stub_layer;

static atomic_uint cache_calls;
static _Atomic uint64_t cached_bytes;
static atomic_int open_contexts;

static atomic_int how_to_fail;
static atomic_uint allocations, fail_at;
static atomic_long outstanding;
static atomic_uint threads, fail_threads_at;
static atomic_uint contexts, fail_contexts_at;

void
stub_reset (void)
{
  stub_errors = 0;
  stub_last_error[0] = debug_log[0] = '\0';
  stub_layer = (struct stub_layer) { .size = 65536 };
  cache_calls = 0;
  cached_bytes = 0;
  stub_fail_allocations (STUB_ALL_OK, 0);
  stub_fail_threads (0);
  stub_fail_contexts (0);
}

/* -- messages -------------------------------------------------------------- */

STUB void
nbdkit_error (const char *fs, ...)
{
  va_list args;
  const int err = errno;

  pthread_mutex_lock (&lock);
  stub_errors++;
  va_start (args, fs);
  errno = err;                  /* for %m */
  vsnprintf (stub_last_error, sizeof stub_last_error, fs, args);
  va_end (args);
  pthread_mutex_unlock (&lock);
}

STUB void
nbdkit_debug (const char *fs, ...)
{
  va_list args;
  size_t used;

  pthread_mutex_lock (&lock);
  used = strlen (debug_log);
  va_start (args, fs);
  vsnprintf (debug_log + used, sizeof debug_log - used, fs, args);
  va_end (args);
  pthread_cond_broadcast (&changed);
  pthread_mutex_unlock (&lock);
}

void
stub_wait_for_debug (const char *text)
{
  struct timespec deadline;

  clock_gettime (CLOCK_REALTIME, &deadline);
  deadline.tv_sec += 60;
  pthread_mutex_lock (&lock);
  while (strstr (debug_log, text) == NULL)
    if (pthread_cond_timedwait (&changed, &lock, &deadline) != 0) {
      printf ("Bail out! waited in vain for: %s\n", text);
      exit (1);
    }
  pthread_mutex_unlock (&lock);
}

/* -- means that run out ---------------------------------------------------- */

/* With --wrap=X the linker makes calls of X calls of __wrap_X, and of __real_X
 * calls of X.
 */
extern void *__real_malloc (size_t size);
extern void *__real_calloc (size_t n, size_t size);
extern void *__real_realloc (void *ptr, size_t size);
extern char *__real_strdup (const char *s);
extern void __real_free (void *ptr);
extern int __real_pthread_create (pthread_t *thread, const pthread_attr_t *attr,
                                  void *(*start) (void *), void *arg);
extern void *__wrap_malloc (size_t size);
extern void *__wrap_calloc (size_t n, size_t size);
extern void *__wrap_realloc (void *ptr, size_t size);
extern char *__wrap_strdup (const char *s);
extern void __wrap_free (void *ptr);
extern int __wrap_pthread_create (pthread_t *thread, const pthread_attr_t *attr,
                                  void *(*start) (void *), void *arg);

void
stub_fail_allocations (enum stub_failure how, unsigned n)
{
  how_to_fail = how;
  allocations = 0;
  fail_at = n;
}

unsigned
stub_allocations (void)
{
  return allocations;
}

long
stub_outstanding (void)
{
  return outstanding;
}

/* Count an allocation; true if it is to fail. */
static bool
is_to_fail (void)
{
  const unsigned n = atomic_fetch_add (&allocations, 1) + 1;

  if ((how_to_fail == STUB_ONE_FAILS && n == fail_at) ||
      (how_to_fail == STUB_ALL_FAIL_FROM && n >= fail_at)) {
    errno = ENOMEM;
    return true;
  }
  return false;
}

static void *
counted (void *ptr)
{
  if (ptr != NULL)
    outstanding++;
  return ptr;
}

/* What is asked for may be more than there is: that is no fault, and returns NULL, as
 * without a sanitizer.
 */
extern const char *__asan_default_options (void);
extern const char *__tsan_default_options (void);

__attribute__ ((visibility ("default"))) const char *
__asan_default_options (void)
{
  return "allocator_may_return_null=1";
}

__attribute__ ((visibility ("default"))) const char *
__tsan_default_options (void)
{
  return "allocator_may_return_null=1";
}

void *
__wrap_malloc (size_t size)
{
  return is_to_fail () ? NULL : counted (__real_malloc (size));
}

void *
__wrap_calloc (size_t n, size_t size)
{
  return is_to_fail () ? NULL : counted (__real_calloc (n, size));
}

void *
__wrap_realloc (void *ptr, size_t size)
{
  if (is_to_fail ())
    return NULL;
  return ptr == NULL ? counted (__real_realloc (NULL, size))
    : __real_realloc (ptr, size);
}

char *
__wrap_strdup (const char *s)
{
  return is_to_fail () ? NULL : counted (__real_strdup (s));
}

void
__wrap_free (void *ptr)
{
  if (ptr != NULL)
    outstanding--;
  __real_free (ptr);
}

/* What asprintf gives is freed like the rest, so it has to be counted. */
extern int __wrap_asprintf (char **out, const char *fs, ...);

int
__wrap_asprintf (char **out, const char *fs, ...)
{
  va_list args;
  int r;

  if (is_to_fail ())
    return -1;
  va_start (args, fs);
  r = vasprintf (out, fs, args);
  va_end (args);
  if (r != -1)
    outstanding++;
  return r;
}

void
stub_fail_threads (unsigned n)
{
  threads = 0;
  fail_threads_at = n;
}

int
__wrap_pthread_create (pthread_t *thread, const pthread_attr_t *attr,
                       void *(*start) (void *), void *arg)
{
  const unsigned n = atomic_fetch_add (&threads, 1) + 1;

  if (fail_threads_at != 0 && n >= fail_threads_at)
    return EAGAIN;
  return __real_pthread_create (thread, attr, start, arg);
}

/* -- the layer below ------------------------------------------------------- */

static int
next_prepare (nbdkit_next *next)
{
  return stub_layer.prepare;
}

static int
next_finalize (nbdkit_next *next)
{
  return 0;
}

static int64_t
next_get_size (nbdkit_next *next)
{
  return stub_layer.size;
}

static int
next_block_size (nbdkit_next *next, uint32_t *minimum, uint32_t *preferred,
                 uint32_t *maximum)
{
  *minimum = *preferred = *maximum = 0;
  return 0;
}

static int
next_can_cache (nbdkit_next *next)
{
  return NBDKIT_CACHE_NATIVE;
}

static int
next_can_extents (nbdkit_next *next)
{
  return 0;
}

static int
next_pread (nbdkit_next *next, void *buf, uint32_t count, uint64_t offset,
            uint32_t flags, int *err)
{
  memset (buf, 'x', count);
  *err = stub_layer.err;
  return *err ? -1 : 0;
}

static int
next_cache (nbdkit_next *next, uint32_t count, uint64_t offset,
            uint32_t flags, int *err)
{
  if (count == 0 || offset > (uint64_t) stub_layer.size ||
      count > stub_layer.size - offset) {
    printf ("Bail out! .cache outside the disk aborts the server\n");
    exit (1);
  }
  cache_calls++;
  cached_bytes += count;
  *err = stub_layer.err;
  return *err ? -1 : 0;
}

static nbdkit_next next_ops = {
  .prepare = next_prepare,
  .finalize = next_finalize,
  .get_size = next_get_size,
  .block_size = next_block_size,
  .can_cache = next_can_cache,
  .can_extents = next_can_extents,
  .pread = next_pread,
  .cache = next_cache,
};

nbdkit_next *
stub_next (void)
{
  return &next_ops;
}

STUB nbdkit_next *
nbdkit_next_context_open (nbdkit_backend *backend, int readonly,
                          const char *exportname, int shared)
{
  const unsigned n = atomic_fetch_add (&contexts, 1) + 1;

  if (fail_contexts_at != 0 && n >= fail_contexts_at)
    return NULL;
  open_contexts++;
  return &next_ops;
}

STUB void
nbdkit_next_context_close (nbdkit_next *next)
{
  open_contexts--;
}

void
stub_fail_contexts (unsigned n)
{
  contexts = 0;
  fail_contexts_at = n;
}

unsigned
stub_cache_calls (void)
{
  return cache_calls;
}

uint64_t
stub_cached_bytes (void)
{
  return cached_bytes;
}

int
stub_open_contexts (void)
{
  return open_contexts;
}

const char *
plugin_name (void)
{
  return "stub";
}

bool
plugin_extents_are_broken (void)
{
  return false;
}

/* Extents: the layer has none. */

STUB struct nbdkit_extents *
nbdkit_extents_new (uint64_t start, uint64_t end)
{
  return NULL;
}

STUB void
nbdkit_extents_free (struct nbdkit_extents *extents)
{
}

STUB size_t
nbdkit_extents_count (const struct nbdkit_extents *extents)
{
  return 0;
}

STUB struct nbdkit_extent
nbdkit_get_extent (const struct nbdkit_extents *extents, size_t i)
{
  return (struct nbdkit_extent) { 0 };
}
