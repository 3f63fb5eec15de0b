/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Nanoseconds of a policy's decision: from the answer to one request to the
 * next request, with the filter's own Lua host around it.
 *
 *   decisions POLICY BLOCKS ROUNDS [NAME=VALUE...]
 *
 * The policy scans a made-up disk of so many blocks, ROUNDS times; nothing is
 * prefetched.  Prints JSON: how many decisions there were in all, and the least
 * and the median of the means of a thousand (or of a scan that has less), in
 * processor time, as what else the machine does only adds to it.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

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
no_reads (void *opaque, const struct met_read **out)
{
  return 0;
}

static size_t
no_failures (void *opaque, const struct vm_failure **out)
{
  return 0;
}

static size_t
no_results (void *opaque, const struct vm_result **out)
{
  return 0;
}

/* Nothing was ever read or fetched. */
static bool
all_missing (void *opaque, uint64_t from, uint64_t to, struct range *missing)
{
  *missing = (struct range) { from, to - from };
  return true;
}

static uint32_t
a_block (void *opaque)
{
  return BLOCK;
}

static unsigned
no_reads_in_flight (void *opaque)
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

#define SAMPLE 1000
#define SAMPLES_MAX 100000

static double samples[SAMPLES_MAX];     /* ns a decision */
static size_t nr_samples;
static uint64_t nr_decisions;

static uint64_t
cpu_ns (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_THREAD_CPUTIME_ID, &ts);
  return ts.tv_sec * UINT64_C (1000000000) + ts.tv_nsec;
}

static void
add_sample (uint64_t ns, uint64_t decisions)
{
  if (decisions > 0 && nr_samples < SAMPLES_MAX)
    samples[nr_samples++] = (double) ns / decisions;
  nr_decisions += decisions;
}

/* One scan from its start to its end, or to so many decisions. */
static void
scan (struct vm *vm, uint64_t blocks)
{
  const struct vm_driver driver = {
    .size = blocks * BLOCK, .block = BLOCK, .export = "",
    .reads = no_reads, .failures = no_failures,
    .results = no_results, .missing = all_missing,
    .room = a_block, .reads_in_flight = no_reads_in_flight, .idle_ns = idle_ns,
    .closed = no, .gone = no,
  };
  struct vm_scan *s = vm_scan_new (vm, &driver);
  struct vm_answer answer = { .type = VM_NOTHING };
  uint64_t start = cpu_ns (), decisions = 0, i;

  if (s == NULL) {
    perror ("vm_scan_new");
    exit (EXIT_FAILURE);
  }
  for (i = 0; i < blocks; ++i) {
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
    if (++decisions == SAMPLE) {
      add_sample (cpu_ns () - start, decisions);
      start = cpu_ns ();
      decisions = 0;
    }
  }
  if (blocks < SAMPLE || i < SAMPLE)
    add_sample (cpu_ns () - start, decisions);
  vm_scan_free (s);
}

static int
compare (const void *a, const void *b)
{
  const double x = *(const double *) a, y = *(const double *) b;

  return (x > y) - (x < y);
}

int
main (int argc, char *argv[])
{
  struct vm_arg args[16];
  struct vm_config config = {
    .args = args, .memory_bytes = UINT64_C (64) * 1024 * 1024,
    .timeout_ns = 5 * NS_PER_SECOND,
  };
  char error[LIBRARY_ERROR_MAX] = "";
  uint64_t blocks;
  int rounds, i;

  if (argc < 4) {
    fprintf (stderr, "usage: decisions POLICY BLOCKS ROUNDS [NAME=VALUE...]\n");
    exit (EXIT_FAILURE);
  }
  config.policy = library_policy (argv[1], error);
  if (config.policy == NULL) {
    fprintf (stderr, "decisions: %s\n", error);
    exit (EXIT_FAILURE);
  }
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
  library_set_policy (config.policy);

  for (i = 0; i < rounds; ++i) {
    struct vm *vm = vm_new (&config);

    if (vm == NULL || vm_load (vm) == -1) {
      fprintf (stderr, "%s\n", vm == NULL ? "vm_new" : vm_error (vm));
      exit (EXIT_FAILURE);
    }
    scan (vm, blocks);
    vm_free (vm);
  }
  library_free ();
  if (nr_samples == 0)
    add_sample (0, 1);
  qsort (samples, nr_samples, sizeof samples[0], compare);
  printf ("{\"policy\": \"%s\", \"decisions\": %" PRIu64
          ", \"least_ns\": %.0f, \"median_ns\": %.0f}\n",
          argv[1], nr_decisions, samples[0], samples[nr_samples / 2]);
  return 0;
}
