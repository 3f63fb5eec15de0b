/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* A plugin for tests that holds requests until the test lets them go.
 *
 * It writes one line to stderr for each request that begins and ends, and takes
 * commands over a socket that it inherits from the test.  A request that is
 * held does not come back before the test says so, and with which result; so a
 * test can make any order of events happen, with no sleeping.
 *
 * Lines on stderr (numbers are decimal; connections are counted from 1 in the
 * order of .open, requests from 1 in the order in which they begin):
 *
 *   gate: ready                                (if it has a control socket)
 *   gate: open CONNECTION EXPORT
 *   gate: begin REQUEST OP CONNECTION OFFSET COUNT THREAD-ID
 *   gate: end REQUEST ERRNO                    (ERRNO 0: success)
 *   gate: close CONNECTION
 *   gate: done COMMAND                         (a hold or fail; it holds now)
 *
 * Commands (when the test closes the socket, nothing is held any more):
 *
 *   release REQUEST ERRNO
 *   hold OP 0|1           hold requests that begin from now on, or do not
 *   fail OP ERRNO         fail them all from now on; 0: none
 *
 * The disk holds a pattern (see fill) until it is written to.
 */

#include <stdio.h>
#include <stdlib.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <errno.h>
#include <fcntl.h>
#include <dlfcn.h>
#include <inttypes.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#define NBDKIT_API_VERSION 2 /* .pread and its like with flags */
#include <nbdkit-plugin.h>

#define MAX_DATA_RANGES 64

enum op { OPEN, READ, WRITE, ZERO, TRIM, CACHE, EXTENTS, CAN_FUA, NR_OPS };

/* For nbdkit this is only the most that is allowed: see gate_thread_model. */
#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

static const char *const op_names[NR_OPS] = {
  [OPEN] = "open", [READ] = "read", [WRITE] = "write", [ZERO] = "zero",
  [TRIM] = "trim", [CACHE] = "cache", [EXTENTS] = "extents",
  [CAN_FUA] = "can_fua",
};

/* What to do with the requests of one kind. */
struct rule {
  bool hold, log;
  unsigned delay_ms;
  uint64_t calls;                     /* so far */
  uint64_t fail_first, fail_last;     /* fail these calls, counted from 1 */
  uint64_t fail_every;                /* or each N-th; 0: not */
  int fail_errno;
};

struct handle {
  unsigned connection;
  int fd;
  unsigned in_flight;
};

/* A request that is held; lives on the stack of its thread. */
struct held {
  uint64_t id;
  bool released;
  int err;
  struct held *next;
};

struct range { uint64_t offset, count; };

/* Parameters, not changed after the start. */
static int64_t size = 1024 * 1024;
static int model = NBDKIT_THREAD_MODEL_PARALLEL;
static int cache_mode = NBDKIT_CACHE_NATIVE;
static bool writable, fast_zero;
static unsigned minimum, maximum;      /* of the count of a request; 0: any */
static int control = -1;
static struct range data[MAX_DATA_RANGES];
static size_t nr_data;
static struct range bad;               /* count 0: none */
static const char *exports;
static const char *default_name = "";
static bool descriptors;        /* each connection has one */

/* Changes to the disk: what is written, xor the pattern.  NULL if read-only. */
static unsigned char *changes;

static pthread_t control_thread;
static bool control_running;

/* This lock protects everything below, and the fields of held and handle. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t released = PTHREAD_COND_INITIALIZER;
static struct rule rules[NR_OPS] = {
  [OPEN] = { .log = true }, [CACHE] = { .log = true },
};
static struct held *held_list;
static uint64_t last_id;
static unsigned last_connection;

/* Through stdio, as nbdkit holds the lock of stderr over each of its messages: a
 * line of ours written past it could come out in the middle of one.
 */
#define event(fs, ...) fprintf (stderr, "gate: " fs "\n", ##__VA_ARGS__)

static enum op
find_op (const char *name, size_t len)
{
  enum op op;

  for (op = 0; op < NR_OPS; ++op)
    if (strlen (op_names[op]) == len && strncmp (op_names[op], name, len) == 0)
      break;
  return op;
}

/* Every request comes through here.  Returns -1, with the errno set for nbdkit,
 * if it is to fail.
 */
