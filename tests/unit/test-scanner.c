/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* scanner: whatever can't be had, a scan doesn't start or goes on with less, says
 * so once, gives all back and ends.
 */

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "clock.h"
#include "library.h"
#include "line.h"
#include "options.h"
#include "reads.h"
#include "scanner.h"
#include "stubs.h"

#define BLOCK 4096
#define BLOCKS 16
#define FINISHED "finished scanning"

/* As if no parameter had been given. */
struct options options;

static struct vm_config vm_config = {
  .memory_bytes = 16 * 1024 * 1024,
  .timeout_ns = 3600 * NS_PER_SECOND,
};

struct setting {
  struct vm *vm;
  struct budget *budget;
  struct stats *stats;
  struct map *map;
  struct scanner_config config;
};

/* A fresh export of a disk of BLOCKS blocks; own_contexts: not the
 * connection's.
 */
static struct setting
set_up (unsigned threads, bool own_contexts)
{
  struct setting t;

  stub_reset ();
  t.vm = vm_new (&vm_config);
  t.budget = budget_new (BUDGET_NONE, BUDGET_NONE);
  t.stats = stats_new ();
  t.map = map_new ();
  if (t.vm == NULL || t.budget == NULL || t.stats == NULL || t.map == NULL)
    abort ();
  t.config = (struct scanner_config) {
    .vm = t.vm, .export_name = "", .block = BLOCK, .threads = threads,
    .method = SOURCE_CACHE, .budget = t.budget, .stats = t.stats,
    .map = t.map,
    .next = own_contexts ? NULL : stub_next (),
    .info = { .size = BLOCK * BLOCKS, .minimum = 1, .can_cache = true },
  };
  return t;
}

static enum stats_state
state (struct setting *t)
{
  struct stats_totals totals;

  stats_get (t->stats, &totals);
  return totals.state;
}

/* Wait until a scan has ended by itself, and free it. */
static void
let_end (struct setting *t, struct scanner *s)
{
  while (state (t) == STATS_RUNNING)
    sched_yield ();
  scanner_free (s);
}

static void
tear_down (struct setting *t)
{
  vm_free (t->vm);
  budget_free (t->budget);
  stats_free (t->stats);
  map_free (t->map);
}

static void
test_all_well (unsigned threads, bool own_contexts)
{
  struct setting t = set_up (threads, own_contexts);
  struct scanner *s = scanner_start (&t.config);

  check (s != NULL, "%u threads: a scan starts", threads);
  stub_wait_for_debug (FINISHED);
  scanner_stop (s);
  check (stub_cache_calls () == BLOCKS &&
         stub_cached_bytes () == BLOCK * BLOCKS, "each block was prefetched");
  scanner_stop (s);
  scanner_free (s);
  check (stub_open_contexts () == 0, "no context is left");
  check (stub_errors == 0, "there was nothing to warn of");
  tear_down (&t);
}

/* The n-th allocation of starting fails, for every n. */
static void
test_no_memory_to_start (void)
{
  const long before = stub_outstanding ();
  unsigned n, not_one = 0, leaks = 0;

  for (n = 1;; ++n) {
    struct setting t = set_up (4, false);
    struct scanner *s;

    stub_fail_allocations (STUB_ONE_FAILS, n);
    s = scanner_start (&t.config);
    /* The thread of a scan that did start allocates, too. */
    if (s != NULL) {
      scanner_free (s);
      tear_down (&t);
      break;
    }
    not_one += stub_errors != 1 ||
      strstr (stub_last_error, "could not start a scan") == NULL;
    tear_down (&t);
    stub_fail_allocations (STUB_ALL_OK, 0);
    leaks += stub_outstanding () != before;
  }
  check (n > 4, "starting allocates");
  check (not_one == 0, "no memory to start: one warning, no scan");
  check (leaks == 0, "no memory to start: all is given back");
}

