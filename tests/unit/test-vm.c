/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* vm: every allocation fails once, and then all that follow; what a driver and a
 * policy say to each other.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "clock.h"
#include "library.h"
#include "stubs.h"
#include "vm-internal.h"         /* for used_bytes */

#define SIZE 65536
#define BLOCK 4096

/* A driver with something new at each question. */
struct fake {
  struct met_read read;
  struct vm_failure failure;
  struct vm_result results[2];
  bool closed, gone;
  uint64_t nap_ns;              /* at the first look at whether the client is there */
  unsigned looks;
};

static size_t
fake_reads (void *opaque, const struct met_read **out)
{
  struct fake *fake = opaque;

  *out = &fake->read;
  return 1;
}

static size_t
fake_failures (void *opaque, const struct vm_failure **out)
{
  struct fake *fake = opaque;

  *out = &fake->failure;
  return 1;
}

static size_t
fake_results (void *opaque, const struct vm_result **out)
{
  struct fake *fake = opaque;

  *out = fake->results;
  return 2;
}

static bool
fake_missing (void *opaque, uint64_t from, uint64_t to, struct range *missing)
{
  *missing = (struct range) { 4096, 512 };
  return from <= 4096 && to > 4096;
}

static uint32_t
fake_room (void *opaque)
{
  return 512;
}

static unsigned
fake_reads_in_flight (void *opaque)
{
  return 3;
}

static uint64_t
fake_idle_ns (void *opaque)
{
  return 5;
}

static bool
fake_closed (void *opaque)
{
  return ((struct fake *) opaque)->closed;
}

static bool
fake_gone (void *opaque)
{
  struct fake *f = opaque;

  if (f->looks++ == 0)
    clock_sleep_until (clock_now_ns () + f->nap_ns);
  return f->gone;
}

static struct fake fake = {
  .read = { { 512, 1024 }, MET_LATE, false }, .failure = { { 4096, 4096 }, EIO },
  .results = {
    { { 0, 4096 }, NS_PER_SECOND / 2, 0 }, { { 4096, 4096 }, 0, ENOSPC },
  },
};

static struct vm_driver driver = {
  .opaque = &fake, .size = SIZE, .block = BLOCK, .export = "",
  .reads = fake_reads, .failures = fake_failures,
  .results = fake_results, .missing = fake_missing,
  .room = fake_room, .reads_in_flight = fake_reads_in_flight, .idle_ns = fake_idle_ns,
  .closed = fake_closed, .gone = fake_gone,
};

static char path[] = "/tmp/test-vm-XXXXXX";

static void
write_policy (const char *text)
{
  const int fd = mkstemp (path);
  const size_t n = strlen (text);

  if (fd == -1 || write (fd, text, n) != (ssize_t) n) {
    perror (path);
    exit (1);
  }
  close (fd);
}

/* Does what policies do, and what needs memory in the least likely places. */
static const char POLICY[] =
  "local sequential = require 'scan.sequential'\n"
  "local args = ...\n"
  "return function (disk)\n"
  "  local dead = coroutine.create (function () end)\n"
  "  coroutine.resume (dead)\n"
  "  for i = 1, 20 do\n"
  "    local sum = 0\n"
  "    for offset, count, met in disk:reads () do\n"
  "      if met ~= 'late' then error (met) end\n"
  "      sum = sum + offset + count\n"
  "    end\n"
  "    for offset, _, err in disk:failures () do\n"
  "      if err ~= 'EIO' or offset ~= 4096 then error (err) end\n"
  "    end\n"
  "    local results, more = disk:results ()\n"
  "    local first, _, seconds, err = results ()\n"
  "    if first ~= 0 or seconds ~= 0.5 or err then error 'first result' end\n"
  "    first, _, seconds, err = results ()\n"
  "    if first ~= 4096 or seconds ~= 0 or err ~= 'ENOSPC' or results () or\n"
  "       more ~= nil then error 'second result' end\n"
  "    assert (disk:room () == 512)\n"
  "    local offset, count = disk:missing (0)\n"
  "    if offset ~= 4096 or count ~= 512 then error 'missing' end\n"
  "    if disk:missing (4097) or disk:missing (0, 4096) or\n"
  "       disk:missing (9, 9) then error 'not missing' end\n"
  "    local bytes, err = disk:pread (0, 16)\n"
  "    if not (bytes and #bytes == 16 or err == 'EIO') then error 'pread' end\n"
  "    disk:next_data (0)\n"
  "    if coroutine.resume (dead) then error 'not dead' end\n"
  "    pcall (error, { i })\n"
  "    xpcall (error, tostring, 'x' .. i)\n"
  "    coroutine.wrap (function () coroutine.yield (i) end) ()\n"
  "    local co = coroutine.create (function ()\n"
  "      local t <close> = setmetatable ({}, { __close = function () sum = i end })\n"
  "      coroutine.yield ()\n"
  "    end)\n"
  "    coroutine.resume (co)\n"
  "    coroutine.close (co)\n"
  "    print ('step', i, sum, args.name)\n"
  "    disk:prefetch (i % 16 * 4096)\n"
  "    disk:wait (0)\n"
  "    disk:settle ()\n"
  "  end\n"
  "end\n";