static int
request (struct handle *h, enum op op, uint64_t offset, uint64_t count)
{
  struct rule *rule = &rules[op];
  struct held call = { 0 }, **p;
  unsigned delay_ms;
  uint64_t n;
  bool log;
  int err = 0;

  pthread_mutex_lock (&lock);
  /* What the thread model promises to the plugin. */
  if (h->in_flight++ > 0 && model != NBDKIT_THREAD_MODEL_PARALLEL) {
    event ("two requests at once on connection %u", h->connection);
    abort ();
  }
  if (minimum > 0 && (op == READ || op == WRITE || op == EXTENTS) &&
      (offset % minimum != 0 || (count > maximum && op != EXTENTS) ||
       (count % minimum != 0 && offset + count != (uint64_t) size))) {
    event ("a request of %" PRIu64 " bytes at %" PRIu64, count, offset);
    abort ();
  }
  call.id = ++last_id;
  n = ++rule->calls;
  log = (rule->log && op != OPEN) || rule->hold;
  if (log)
    event ("begin %" PRIu64 " %s %u %" PRIu64 " %" PRIu64 " %ld",
           call.id, op_names[op], h->connection, offset, count,
           (long) syscall (SYS_gettid));

  if ((n >= rule->fail_first && n <= rule->fail_last) ||
      (rule->fail_every > 0 && n % rule->fail_every == 0))
    err = rule->fail_errno;
  if (op == READ && offset < bad.offset + bad.count && bad.offset < offset + count)
    err = EIO;

  if (rule->hold) {
    call.next = held_list;
    held_list = &call;
    while (!call.released)
      pthread_cond_wait (&released, &lock);
    for (p = &held_list; *p != &call; p = &(*p)->next)
      ;
    *p = call.next;
    if (call.err)
      err = call.err;
  }
  delay_ms = rule->delay_ms;
  pthread_mutex_unlock (&lock);

  if (delay_ms > 0)
    nanosleep (&(struct timespec) { .tv_sec = delay_ms / 1000,
                                    .tv_nsec = delay_ms % 1000 * 1000000L },
               NULL);

  pthread_mutex_lock (&lock);
  h->in_flight--;
  if (log)
    event ("end %" PRIu64 " %d", call.id, err);
  pthread_mutex_unlock (&lock);

  if (err) {
    /* Threads that a filter has made know no nbdkit_set_error. */
    nbdkit_set_error (err);
    errno = err;
    return -1;
  }
  return 0;
}

static void
command (const char *line)
{
  struct held *call;
  char name[16];
  uint64_t id;
  enum op op;
  int n;

  pthread_mutex_lock (&lock);
  if (sscanf (line, "release %" SCNu64 " %d", &id, &n) == 2) {
    for (call = held_list; call && call->id != id; call = call->next)
      ;
    if (call) {
      call->released = true;
      call->err = n;
      pthread_cond_broadcast (&released);
    }
    else
      event ("nothing to release: %s", line);
  }
  else if (sscanf (line, "hold %15s %d", name, &n) == 2 &&
           (op = find_op (name, strlen (name))) < NR_OPS) {
    rules[op].hold = n;
    event ("done %s", line);
  }
  else if (sscanf (line, "fail %15s %d", name, &n) == 2 &&
           (op = find_op (name, strlen (name))) < NR_OPS) {
    rules[op].fail_first = 1;
    rules[op].fail_last = n ? UINT64_MAX : 0;
    rules[op].fail_errno = n;
    event ("done %s", line);
  }
  else
    event ("unknown command: %s", line);
  pthread_mutex_unlock (&lock);
}

static void *
read_commands (void *unused)
{
  struct held *call;
  FILE *fp = fdopen (control, "r");
  char line[128];
  enum op op;

  while (fp && fgets (line, sizeof line, fp)) {
    line[strcspn (line, "\n")] = '\0';
    command (line);
  }

  pthread_mutex_lock (&lock);
  for (op = 0; op < NR_OPS; ++op)
    rules[op].hold = false;
  for (call = held_list; call; call = call->next)
    call->released = true;
  pthread_cond_broadcast (&released);
  pthread_mutex_unlock (&lock);
  if (fp)
    fclose (fp);
  return NULL;
}

/* Parse "OP", or "OP:REST" if rest is not NULL. */
static enum op
parse_op (const char *key, const char *value, const char **rest)
{
  size_t len = strcspn (value, ":");
  enum op op = find_op (value, len);

  if (op == NR_OPS || (rest && value[len] != ':')) {
    nbdkit_error ("%s: expected OP%s with a known OP, got '%s'",
                  key, rest ? ":VALUE" : "", value);
    return NR_OPS;
  }
  if (rest)
    *rest = value + len + 1;
  return op;
}

