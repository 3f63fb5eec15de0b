/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See fuzz.h.
 *
 * Lua itself is not built with instrumentation, so libFuzzer can't see what a
 * policy reaches in there.  What it is told instead is which messages and which
 * requests an input leads to: each sets a counter, and an input that sets a new one
 * is kept.
 */

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sys/mman.h>
#include <unistd.h>

#include <nbdkit-filter.h>

#include "clock.h"
#include "fuzz.h"
#include "library.h"
#include "vm.h"

#define MEMORY_BYTES (4 * 1024 * 1024)
#define TIMEOUT_NS (NS_PER_SECOND / 50)
#define RESUMES_MAX 50          /* of each scan */
#define ANSWER_MAX_BYTES 4096
#define READS_MAX 8
#define BLOCK 4096

#define NR_COUNTERS 8192
__attribute__ ((section ("__libfuzzer_extra_counters")))
static uint8_t counters[NR_COUNTERS];

/* What is left of the input; used up from the end. */
static const uint8_t *bytes;
static size_t nr_bytes;

static bool verbose;

#define CHECK(condition) \
  do { if (!(condition)) broken (#condition, __LINE__); } while (0)

static void
broken (const char *condition, int line)
{
  fprintf (stderr, "fuzz.c:%d: this should hold: %s\n", line, condition);
  abort ();
}

/* -- what the server gives to filters -------------------------------------- */

/* The Lua state has no reason to report anything by itself but a panic. */
void
nbdkit_error (const char *fs, ...)
{
  va_list args;

  va_start (args, fs);
  vfprintf (stderr, fs, args);
  va_end (args);
  abort ();
}

void
nbdkit_debug (const char *fs, ...)
{
  char text[256];
  va_list args;

  va_start (args, fs);
  vsnprintf (text, sizeof text, fs, args);
  va_end (args);
  if (verbose)
    fprintf (stderr, "%s\n", text);
}

/* -- what comes from the input --------------------------------------------- */

static uint8_t
take_byte (void)
{
  return nr_bytes > 0 ? bytes[--nr_bytes] : 0;
}

/* Any number, but often a small one or one near a power of 2. */
static uint64_t
take_number (void)
{
  const uint8_t kind = take_byte ();
  uint64_t n = 0;
  int i;

  if (kind < 128)
    return kind;
  if (kind < 192)
    return (UINT64_C (1) << (kind & 63)) + (int8_t) take_byte ();
  for (i = 0; i < 8; ++i)
    n = n << 8 | take_byte ();
  return n;
}

/* -- a driver ---------------------------------------------------------------- */

/* Arrays are new each time, so that the use of an old one is seen. */
struct client {
  struct vm_driver driver;
  struct met_read *reads;
  struct vm_failure *failures;
  struct vm_result *results;
};

static struct range
take_range (void)
{
  const struct range range = { take_number (), take_number () };

  return range;
}

static size_t
client_reads (void *opaque, const struct met_read **out)
{
  struct client *client = opaque;
  const size_t n = take_byte () % READS_MAX;
  size_t i;

  free (client->reads);
  client->reads = n > 0 ? calloc (n, sizeof client->reads[0]) : NULL;
  for (i = 0; i < n; ++i)
    client->reads[i] = (struct met_read) {
      .range = take_range (), .met = take_byte () % (MET_HIT + 1)
    };
  *out = client->reads;
  return n;
}

static size_t
client_failures (void *opaque, const struct vm_failure **out)
{
  struct client *client = opaque;
  const size_t n = take_byte () % READS_MAX;
  size_t i;

  free (client->failures);
  client->failures = n > 0 ? calloc (n, sizeof client->failures[0]) : NULL;
  for (i = 0; i < n; ++i) {
    client->failures[i].range = take_range ();
    client->failures[i].err = take_byte ();
  }
  *out = client->failures;
  return n;
}

static size_t
client_results (void *opaque, const struct vm_result **out)
{
  struct client *client = opaque;
  const size_t n = take_byte () % READS_MAX;
  size_t i;

  free (client->results);
  client->results = n > 0 ? calloc (n, sizeof client->results[0]) : NULL;
  for (i = 0; i < n; ++i)
    client->results[i] = (struct vm_result) {
      take_range (), take_number (), take_byte ()
    };
  *out = client->results;
  return n;
}

static bool
client_missing (void *opaque, uint64_t from, uint64_t to, struct range *missing)
{
  (void) opaque;
  if (from >= to)
    abort ();
  missing->offset = from + take_byte () % (to - from);
  missing->count = 1 + take_byte () % (to - missing->offset);
  return take_byte () >= 16;
}

static uint32_t
client_room (void *opaque)
{
  (void) opaque;
  return 1 + take_byte () * (BLOCK - 1) / 255;
}

static unsigned
client_reads_in_flight (void *opaque)
{
  (void) opaque;
  return take_byte ();
}

static uint64_t
client_idle_ns (void *opaque)
{
  (void) opaque;
  return take_number ();
}

static bool
client_closed (void *opaque)
{
  (void) opaque;
  return take_byte () >= 240;
}

/* How long a client is waited for is not for a fuzzer. */
static bool
client_gone (void *opaque)
{
  (void) opaque;
  return false;
}

static void
client_init (struct client *client)
{
  /* From one byte to the largest disk, not always whole blocks. */
  static const uint64_t sizes[] = {
    65536, 1, 4095, BLOCK, 1000000007, UINT64_C (1) << 62, INT64_MAX, 0,
  };

  *client = (struct client) {
    .driver = {
      .opaque = client, .size = sizes[take_byte () % 8], .block = BLOCK,
      .export = "", .reads = client_reads, .failures = client_failures,
      .results = client_results, .missing = client_missing,
      .room = client_room, .reads_in_flight = client_reads_in_flight,
      .idle_ns = client_idle_ns, .closed = client_closed, .gone = client_gone,
    },
  };
}

static void
client_free (struct client *client)
{
  free (client->reads);
  free (client->failures);
  free (client->results);
}

/* -- a run ----------------------------------------------------------------- */

/* Tell libFuzzer of a line of a message: what it is, not the numbers in it. */
static void
count_line (const char *line, size_t length)
{
  uint32_t hash = 2166136261u;
  size_t i;

  /* What is quoted is the policy's own, so that each would be new. */
  for (i = 0; i < length && line[i] != '\'' && line[i] != '"'; ++i)
    if (!isdigit ((unsigned char) line[i]))
      hash = (hash ^ (uint8_t) line[i]) * 16777619u;
  counters[hash % NR_COUNTERS] = 1;
}

static void
count_message (const char *message)
{
  size_t length = strcspn (message, "\n");
  const char *p;

  if (verbose)
    fprintf (stderr, "%s\n", message);
  /* The policy can put what it likes into the message: no more than this. */
  count_line (message, length < 80 ? length : 80);
  /* Of the traceback, only what is ours is known to be of a few kinds. */
  for (p = strstr (message, "\n\tlua/"); p != NULL;
       p = strstr (p, "\n\tlua/")) {
    p += 2;
    count_line (p, strcspn (p, "\n"));
  }
}

static void
check_request (const struct vm_request *request, uint64_t size)
{
  switch (request->type) {
  case VM_PREFETCH:
  case VM_PREAD:
    CHECK (request->range.offset < size);
    CHECK (request->range.count >= 1);
    CHECK (request->range.count <= size - request->range.offset);
    CHECK (request->type == VM_PREFETCH ||
           request->range.count <= VM_PREAD_MAX_BYTES);
    break;
  case VM_NEXT_DATA:
    CHECK (request->range.offset < size);
    break;
  case VM_WAIT:
    CHECK (request->until_ns > 0);
    break;
  case VM_SETTLE: case VM_FINISHED: case VM_FAILED: case VM_GONE:
    break;
  default:
    CHECK (!"a known type");
  }
}

/* Any answer to any request: the vm does not rely on a runner that is right. */
static void
take_answer (struct vm_answer *answer, const uint8_t *data, size_t size)
{
  switch (take_byte () % 8) {
  case 0: case 1: case 2:
    *answer = (struct vm_answer) { .type = VM_NOTHING };
    break;
  case 3: case 4:
    *answer = (struct vm_answer) { .type = VM_OFFSET, .offset = take_number () };
    break;
  case 5: case 6:
    *answer = (struct vm_answer) {
      .type = VM_BYTES, .bytes = (const char *) data,
      .length = size < ANSWER_MAX_BYTES ? size : ANSWER_MAX_BYTES,
    };
    break;
  default:
    *answer = (struct vm_answer) { .type = VM_ERRNO, .err = take_byte () };
  }
}

/* The two scans take turns as the input says, and may end at any time. */
static void
run_scans (struct vm *vm, const uint8_t *data, size_t size)
{
  struct client clients[2];
  struct vm_scan *scans[2];
  struct vm_answer answers[2] = { { 0 }, { 0 } };
  struct vm_request request;
  bool had_failed;
  int i, which;

  for (i = 0; i < 2; ++i) {
    client_init (&clients[i]);
    scans[i] = vm_scan_new (vm, &clients[i].driver);
    CHECK (scans[i] != NULL);
  }
  for (i = 0; i < 2 * RESUMES_MAX; ++i) {
    which = take_byte () & 1;
    if (scans[which] == NULL)
      which = !which;
    if (scans[which] == NULL)
      break;
    had_failed = vm_has_failed (vm);
    request = vm_resume (scans[which], &answers[which]);
    if (verbose)
      fprintf (stderr, "scan %d: request %d, offset %" PRIu64 ", count %" PRIu64
               "\n", which, request.type, request.range.offset,
               request.range.count);
    counters[request.type] = 1;
    check_request (&request, clients[which].driver.size);
    CHECK (vm_has_failed (vm) == (had_failed || request.type == VM_FAILED));
    CHECK (!had_failed || request.type == VM_GONE);
    if (request.type == VM_FAILED) {
      CHECK (vm_error (vm) != NULL && vm_error (vm)[0] != '\0');
      count_message (vm_error (vm));
    }
    if (request.type >= VM_FINISHED || take_byte () == 255) {
      vm_scan_free (scans[which]);
      scans[which] = NULL;
      client_free (&clients[which]);
    }
    else
      take_answer (&answers[which], data, size);
  }
  for (i = 0; i < 2; ++i)
    if (scans[i] != NULL) {
      vm_scan_free (scans[i]);
      client_free (&clients[i]);
    }
}

void
fuzz_run (const char *policy, const uint8_t *data, size_t size)
{
  const struct vm_arg arg = { "blocks", "3" };
  char error[LIBRARY_ERROR_MAX];
  const struct vm_config config = {
    .policy = library_policy (policy, error), .args = &arg, .nr_args = 1,
    .memory_bytes = MEMORY_BYTES, .timeout_ns = TIMEOUT_NS,
  };
  struct vm *vm;

  CHECK (config.policy != NULL);
  vm = vm_new (&config);
  CHECK (vm != NULL);
  verbose = getenv ("FUZZ_VERBOSE") != NULL;
  bytes = data;
  nr_bytes = size;
  if (vm_load (vm) == -1) {
    CHECK (vm_has_failed (vm));
    CHECK (vm_error (vm) != NULL && vm_error (vm)[0] != '\0');
    count_message (vm_error (vm));
  }
  else {
    CHECK (!vm_has_failed (vm));
    run_scans (vm, data, size);
  }
  vm_free (vm);
  library_free ();
}

const char *
fuzz_file (const uint8_t *data, size_t size)
{
  static char path[64];
  static int fd = -1;

  if (fd == -1) {
    fd = memfd_create ("fuzz", MFD_CLOEXEC);
    CHECK (fd != -1);
    snprintf (path, sizeof path, "/proc/self/fd/%d", fd);
  }
  CHECK (ftruncate (fd, 0) == 0);
  CHECK (pwrite (fd, data, size, 0) == (ssize_t) size);
  return path;
}