static const struct vm_arg args[] = { { "name", "value" } };

static struct vm_config config = {
  .args = args, .nr_args = 1,
  .memory_bytes = 16 * 1024 * 1024, .timeout_ns = 3600 * NS_PER_SECOND,
};

/* What became of a run. */
enum outcome { FINISHED, NO_VM, LOAD_FAILED, NO_SCAN, SCAN_FAILED, NONSENSE };

/* Load, open, and step until the policy ends. */
static enum outcome
run (char message[4096])
{
  struct vm *vm = NULL;
  struct vm_scan *scan = NULL;
  struct vm_request request = { .type = VM_FINISHED };
  struct vm_answer answer = { .type = VM_NOTHING };
  enum outcome outcome = FINISHED;
  unsigned steps = 0;

  message[0] = '\0';
  vm = vm_new (&config);
  if (vm == NULL)
    return NO_VM;
  if (vm_load (vm) == -1) {
    outcome = LOAD_FAILED;
    goto out;
  }
  scan = vm_scan_new (vm, &driver);
  if (scan == NULL) {
    outcome = NO_SCAN;
    goto out;
  }
  do {
    request = vm_resume (scan, &answer);
    answer = (struct vm_answer) { .type = VM_NOTHING };
    switch (request.type) {
    case VM_PREAD:
      answer.type = ++steps % 2 ? VM_BYTES : VM_ERRNO;
      answer.bytes = "0123456789abcdef";
      answer.length = 16;
      answer.err = EIO;
      break;
    case VM_NEXT_DATA:
      answer.type = VM_OFFSET;
      answer.offset = 4096;
      break;
    case VM_PREFETCH:
    case VM_WAIT:
    case VM_SETTLE:
      break;
    case VM_FAILED:
      outcome = SCAN_FAILED;
      break;
    case VM_FINISHED:
      outcome = steps == 20 ? FINISHED : NONSENSE;
      break;
    case VM_GONE:
      outcome = NONSENSE;
    }
  } while (request.type != VM_FINISHED && request.type != VM_FAILED &&
           request.type != VM_GONE);

 out:
  if (outcome == LOAD_FAILED || outcome == SCAN_FAILED) {
    if (!vm_has_failed (vm) || vm->used_bytes != 0)
      outcome = NONSENSE;
    snprintf (message, 4096, "%s", vm_error (vm));
    /* Nothing goes on after a failure. */
    if (scan != NULL && vm_resume (scan, &answer).type != VM_GONE)
      outcome = NONSENSE;
  }
  vm_scan_free (scan);
  vm_free (vm);
  return outcome;
}

/* Each step is a hundred times slower under the thread sanitizer, which has
 * nothing to see here, and under valgrind.
 */
static bool
is_slow (void)
{
  const char *check_with = getenv ("CHECK_WITH");

#ifdef __SANITIZE_THREAD__
  return true;
#endif
  return check_with != NULL && strcmp (check_with, "valgrind") == 0;
}

/* Let the n-th allocation fail, for every n until none does any more. */
static void
step_through_allocations (enum stub_failure how, const char *name)
{
  const long before = stub_outstanding ();
  const unsigned stride = is_slow () ? 101 : 1;
  unsigned n, count[NONSENSE + 1] = { 0 }, leaks = 0, unclear = 0;
  char message[4096];
  enum outcome outcome;

  for (n = 1;; n += stride) {
    stub_fail_allocations (how, n);
    outcome = run (message);
    const bool reached = stub_allocations () >= n;
    stub_fail_allocations (STUB_ALL_OK, 0);
    if (!reached)
      break;
    count[outcome]++;
    if (stub_outstanding () != before)
      leaks++;
    /* A policy may be unlucky in its own checks after a pcall that failed. */
    if ((outcome == LOAD_FAILED || outcome == SCAN_FAILED) &&
        strstr (message, "out of memory") == NULL &&
        strstr (message, "not enough memory") == NULL) {
      unclear++;
      printf ("# allocation %u: %s\n", n, message);
    }
  }
  printf ("# %s: up to %u allocations; finished %u, no vm %u, no policy %u, "
          "no scan %u, failed %u\n", name, n - 1, count[FINISHED],
          count[NO_VM], count[LOAD_FAILED], count[NO_SCAN],
          count[SCAN_FAILED]);
  check (outcome == FINISHED, "%s: all goes well in the end", name);
  check (n > 1000, "%s: there were many", name);
  check (count[NONSENSE] == 0, "%s: nothing but clean ends", name);
  check (leaks == 0, "%s: all memory is given back", name);
  check (unclear == 0, "%s: messages say that memory has run out", name);
  check (stub_errors == 0, "%s: no panic", name);
}