static int
parse_choice (const char *key, const char *value, const char *const *names)
{
  int i;

  for (i = 0; names[i]; ++i)
    if (strcmp (names[i], value) == 0)
      return i;
  nbdkit_error ("%s: unknown value '%s'", key, value);
  return -1;
}

static int
gate_config (const char *key, const char *value)
{
  /* In the order of nbdkit's numbers. */
  static const char *const models[] = {
    "serialize_connections", "serialize_all_requests", "serialize_requests",
    "parallel", NULL
  };
  static const char *const cache_modes[] = { "none", "emulate", "native", NULL };
  const char *rest;
  struct rule *rule;
  enum op op;
  int r;

  if (strcmp (key, "size") == 0) {
    size = nbdkit_parse_size (value);
    return size == -1 ? -1 : 0;
  }
  if (strcmp (key, "model") == 0) {
    model = parse_choice (key, value, models);
    return model == -1 ? -1 : 0;
  }
  if (strcmp (key, "cache") == 0) {
    cache_mode = parse_choice (key, value, cache_modes);
    return cache_mode == -1 ? -1 : 0;
  }
  if (strcmp (key, "write") == 0) {
    r = nbdkit_parse_bool (value);
    writable = r == 1;
    return r == -1 ? -1 : 0;
  }
  if (strcmp (key, "fast-zero") == 0) {
    r = nbdkit_parse_bool (value);
    fast_zero = r == 1;
    return r == -1 ? -1 : 0;
  }
  if (strcmp (key, "blocks") == 0) {
    if (sscanf (value, "%u-%u", &minimum, &maximum) != 2) {
      nbdkit_error ("blocks: expected MINIMUM-MAXIMUM, got '%s'", value);
      return -1;
    }
    return 0;
  }
  if (strcmp (key, "control") == 0)
    return nbdkit_parse_int (key, value, &control);
  if (strcmp (key, "descriptors") == 0) {
    if ((r = nbdkit_parse_bool (value)) == -1)
      return -1;
    descriptors = r;
    return 0;
  }
  if (strcmp (key, "default") == 0) {
    default_name = value;
    return 0;
  }
  if (strcmp (key, "exports") == 0) {
    exports = value;
    return 0;
  }
  if (strcmp (key, "data") == 0) {
    if (nr_data == MAX_DATA_RANGES ||
        sscanf (value, "%" SCNu64 "+%" SCNu64,
                &data[nr_data].offset, &data[nr_data].count) != 2) {
      nbdkit_error ("data: expected OFFSET+COUNT in bytes, at most %d times",
                    MAX_DATA_RANGES);
      return -1;
    }
    nr_data++;
    return 0;
  }
  if (strcmp (key, "bad") == 0) {
    if (sscanf (value, "%" SCNu64 "+%" SCNu64, &bad.offset, &bad.count) != 2) {
      nbdkit_error ("bad: expected OFFSET+COUNT in bytes, got '%s'", value);
      return -1;
    }
    return 0;
  }
  if (strcmp (key, "hold") == 0) {
    if ((op = parse_op (key, value, NULL)) == NR_OPS)
      return -1;
    rules[op].hold = true;
    return 0;
  }
  if (strcmp (key, "log") == 0) {
    if ((op = parse_op (key, value, NULL)) == NR_OPS)
      return -1;
    rules[op].log = true;
    return 0;
  }
  if (strcmp (key, "quiet") == 0) {
    if ((op = parse_op (key, value, NULL)) == NR_OPS)
      return -1;
    rules[op].log = false;
    return 0;
  }
  if (strcmp (key, "delay") == 0) {
    if ((op = parse_op (key, value, &rest)) == NR_OPS)
      return -1;
    return nbdkit_parse_unsigned (key, rest, &rules[op].delay_ms);
  }
  if (strcmp (key, "fail") == 0) {
    if ((op = parse_op (key, value, &rest)) == NR_OPS)
      return -1;
    rule = &rules[op];
    rule->fail_errno = EIO;
    if (strcmp (rest, "all") == 0) {
      rule->fail_first = 1;
      rule->fail_last = UINT64_MAX;
    }
    else if (sscanf (rest, "/%" SCNu64, &rule->fail_every) != 1 &&
             sscanf (rest, "%" SCNu64 "-%" SCNu64,
                     &rule->fail_first, &rule->fail_last) != 2) {
      nbdkit_error ("fail: expected OP:all, OP:FIRST-LAST or OP:/EVERY, got '%s'",
                    value);
      return -1;
    }
    return 0;
  }

  nbdkit_error ("unknown parameter '%s'", key);
  return -1;
}

