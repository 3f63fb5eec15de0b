/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See scanner.h.
 *
 * Locks of this filter, outermost first: a vm's policy lock, then a scanner's
 * lock, then the leaf locks (read queue, budget, guard, exports), under which
 * nothing is called.  None is held across a call to the layer below, and the
 * client's read path takes the read queue's alone.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <pthread.h>

#include "clock.h"
#include "debug.h"
#include "guard.h"
#include "scanner.h"

/* How many failures are kept for disk:failures between two questions. */
#define FAILURES_MAX 256

/* The shortest disk:wait, so that a policy can't spin by waiting for 0. */
#define WAIT_MIN_NS (NS_PER_SECOND / 1000)

struct worker {
  struct scanner *scanner;
  pthread_t thread;
  struct source *source;        /* its own, or the scanner's */
  void *scratch;                /* one block, for SOURCE_READ */
};

struct scanner {
  /* Immutable once the first worker has opened its source. */
  struct scanner_config config;
  struct vm_driver driver;
  struct vm_scan *scan;
  struct reads *reads;
  struct source *source;        /* shared by all workers, or NULL */

  pthread_mutex_t lock;
  pthread_cond_t cond;          /* any change of what lock protects */

  /* Protected by lock. */
  struct worker *workers;       /* config.threads of them */
  unsigned nr_workers;          /* that have been started */
  unsigned nr_idle;             /* that wait to become the decider */
  unsigned in_flight;
  bool deciding;                /* there is a decider */
  bool over;                    /* nothing more will be prefetched */
  bool warned;                  /* of a failed prefetch */
  bool warned_of_thread;        /* that could not be used */
  struct vm_failure failures[FAILURES_MAX];
  size_t nr_failures;

  /* Atomic; set by scanner_stop. */
  atomic_bool stopping;

  /* Decider only. */
  bool told_closed;             /* what disk:closed says in this turn */
  struct range pending;         /* asked for and not yet issued */
  uint32_t credit;              /* bytes taken from the budget */
  struct range read_batch[READS_MAX];
  struct vm_failure failure_batch[FAILURES_MAX];
  struct source_extents extents; /* for disk:next_data */
  void *pread_buf;              /* VM_PREAD_MAX_BYTES, or NULL */
};

/* -- what the policy may ask about ----------------------------------------- */

static size_t
driver_reads (void *opaque, const struct range **out)
{
  struct scanner *s = opaque;
  const size_t n = reads_take (s->reads, s->read_batch);
  size_t i;

  if (scan_debug_reads)
    for (i = 0; i < n; ++i)
      nbdkit_debug ("scan: read offset=0x%" PRIx64 " count=0x%" PRIx64,
                    s->read_batch[i].offset, s->read_batch[i].count);
  *out = s->read_batch;
  return n;
}

static size_t
driver_failures (void *opaque, const struct vm_failure **out)
{
  struct scanner *s = opaque;
  size_t n;

  pthread_mutex_lock (&s->lock);
  n = s->nr_failures;
  memcpy (s->failure_batch, s->failures, n * sizeof *s->failures);
  s->nr_failures = 0;
  pthread_mutex_unlock (&s->lock);
  *out = s->failure_batch;
  return n;
}

static unsigned
driver_reads_in_flight (void *opaque)
{
  struct scanner *s = opaque;

  return reads_in_flight (s->reads);
}

static uint64_t
driver_idle_ns (void *opaque)
{
  struct scanner *s = opaque;

  return reads_idle_ns (s->reads);
}

static bool
driver_closed (void *opaque)
{
  struct scanner *s = opaque;

  return s->told_closed;
}

static bool
driver_gone (void *opaque)
{
  struct scanner *s = opaque;

  return atomic_load (&s->stopping);
}

/* -- the end of a scan ----------------------------------------------------- */

/* Nothing more will be prefetched.  Called once, by the decider or, before
 * there is one, by the first worker; the lock must not be held.
 */
static void
end_scan (struct scanner *s, enum stats_state state)
{
  pthread_mutex_lock (&s->lock);
  s->over = true;
  pthread_cond_broadcast (&s->cond);
  pthread_mutex_unlock (&s->lock);
  reads_stop (s->reads);
  stats_scan_ends (s->config.stats, state);
}

/* -- deciding -------------------------------------------------------------- */

/* Wait until nothing is in flight. */
static void
settle (struct scanner *s)
{
  pthread_mutex_lock (&s->lock);
  while (s->in_flight > 0 && !atomic_load (&s->stopping))
    pthread_cond_wait (&s->cond, &s->lock);
  pthread_mutex_unlock (&s->lock);
}