/* The n-th allocation of the scan fails, in whatever thread. */
static void
test_no_memory_later (enum stub_failure how, enum source_method method)
{
  const long before = stub_outstanding ();
  unsigned n, failed = 0, wrong = 0, leaks = 0;

  for (n = 1; n < 4000; n = n < 40 ? n + 1 : n + n / 10) {
    struct setting t = set_up (4, true);
    struct scanner *s;

    t.config.method = method;
    stub_fail_allocations (how, n);
    s = scanner_start (&t.config);
    if (s != NULL) {
      let_end (&t, s);
      failed += stub_errors > 0;
    }
    /* The scan's, and the policy's. */
    wrong += stub_errors > 2 || stub_open_contexts () != 0;
    stub_fail_allocations (STUB_ALL_OK, 0);
    tear_down (&t);
    leaks += stub_outstanding () != before;
  }
  check (failed > 0, "no memory later: a scan has failed of it");
  check (wrong == 0, "no memory later: few words, no context left");
  check (leaks == 0, "no memory later: all is given back");
}

static void
test_no_threads (void)
{
  struct setting t = set_up (4, false);
  struct scanner *s;

  stub_fail_threads (1);
  s = scanner_start (&t.config);
  check (s == NULL && stub_errors == 1 &&
         strstr (stub_last_error, "Resource temporarily unavailable"),
         "no thread at all: one warning, no scan");
  tear_down (&t);

  t = set_up (4, false);
  stub_fail_threads (2);
  s = scanner_start (&t.config);
  stub_wait_for_debug (FINISHED);
  scanner_free (s);
  check (stub_cache_calls () == BLOCKS, "one thread: the scan goes on alone");
  check (stub_errors == 1 && strstr (stub_last_error, "fewer threads"),
         "one thread: one warning");
  tear_down (&t);
}

static void
test_no_contexts (void)
{
  struct setting t = set_up (4, true);
  struct scanner *s;

  stub_fail_contexts (1);
  s = scanner_start (&t.config);
  check (s != NULL, "no context: starting doesn't wait to know");
  let_end (&t, s);
  check (stub_errors == 1 && strstr (stub_last_error, "will not warn again"),
         "no context: one warning");
  check (stub_cache_calls () == 0, "no context: no prefetch");
  tear_down (&t);

  t = set_up (4, true);
  stub_fail_contexts (2);
  s = scanner_start (&t.config);
  stub_wait_for_debug (FINISHED);
  scanner_free (s);
  check (stub_cache_calls () == BLOCKS, "one context: the scan goes on alone");
  /* It may be over before another thread has tried. */
  check (stub_errors <= 1 && stub_open_contexts () == 0,
         "one context: at most one warning, nothing left open");
  tear_down (&t);

  t = set_up (4, true);
  stub_layer.prepare = -1;
  s = scanner_start (&t.config);
  let_end (&t, s);
  check (stub_errors == 1 && stub_open_contexts () == 0,
         "a context that can't be prepared: one warning, and it is closed");
  tear_down (&t);

  t = set_up (4, true);
  stub_layer.size = -1;
  s = scanner_start (&t.config);
  let_end (&t, s);
  check (stub_errors == 1 && stub_open_contexts () == 0,
         "a disk without a size: one warning, and the context is closed");
  tear_down (&t);
}

/* A scan in the background waits for a source to be there, and does not count as
 * running meanwhile.
 */
static void
test_outage (void)
{
  struct setting t = set_up (4, true);
  struct scanner *s;

  t.config.background = true;
  stub_fail_contexts (1);
  s = scanner_start (&t.config);
  while (state (&t) == STATS_RUNNING)
    sched_yield ();
  check (state (&t) == STATS_FAILED, "outage: the scan is not running");
  stub_fail_contexts (0);
  scanner_try_now (s);
  stub_wait_for_debug (FINISHED);
  while (state (&t) == STATS_RUNNING)
    sched_yield ();
  check (state (&t) == STATS_FINISHED, "outage: the scan has finished");
  scanner_free (s);
  check (stub_errors == 1, "outage: one warning");
  check (stub_cache_calls () == BLOCKS, "outage: each block was prefetched");

  stub_fail_contexts (1);
  s = scanner_start (&t.config);
  scanner_free (s);
  check (state (&t) == STATS_WAITING, "outage: a scan that waits can be stopped");
  tear_down (&t);
}