#define gate_config_help \
  "size=SIZE                   Size of the disk (default 1M).\n" \
  "model=MODEL                 Thread model (default parallel); under any other,\n" \
  "                            two requests at once on one connection abort.\n" \
  "cache=none|emulate|native   What .can_cache says (default native).\n" \
  "write=true                  Allow writing.\n" \
  "fast-zero=true              Say that zeroes are fast.\n" \
  "blocks=MINIMUM-MAXIMUM      Say that requests are to be of these sizes, and\n" \
  "                            abort if one isn't.\n" \
  "data=OFFSET+COUNT           The disk has holes except here; may be repeated.\n" \
  "bad=OFFSET+COUNT            What can't be read: any read of a part of it fails.\n" \
  "exports=A,B,C               Export names to list; any name can be opened.\n" \
  "default=NAME                What the default export is called.\n" \
  "descriptors=true            Have a file descriptor for each that opens the plugin.\n" \
  "control=FD                  Socket to take commands from.\n" \
  "hold=OP log=OP quiet=OP     Hold, log, don't log requests of that kind: open,\n" \
  "                            read, write, zero, trim, cache, extents, can_fua.\n" \
  "                            What is held is logged; so are open and cache.\n" \
  "delay=OP:MS                 Let them take that long.\n" \
  "fail=OP:all|FIRST-LAST|/N   Fail all, some (from 1), or each N-th with EIO."

static int
gate_thread_model (void)
{
  return model;
}

static int
gate_get_ready (void)
{
  if (writable && size > 0) {
    changes = mmap (NULL, size, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (changes == MAP_FAILED) {
      changes = NULL;
      nbdkit_error ("mmap: %m");
      return -1;
    }
  }
  return 0;
}

static int
gate_after_fork (void)
{
  int err;

  if (control == -1)
    return 0;
  err = pthread_create (&control_thread, NULL, read_commands, NULL);
  if (err) {
    errno = err;
    nbdkit_error ("pthread_create: %m");
    return -1;
  }
  control_running = true;
  event ("ready");
  return 0;
}

static void
gate_cleanup (void)
{
  if (control_running) {
    shutdown (control, SHUT_RDWR);
    pthread_join (control_thread, NULL);
  }
}

static void
gate_unload (void)
{
  if (changes)
    munmap (changes, size);
}

static int
gate_list_exports (int readonly, int is_tls, struct nbdkit_exports *list)
{
  const char *p = exports ? exports : "";
  char name[256];
  size_t len;

  for (;;) {
    len = strcspn (p, ",");
    snprintf (name, sizeof name, "%.*s", (int) len, p);
    if (nbdkit_add_export (list, name, NULL) == -1)
      return -1;
    if (p[len] == '\0')
      return 0;
    p += len + 1;
  }
}

static const char *
gate_default_export (int readonly, int is_tls)
{
  return default_name;
}

/* Looked up, for the filter opens no plugin for itself that is linked to
 * nbdkit_export_name, and this one can do without a name.
 */
static const char *
export_name (void)
{
  const char *(*ask) (void) = dlsym (RTLD_DEFAULT, "nbdkit_export_name");

  return ask ? ask () : NULL;
}

static void *
gate_open (int readonly)
{
  struct handle *h = calloc (1, sizeof *h);

  if (h == NULL) {
    nbdkit_error ("calloc: %m");
    return NULL;
  }
  pthread_mutex_lock (&lock);
  h->connection = ++last_connection;
  if (rules[OPEN].log)
    event ("open %u %s", h->connection, export_name ());
  pthread_mutex_unlock (&lock);
  if (request (h, OPEN, 0, 0) == -1) {
    nbdkit_error ("open failed, as the test wants it");
    free (h);
    return NULL;
  }
  h->fd = descriptors ? open ("/dev/null", O_RDONLY | O_CLOEXEC) : -1;
  if (descriptors && h->fd == -1) {
    nbdkit_error ("/dev/null: %m");
    free (h);
    return NULL;
  }
  return h;
}

static void
gate_close (void *handle)
{
  struct handle *h = handle;

  pthread_mutex_lock (&lock);
  if (rules[OPEN].log)
    event ("close %u", h->connection);
  pthread_mutex_unlock (&lock);
  if (h->fd != -1)
    close (h->fd);
  free (h);
}

static int64_t
gate_get_size (void *handle)
{
  return size;
}

static int
gate_block_size (void *handle, uint32_t *min, uint32_t *preferred,
                 uint32_t *max)
{
  *min = *preferred = minimum;
  *max = maximum;
  return 0;
}

static int
gate_can_write (void *handle)
{
  return writable;
}

static int
gate_can_fast_zero (void *handle)
{
  return fast_zero;
}

static int
gate_can_cache (void *handle)
{
  return cache_mode;
}

/* Asked in the handshake of a client that may write, after .prepare. */
static int
gate_can_fua (void *handle)
{
  return request (handle, CAN_FUA, 0, 0) == -1 ? -1 : NBDKIT_FUA_NATIVE;
}

static int
gate_can_extents (void *handle)
{
  return nr_data > 0;
}

static int
gate_can_multi_conn (void *handle)
{
  return 1;
}

/* Where the range of holes or data that offset is in ends; sets hole. */
static uint64_t
range_end (uint64_t offset, bool *hole)
{
  uint64_t end = size;
  size_t i;

  *hole = nr_data > 0;
  for (i = 0; i < nr_data; ++i) {
    if (offset >= data[i].offset && offset - data[i].offset < data[i].count) {
      *hole = false;
      return data[i].offset + data[i].count;
    }
    if (data[i].offset > offset && data[i].offset < end)
      end = data[i].offset;
  }
  return end;
}

/* The byte of an unwritten disk: zero in holes, else it depends on the offset. */
static unsigned char
fill (uint64_t offset)
{
  bool hole;

  range_end (offset, &hole);
  return hole ? 0 : (offset * UINT64_C (0x9e3779b97f4a7c15)) >> 56;
}

static int
gate_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
            uint32_t flags)
{
  unsigned char *p = buf;
  uint32_t i;

  if (request (handle, READ, offset, count) == -1)
    return -1;
  for (i = 0; i < count; ++i)
    p[i] = fill (offset + i) ^ (changes ? changes[offset + i] : 0);
  return 0;
}