static void
wait_for_client (struct scanner *s, uint64_t until_ns)
{
  const uint64_t least = clock_now_ns () + WAIT_MIN_NS;

  reads_wait (s->reads, until_ns > least ? until_ns : least);
}

/* Read for the policy. */
static struct vm_answer
answer_pread (struct scanner *s, struct worker *w, struct range range)
{
  struct vm_answer answer = { .type = VM_ERRNO, .err = ENOMEM };
  struct guard_op op;

  if (s->pread_buf == NULL)
    s->pread_buf = malloc (VM_PREAD_MAX_BYTES);
  if (s->pread_buf == NULL)
    return answer;
  /* A layer that keeps what is read makes no difference between the two. */
  if (!guard_begin_prefetch (&op, range)) {
    answer.err = EBUSY;
    return answer;
  }
  answer.err = source_pread (w->source, range, s->pread_buf);
  guard_end (&op);
  if (answer.err == 0) {
    answer.type = VM_BYTES;
    answer.bytes = s->pread_buf;
    answer.length = range.count;
  }
  return answer;
}

/* Ask the policy until it wants a prefetch, and leave that in pending.
 * Returns false if the scan is over.
 */
static bool
ask_policy (struct scanner *s, struct worker *w)
{
  struct vm_answer answer = { .type = VM_NOTHING };
  struct vm_request request;
  struct range hole;
  uint64_t offset;

  for (;;) {
    if (s->told_closed)         /* it has had its last turn */
      break;
    s->told_closed = atomic_load (&s->stopping);
    request = vm_resume (s->scan, &answer);
    answer.type = VM_NOTHING;

    switch (request.type) {
    case VM_PREFETCH:
      if (scan_debug_decisions)
        nbdkit_debug ("scan: policy: prefetch offset=0x%" PRIx64
                      " count=0x%" PRIx64 "%s", request.range.offset,
                      request.range.count,
                      s->told_closed ? " (dropped: client has gone)" : "");
      if (s->told_closed)
        break;
      s->pending = request.range;
      return true;

    case VM_WAIT:
      if (scan_debug_decisions)
        nbdkit_debug ("scan: policy: wait");
      if (!s->told_closed)
        wait_for_client (s, request.until_ns);
      break;

    case VM_SETTLE:
      if (scan_debug_decisions)
        nbdkit_debug ("scan: policy: settle");
      if (!s->told_closed)
        settle (s);
      break;

    case VM_NEXT_DATA:
      if (s->told_closed)
        break;
      offset = source_next_data (w->source, &s->extents,
                                 request.range.offset, &s->stopping);
      if (offset > request.range.offset) {
        hole.offset = request.range.offset;
        hole.count = offset - request.range.offset;
        stats_hole (s->config.stats, hole);
      }
      if (offset < s->driver.size) {
        answer.type = VM_OFFSET;
        answer.offset = offset;
      }
      if (scan_debug_decisions)
        nbdkit_debug ("scan: policy: next_data offset=0x%" PRIx64
                      " is 0x%" PRIx64, request.range.offset, offset);
      break;

    case VM_PREAD:
      if (!s->told_closed)
        answer = answer_pread (s, w, request.range);
      if (scan_debug_decisions)
        nbdkit_debug ("scan: policy: pread offset=0x%" PRIx64
                      " count=0x%" PRIx64, request.range.offset,
                      request.range.count);
      break;

    case VM_FINISHED:
      if (s->told_closed)
        break;
      nbdkit_debug ("scan: finished scanning the plugin");
      end_scan (s, STATS_FINISHED);
      return false;

    case VM_FAILED:
      nbdkit_error ("scan: %s", vm_error (s->config.vm));
      end_scan (s, STATS_FAILED);
      return false;

    case VM_GONE:
      end_scan (s, vm_has_failed (s->config.vm)
                ? STATS_FAILED : STATS_WAITING);
      return false;
    }
  }

  nbdkit_debug ("scan: exiting background thread on %s",
                s->config.background ? "server exit" : "connection close");
  end_scan (s, STATS_WAITING);
  return false;
}

/* Make sure that there is room for a block within scan-rate and scan-limit.
 * Returns false if the limit is used up.
 */
static bool
get_credit (struct scanner *s)
{
  uint64_t until_ns;

  if (s->credit > 0)
    return true;
  s->credit = budget_take (s->config.budget, s->config.block, &until_ns);
  if (s->credit == 0)
    return false;
  if (until_ns == 0)
    return true;
  pthread_mutex_lock (&s->lock);
  while (!atomic_load (&s->stopping) && clock_now_ns () < until_ns)
    clock_wait_until (&s->cond, &s->lock, until_ns);
  pthread_mutex_unlock (&s->lock);
  return true;
}

/* Get the next range to prefetch, at most a block.  Returns false if the scan
 * is over.  The caller is the decider.
 */
