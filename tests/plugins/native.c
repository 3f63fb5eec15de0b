/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* A plugin for the benchmark: a far disk with a .cache of its own.
 *
 *   nbdkit nbdkit-native-plugin.so file=IMAGE latency=MS
 *
 * A read of what has not been cached takes the latency, one of what has been
 * takes none; .cache takes the latency and then has the whole range.  Any number
 * of requests run at once, as with a plugin that has a pool of connections.  Writes
 * take no time and are lost at the end: the image is never changed.
 */

#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL
#define UNIT 65536

static const char *file;
static unsigned latency_ms = 20;
static char *contents = MAP_FAILED;
static int64_t size;
static atomic_bool *cached;     /* one per UNIT */

static int
native_config (const char *key, const char *value)
{
  if (strcmp (key, "file") == 0) {
    file = value;
    return 0;
  }
  if (strcmp (key, "latency") == 0)
    return nbdkit_parse_unsigned (key, value, &latency_ms);
  nbdkit_error ("unknown parameter '%s'", key);
  return -1;
}

static int
native_get_ready (void)
{
  struct stat st;
  int fd;

  if (file == NULL || (fd = open (file, O_RDONLY | O_CLOEXEC)) == -1) {
    nbdkit_error ("file=%s: %m", file ? file : "");
    return -1;
  }
  if (fstat (fd, &st) == 0) {
    size = st.st_size;
    contents = mmap (NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
  }
  close (fd);
  if (contents == MAP_FAILED) {
    nbdkit_error ("file=%s: %m", file);
    return -1;
  }
  cached = calloc (size / UNIT + 1, sizeof *cached);
  if (cached == NULL) {
    nbdkit_error ("calloc: %m");
    return -1;
  }
  return 0;
}

static void
native_unload (void)
{
  free (cached);
  if (contents != MAP_FAILED)
    munmap (contents, size);
}

static void *
native_open (int readonly)
{
  return NBDKIT_HANDLE_NOT_NEEDED;
}

static int64_t
native_get_size (void *handle)
{
  return size;
}

static int
native_can_cache (void *handle)
{
  return NBDKIT_CACHE_NATIVE;
}

static int
native_can_multi_conn (void *handle)
{
  return 1;
}

/* Wait as long as it takes to get a range. */
static int
get (uint64_t offset, uint32_t count)
{
  uint64_t i;

  for (i = offset / UNIT; i * UNIT < offset + count; ++i)
    if (!cached[i])
      return nbdkit_nanosleep (latency_ms / 1000,
                               latency_ms % 1000 * 1000000);
  return 0;
}

static int
native_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
              uint32_t flags)
{
  if (get (offset, count) == -1)
    return -1;
  memcpy (buf, contents + offset, count);
  return 0;
}

static int
native_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset,
               uint32_t flags)
{
  memcpy (contents + offset, buf, count);
  return 0;
}

static int
native_cache (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  const uint64_t end = offset + count;
  uint64_t i;

  if (get (offset, count) == -1)
    return -1;
  for (i = (offset + UNIT - 1) / UNIT;
       (i + 1) * UNIT <= end || (end == (uint64_t) size && i * UNIT < end); ++i)
    cached[i] = true;
  return 0;
}

static struct nbdkit_plugin plugin = {
  .name           = "native",
  .version        = "1.0",
  .config         = native_config,
  .get_ready      = native_get_ready,
  .unload         = native_unload,
  .open           = native_open,
  .get_size       = native_get_size,
  .can_cache      = native_can_cache,
  .can_multi_conn = native_can_multi_conn,
  .pread          = native_pread,
  .pwrite         = native_pwrite,
  .cache          = native_cache,
};

NBDKIT_REGISTER_PLUGIN (plugin)