/* Whichever of its threads is the last to end. */
static void
test_stop_in_an_outage (void)
{
  struct setting t = set_up (2, true);
  unsigned n, wrong = 0;
  struct scanner *s;

  t.config.background = true;
  stub_layer.err = EIO;
  for (n = 0; n < 300; ++n) {
    stub_fail_contexts (2);
    s = scanner_start (&t.config);
    while (state (&t) == STATS_RUNNING)
      sched_yield ();
    wrong += state (&t) != STATS_FAILED;
    scanner_free (s);
    wrong += state (&t) != STATS_WAITING;
  }
  check (wrong == 0, "outage: all threads wait and are stopped: %u wrong", wrong);
  tear_down (&t);
}

/* The other scans, and the clients, have all of the line meanwhile. */
static void
test_line_in_an_outage (int layer_err, const char *policy_text)
{
  static struct line_clients clients;
  const struct text policy = { "outage.lua", policy_text, strlen (policy_text), false };
  const struct text *before = vm_config.policy;
  struct setting t;
  const atomic_int never = 0;
  struct pace_transfer mine;
  struct reads *many = reads_new ();
  struct scanner *s;
  unsigned i;

  vm_config.policy = &policy;
  t = set_up (1, true);
  if (many == NULL || !map_set_size (t.map, BLOCK * BLOCKS))
    abort ();
  for (i = 0; i < READS_MAX; ++i)
    reads_begin (many, t.map, 0, 512);
  t.config.line = line_new (BLOCK, &clients);
  if (t.config.line == NULL)
    abort ();
  t.config.background = true;
  stub_layer.err = layer_err;
  stub_fail_contexts (2);
  s = scanner_start (&t.config);
  while (state (&t) == STATS_RUNNING)
    sched_yield ();
  check (line_take (t.config.line, &mine, &never, many) > 0,
         "outage: what failed with errno %d is not on the line: %s", layer_err,
         policy_text);
  scanner_free (s);
  line_free (t.config.line);
  reads_free (many);
  tear_down (&t);
  vm_config.policy = before;
}

static void
test_failures (void)
{
  struct setting t = set_up (2, false);
  struct scanner *s;
  struct stats_totals totals;

  stub_layer.err = EIO;
  s = scanner_start (&t.config);
  stub_wait_for_debug (FINISHED);
  scanner_free (s);
  stats_get (t.stats, &totals);
  check (totals.failures == BLOCKS && totals.prefetches == BLOCKS,
         "a layer that fails: the scan goes on");
  check (stub_errors == 1 && strstr (stub_last_error, "Input/output error"),
         "a layer that fails: one warning, with the reason");
  tear_down (&t);
}

extern int scan_debug_decisions;

/* What a scan has paid for and does not fetch is given back, also if it was asked
 * without room, for the client's reads, and stopped before there was any.
 */