static void
store (const unsigned char *p, uint32_t count, uint64_t offset)
{
  uint32_t i;

  for (i = 0; i < count; ++i)
    changes[offset + i] = fill (offset + i) ^ (p ? p[i] : 0);
}

static int
gate_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset,
             uint32_t flags)
{
  if (request (handle, WRITE, offset, count) == -1)
    return -1;
  store (buf, count, offset);
  return 0;
}

static int
gate_zero (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  if (request (handle, ZERO, offset, count) == -1)
    return -1;
  store (NULL, count, offset);
  return 0;
}

static int
gate_trim (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  if (request (handle, TRIM, offset, count) == -1)
    return -1;
  store (NULL, count, offset);
  return 0;
}

static int
gate_cache (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  return request (handle, CACHE, offset, count);
}

static int
gate_extents (void *handle, uint32_t count, uint64_t offset, uint32_t flags,
              struct nbdkit_extents *extents)
{
  uint64_t at = offset, end;
  bool hole;

  if (request (handle, EXTENTS, offset, count) == -1)
    return -1;
  while (at < offset + count) {
    end = range_end (at, &hole);
    if (nbdkit_add_extent (extents, at, end - at,
                           hole ? NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO
                                : 0) == -1)
      return -1;
    at = end;
  }
  return 0;
}

static struct nbdkit_plugin plugin = {
  .name              = "gate",
  .config            = gate_config,
  .config_help       = gate_config_help,
  .magic_config_key  = "size",
  .thread_model      = gate_thread_model,
  .get_ready         = gate_get_ready,
  .after_fork        = gate_after_fork,
  .cleanup           = gate_cleanup,
  .unload            = gate_unload,
  .list_exports      = gate_list_exports,
  .default_export    = gate_default_export,
  .open              = gate_open,
  .close             = gate_close,
  .get_size          = gate_get_size,
  .block_size        = gate_block_size,
  .can_write         = gate_can_write,
  .can_fast_zero     = gate_can_fast_zero,
  .can_cache         = gate_can_cache,
  .can_extents       = gate_can_extents,
  .can_fua           = gate_can_fua,
  .can_multi_conn    = gate_can_multi_conn,
  .pread             = gate_pread,
  .pwrite            = gate_pwrite,
  .zero              = gate_zero,
  .trim              = gate_trim,
  .cache             = gate_cache,
  .extents           = gate_extents,
  .errno_is_preserved = 1,
};

NBDKIT_REGISTER_PLUGIN (plugin)
