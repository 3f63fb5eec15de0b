/* Nanoseconds of a policy's decision: from the answer to one request to the
 * next request, with the filter's own Lua host around it.
 *
 *   decisions POLICY BLOCKS ROUNDS [NAME=VALUE...]
 *
 * The policy scans a made-up disk of so many blocks, ROUNDS times; nothing is
 * prefetched.  Prints JSON: the decisions, and the least mean of the rounds, as
 * what else the machine does only adds to it.
 */

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <nbdkit-filter.h>

#include "clock.h"
#include "library.h"
#include "vm.h"

#define BLOCK (2 * 1024 * 1024)

/* What the server gives to filters. */

void
nbdkit_error (const char *fs, ...)
{
  va_list args;

  va_start (args, fs);
  vfprintf (stderr, fs, args);
  va_end (args);
  fputc ('\n', stderr);
}

void
nbdkit_debug (const char *fs, ...)
{
}

char *
nbdkit_realpath (const char *path)
{
  return realpath (path, NULL);
}

char *
nbdkit_absolute_path (const char *path)
{
  return realpath (path, NULL);
}

/* A client that is away: no reads, no failures. */

static size_t
no_reads (void *opaque, const struct range **out)
{
  return 0;
}

static size_t
no_failures (void *opaque, const struct vm_failure **out)
{
  return 0;
}

static uint64_t
idle_ns (void *opaque)
{
  return 3600 * NS_PER_SECOND;
}

static bool
no (void *opaque)
{
  return false;
}

struct result {
  uint64_t decisions, ns;
};

/* One scan from its start to its end, or to so many decisions. */
static struct result
scan (struct vm *vm, uint64_t blocks)
{
  const struct vm_driver driver = {
    .size = blocks * BLOCK, .block = BLOCK, .export = "",
    .reads = no_reads, .failures = no_failures, .idle_ns = idle_ns,
    .closed = no, .gone = no,
  };
  struct vm_scan *s = vm_scan_new (vm, &driver);
  struct vm_answer answer = { .type = VM_NOTHING };
  struct result result = { 0, 0 };
  const uint64_t start = clock_now_ns ();

  if (s == NULL) {
    perror ("vm_scan_new");
    exit (EXIT_FAILURE);
  }
  while (result.decisions < blocks) {
    const struct vm_request request = vm_resume (s, &answer);

    if (request.type == VM_FAILED) {
      fprintf (stderr, "%s\n", vm_error (vm));
      exit (EXIT_FAILURE);
    }
    if (request.type == VM_FINISHED || request.type == VM_GONE)
      break;
    answer.type = VM_NOTHING;
    if (request.type == VM_NEXT_DATA) {
      answer.type = VM_OFFSET;
      answer.offset = request.range.offset;
    }
    else if (request.type == VM_PREAD) {
      answer.type = VM_ERRNO;
      answer.err = EIO;
    }
    result.decisions++;
  }
  result.ns = clock_now_ns () - start;
  vm_scan_free (s);
  return result;
}

int
main (int argc, char *argv[])
{
  struct vm_arg args[16];
  struct vm_config config = {
    .args = args, .memory_bytes = UINT64_C (64) * 1024 * 1024,
    .timeout_ns = 5 * NS_PER_SECOND,
  };
  struct result best = { 0, UINT64_MAX };
  char error[LIBRARY_ERROR_MAX] = "";
  uint64_t blocks;
  int rounds, i;

  if (argc < 4) {
    fprintf (stderr, "usage: decisions POLICY BLOCKS ROUNDS [NAME=VALUE...]\n");
    exit (EXIT_FAILURE);
  }
  config.policy = argv[1];
  blocks = strtoull (argv[2], NULL, 10);
  rounds = atoi (argv[3]);
  for (i = 4; i < argc; ++i) {
    char *equals = strchr (argv[i], '=');

    if (equals == NULL) {
      fprintf (stderr, "decisions: '%s' should be NAME=VALUE\n", argv[i]);
      exit (EXIT_FAILURE);
    }
    *equals = '\0';
    if (strncmp (argv[i], "file-", 5) == 0) {
      if (library_add_file (argv[i] + 5, equals + 1, error) == -1) {
        fprintf (stderr, "decisions: %s\n", error);
        exit (EXIT_FAILURE);
      }
    }
    else if (config.nr_args < sizeof args / sizeof args[0])
      args[config.nr_args++] = (struct vm_arg) { argv[i], equals + 1 };
  }
  library_set_policy (library_policy (config.policy, error));

  for (i = 0; i < rounds; ++i) {
    struct vm *vm = vm_new (&config);
    struct result result;

    if (vm == NULL || vm_load (vm) == -1) {
      fprintf (stderr, "%s\n", vm == NULL ? "vm_new" : vm_error (vm));
      exit (EXIT_FAILURE);
    }
    result = scan (vm, blocks);
    if (result.decisions > 0 && result.ns < best.ns)
      best = result;
    vm_free (vm);
  }
  library_free ();
  printf ("{\"policy\": \"%s\", \"decisions\": %" PRIu64 ", \"ns\": %.1f}\n",
          argv[1], best.decisions,
          best.decisions ? (double) best.ns / best.decisions : 0);
  return 0;
}