static void
test_refund (void)
{
  static const char text[] =
    "return function (disk)"
    "  disk:prefetch (0) "
    "  while not disk:reads () () do disk:wait () end "
    "  print ('again') disk:prefetch (4096) "
    "end";
  static const struct text policy = { "refund.lua", text, sizeof text - 1, false };
  static struct line_clients clients;
  const struct text *before = vm_config.policy;
  const atomic_int never = 0;
  struct pace_transfer mine;
  struct scanner *s;
  struct setting t;
  uint64_t fetched_ns, due_ns;
  unsigned i;

  vm_config.policy = &policy;
  scan_debug_decisions = 1;
  t = set_up (1, false);
  budget_free (t.budget);
  t.config.budget = t.budget = budget_new (10 * BLOCK, BUDGET_NONE);
  t.config.line = line_new (BLOCK, &clients);
  if (t.budget == NULL || t.config.line == NULL ||
      !map_set_size (t.map, BLOCK * BLOCKS))
    abort ();
  s = scanner_start (&t.config);
  while (stub_cache_calls () == 0)
    sched_yield ();
  fetched_ns = clock_now_ns ();
  /* Before it is asked again it needs room, and there is none: clients have what
   * another has left of the line.
   */
  stub_wait_for_debug ("policy: wait");
  check (line_take (t.config.line, &mine, &never, NULL) > 0,
         "refund: another has some of the line");
  clients.reads = 2;
  clients.begun = 1 << 30;
  for (i = 0; i < READS_MAX; ++i) {
    reads_begin (scanner_get_reads (s), t.map, (i & 1) * 2 * BLOCK, 512);
    reads_end (scanner_get_reads (s));
  }
  stub_wait_for_debug ("policy: again");
  scanner_stop (s);
  due_ns = budget_pay (t.budget, BLOCK, clock_now_ns ());
  check (due_ns <= clock_now_ns () || due_ns <= fetched_ns + NS_PER_SECOND / 10,
         "refund: only the first is paid for");
  check (stub_cache_calls () == 1, "refund: nor fetched");
  scanner_free (s);
  line_free (t.config.line);
  tear_down (&t);
  scan_debug_decisions = 0;
  vm_config.policy = before;
}

/* And so is what it holds for its next prefetch: as much as the last, before its policy
 * was asked.
 */
static void
test_give_back (void)
{
  static const char text[] =
    "return function (disk) disk:prefetch (0) disk:wait () end";
  static const struct text policy = { "give.lua", text, sizeof text - 1, false };
  const struct text *before = vm_config.policy;
  struct scanner *s;
  struct setting t;

  vm_config.policy = &policy;
  t = set_up (1, false);
  budget_free (t.budget);
  t.config.budget = t.budget = budget_new (BLOCK / 10, BUDGET_NONE);
  if (t.budget == NULL)
    abort ();
  budget_pay (t.budget, 0, 1);  /* long ago, so that the first one's turn is now */
  s = scanner_start (&t.config);
  while (stub_cache_calls () == 0)
    sched_yield ();
  while (budget_pay (t.budget, 0, clock_now_ns ()) <= clock_now_ns ())
    sched_yield ();
  scanner_stop (s);
  check (budget_pay (t.budget, 0, clock_now_ns ()) <= clock_now_ns (),
         "give back: what was to be next is not paid for");
  scanner_free (s);
  tear_down (&t);
  vm_config.policy = before;
}

int
main (void)
{
  char error[LIBRARY_ERROR_MAX];
  int i;

  stub_reset ();
  vm_config.policy = library_policy ("default", error);
  library_set_policy (vm_config.policy);

  test_all_well (1, false);
  test_all_well (4, false);
  test_all_well (4, true);
  test_no_memory_to_start ();
  test_no_memory_later (STUB_ONE_FAILS, SOURCE_CACHE);
  test_no_memory_later (STUB_ALL_FAIL_FROM, SOURCE_CACHE);
  test_no_memory_later (STUB_ONE_FAILS, SOURCE_READ);
  test_no_threads ();
  test_no_contexts ();
  test_outage ();
  test_stop_in_an_outage ();
  for (i = 0; i < 2; ++i) {
    test_line_in_an_outage (i ? ENOSPC : EIO,
                            "return function (disk) disk:prefetch (0) end");
    test_line_in_an_outage (i ? ENOSPC : EIO,
                            "return function (disk) disk:pread (0, 512) end");
  }
  test_failures ();
  test_refund ();
  test_give_back ();
  scanner_free (NULL);
  library_free ();
  return done ();
}