static bool
decide (struct scanner *s, struct worker *w, struct range *range)
{
  if (!get_credit (s)) {
    nbdkit_debug ("scan: scan-limit has been reached");
    end_scan (s, STATS_FINISHED);
    return false;
  }
  if (atomic_load (&s->stopping))
    s->pending.count = 0;
  if (s->pending.count == 0 && !ask_policy (s, w)) {
    /* Other scans may have it; this one may stay open for long. */
    budget_give (s->config.budget, s->credit);
    s->credit = 0;
    return false;
  }

  *range = s->pending;
  if (range->count > s->config.block)
    range->count = s->config.block;
  if (range->count > s->credit)
    range->count = s->credit;
  s->pending.offset += range->count;
  s->pending.count -= range->count;
  budget_give (s->config.budget, s->credit - range->count);
  s->credit = 0;
  return true;
}

/* -- prefetching ----------------------------------------------------------- */

static void
note_failure (struct scanner *s, struct range range, int err)
{
  const bool skipped = err == EBUSY;
  bool first = false;

  pthread_mutex_lock (&s->lock);
  if (s->nr_failures < FAILURES_MAX)
    s->failures[s->nr_failures++] = (struct vm_failure) { range, err };
  if (!skipped) {
    first = !s->warned;
    s->warned = true;
  }
  pthread_mutex_unlock (&s->lock);
  reads_wake (s->reads);

  if (first)
    nbdkit_error ("scan: warning: prefetch of %" PRIu64 " bytes at offset %"
                  PRIu64 " failed: %s; the scan goes on, and will not warn "
                  "again", range.count, range.offset, strerror (err));
}

static void
prefetch (struct scanner *s, struct worker *w, struct range range)
{
  struct guard_op op;
  int err;

  if (!guard_begin_prefetch (&op, range)) {
    stats_prefetch_skipped (s->config.stats);
    note_failure (s, range, EBUSY);
    return;
  }
  stats_prefetch_begins (s->config.stats, range);
  err = source_prefetch (w->source, range, w->scratch);
  stats_prefetch_ends (s->config.stats, range, err == 0);
  guard_end (&op);
  if (err != 0)
    note_failure (s, range, err);
}

/* -- threads --------------------------------------------------------------- */

static void *run_worker (void *vp);

/* Start another worker.  The lock must be held. */
static int
start_worker (struct scanner *s)
{
  struct worker *w = &s->workers[s->nr_workers];
  int err;

  w->scanner = s;
  err = pthread_create (&w->thread, NULL, run_worker, w);
  if (err == 0)
    s->nr_workers++;
  return err;
}

/* A worker can't work: say so once, and start no more of them. */
static void
give_up_worker (struct scanner *s, struct worker *w, const char *why)
{
  bool first;

  pthread_mutex_lock (&s->lock);
  first = !s->warned_of_thread;
  s->warned_of_thread = true;
  s->config.threads = s->nr_workers;
  pthread_mutex_unlock (&s->lock);
  if (first)
    nbdkit_error ("scan: warning: %s%s", why,
                  w == s->workers ? ", not scanning"
                  : ", scanning with fewer threads");
}

/* Get what a worker needs.  The first one also finds out about the disk.
 * Returns false after saying why, if it can't work.
 */
static bool
prepare_worker (struct scanner *s, struct worker *w)
{
  const bool first = w == s->workers;
  const bool size_is_known = !first || !s->config.background;

  w->source = s->source;
  if (w->source == NULL)
    w->source = source_open (s->config.backend, s->config.export_name,
                             s->config.method);
  if (w->source == NULL) {
    give_up_worker (s, w, "could not open the layer below for a scan thread");
    return false;
  }
  if (size_is_known &&
      source_get_info (w->source)->size != s->driver.size) {
    give_up_worker (s, w, "the layer below was opened again for a scan thread "
                    "and is a disk of another size (nbdkit tells the plugin "
                    "no export name then)");
    return false;
  }
  if (s->config.method == SOURCE_READ) {
    w->scratch = malloc (s->config.block);
    if (w->scratch == NULL) {
      give_up_worker (s, w, "out of memory for a scan thread");
      return false;
    }
  }
  if (!first)
    return true;

  s->config.info = *source_get_info (w->source);
  s->driver.size = s->config.info.size;
  stats_set_size (s->config.stats, s->driver.size);
  if (s->config.method == SOURCE_CACHE && !s->config.info.can_cache) {
    nbdkit_error ("scan: warning: underlying plugin does not support "
                  "NBD_CMD_CACHE, not scanning; try adding --filter=cache "
                  "after this filter, or scan-method=read");
    return false;
  }
  return true;
}