static void
test_messages (void)
{
  struct vm *vm;
  struct vm_scan *scan;
  struct vm_totals totals;
  const struct vm_answer answer = { .type = VM_NOTHING };
  struct vm_request request;

  vm = vm_new (&config);
  check (vm_load (vm) == 0, "the policy loads");
  scan = vm_scan_new (vm, &driver);
  request = vm_resume (scan, &answer);
  check (request.type == VM_PREAD && request.range.offset == 0 &&
         request.range.count == 16, "the first request is the policy's first");
  check (!vm_has_failed (vm), "nothing has failed");
  /* The answer it can't be: neither bytes nor an errno. */
  request = vm_resume (scan, &answer);
  check (request.type == VM_FAILED, "a policy that raises an error has failed");
  check (strstr (vm_error (vm), path) && strstr (vm_error (vm), ":27: pread") &&
         strstr (vm_error (vm), "stack traceback:"),
         "the message has file, line and traceback");
  check (vm_resume (scan, &answer).type == VM_GONE, "it is reported once");
  vm_get_totals (vm, &totals);
  check (totals.decisions == 2, "two decisions were made");
  vm_scan_free (scan);
  vm_free (vm);
}

static void
test_ends (void)
{
  struct vm *vm;
  struct vm_scan *scan;
  struct vm_request request;
  const struct vm_answer answer = { .type = VM_NOTHING };

  /* A scan that is given up while its policy is in the middle of something. */
  vm = vm_new (&config);
  vm_load (vm);
  scan = vm_scan_new (vm, &driver);
  vm_resume (scan, &answer);
  vm_scan_free (scan);
  /* One that never ran. */
  vm_scan_free (vm_scan_new (vm, &driver));
  vm_scan_free (NULL);
  /* The state goes on with the next. */
  scan = vm_scan_new (vm, &driver);
  request = vm_resume (scan, &answer);
  check (request.type == VM_PREAD, "another scan begins at the beginning");
  vm_scan_free (scan);
  vm_free (vm);
  vm_free (NULL);
}

/* A decision that gets no processor for longer than it may take is not stopped for
 * that: machines are busy now and then.
 */
static void
test_starved (void)
{
  static const char policy[] =
    "return function ()\n"
    "  for _ = 1, 1000000 do end\n"
    "end\n";
  struct vm_config starved = config;
  const struct vm_answer answer = { .type = VM_NOTHING };
  char error[LIBRARY_ERROR_MAX];
  struct vm *vm;
  struct vm_scan *scan;

  strcpy (path, "/tmp/test-vm-XXXXXX");
  write_policy (policy);
  starved.policy = library_policy (path, error);
  unlink (path);
  library_set_policy (starved.policy);
  starved.timeout_ns = 2 * NS_PER_SECOND;
  vm = vm_new (&starved);
  check (vm_load (vm) == 0, "a policy that counts loads");
  scan = vm_scan_new (vm, &driver);
  fake.nap_ns = 3 * NS_PER_SECOND;
  fake.looks = 0;
  check (vm_resume (scan, &answer).type == VM_FINISHED,
         "time that others have the processor doesn't count %s",
         vm_has_failed (vm) ? vm_error (vm) : "");
  check (fake.looks > 1, "it was looked at in the meantime");
  fake.nap_ns = 0;
  vm_scan_free (scan);
  vm_free (vm);
}

int
main (void)
{
  const long before = stub_outstanding ();
  char message[4096], error[LIBRARY_ERROR_MAX];

  stub_reset ();
  write_policy (POLICY);
  /* Read once, before anything fails; it is kept. */
  config.policy = library_policy (path, error);
  unlink (path);
  check (config.policy != NULL, "the policy is read");
  library_set_policy (config.policy);

  check (run (message) == FINISHED, "the policy runs to its end %s", message);
  test_messages ();
  test_ends ();
  step_through_allocations (STUB_ONE_FAILS, "one fails");
  step_through_allocations (STUB_ALL_FAIL_FROM, "all fail");
  test_starved ();
  library_free ();
  /* realpath's memory is the C library's own. */
  check (stub_outstanding () <= before, "nothing is left");
  return done ();
}