/* Become the decider and get a range, or return false if the scan is over. */
static bool
get_work (struct scanner *s, struct worker *w, struct range *range)
{
  bool more;
  char why[128];
  int err = 0;

  pthread_mutex_lock (&s->lock);
  s->nr_idle++;
  while (s->deciding && !s->over)
    pthread_cond_wait (&s->cond, &s->lock);
  s->nr_idle--;
  if (s->over) {
    pthread_mutex_unlock (&s->lock);
    return false;
  }
  s->deciding = true;
  pthread_mutex_unlock (&s->lock);

  more = decide (s, w, range);

  pthread_mutex_lock (&s->lock);
  s->deciding = false;
  if (more) {
    s->in_flight++;
    /* Keep one thread at hand for the next decision. */
    if (s->nr_idle == 0 && s->nr_workers < s->config.threads &&
        !atomic_load (&s->stopping))
      err = start_worker (s);
  }
  pthread_cond_broadcast (&s->cond);
  pthread_mutex_unlock (&s->lock);
  if (err != 0) {
    snprintf (why, sizeof why, "could not start a scan thread: %s",
              strerror (err));
    give_up_worker (s, NULL, why);
  }
  return more;
}

static void *
run_worker (void *vp)
{
  struct worker *w = vp;
  struct scanner *s = w->scanner;
  struct range range;

  pthread_setname_np (pthread_self (), "nbdkit-scan");

  if (prepare_worker (s, w)) {
    if (w == s->workers && s->driver.size == 0) {
      nbdkit_debug ("scan: finished scanning the plugin");
      end_scan (s, STATS_FINISHED);
    }
    while (get_work (s, w, &range)) {
      prefetch (s, w, range);
      pthread_mutex_lock (&s->lock);
      s->in_flight--;
      pthread_cond_broadcast (&s->cond);
      pthread_mutex_unlock (&s->lock);
    }
  }
  else if (w == s->workers)
    end_scan (s, STATS_FAILED);

  if (w->source != s->source)
    source_close (w->source);
  free (w->scratch);
  return NULL;
}

/* -- the functions of scanner.h -------------------------------------------- */

struct scanner *
scanner_start (const struct scanner_config *config)
{
  struct scanner *s = calloc (1, sizeof *s);
  int err = ENOMEM;

  if (s == NULL)
    goto err;
  s->config = *config;
  s->driver = (struct vm_driver) {
    .opaque = s,
    .size = config->info.size,
    .block = config->block,
    .export = config->export_name,
    .reads = driver_reads,
    .failures = driver_failures,
    .reads_in_flight = driver_reads_in_flight,
    .idle_ns = driver_idle_ns,
    .closed = driver_closed,
    .gone = driver_gone,
  };
  pthread_mutex_init (&s->lock, NULL);
  clock_cond_init (&s->cond);
  s->workers = calloc (config->threads, sizeof *s->workers);
  s->reads = reads_new ();
  s->scan = vm_scan_new (config->vm, &s->driver);
  if (s->workers == NULL || s->reads == NULL || s->scan == NULL)
    goto err;
  if (config->next != NULL) {
    s->source = source_of (config->next, &config->info, config->method);
    if (s->source == NULL)
      goto err;
  }
  stats_scan_begins (config->stats);
  pthread_mutex_lock (&s->lock);
  err = start_worker (s);
  pthread_mutex_unlock (&s->lock);
  if (err == 0)
    return s;
  stats_scan_ends (config->stats, STATS_FAILED);

 err:
  nbdkit_error ("scan: warning: could not start a scan: %s, not scanning",
                strerror (err));
  scanner_free (s);
  return NULL;
}

void
scanner_stop (struct scanner *s)
{
  unsigned i;

  pthread_mutex_lock (&s->lock);
  atomic_store (&s->stopping, true);
  pthread_cond_broadcast (&s->cond);
  pthread_mutex_unlock (&s->lock);
  reads_wake (s->reads);

  /* No worker is started any more. */
  for (i = 0; i < s->nr_workers; ++i)
    pthread_join (s->workers[i].thread, NULL);
  s->nr_workers = 0;
}

void
scanner_free (struct scanner *s)
{
  if (s == NULL)
    return;
  if (s->reads != NULL)
    scanner_stop (s);
  if (s->credit > 0)
    budget_give (s->config.budget, s->credit);
  vm_scan_free (s->scan);
  reads_free (s->reads);
  source_forget_extents (&s->extents);
  source_close (s->source);
  free (s->pread_buf);
  free (s->workers);
  pthread_cond_destroy (&s->cond);
  pthread_mutex_destroy (&s->lock);
  free (s);
}

struct reads *
scanner_get_reads (struct scanner *s)
{
  return s->reads;
}
