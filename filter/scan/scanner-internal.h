/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* What the units of a scan share: scanner.c starts and ends it, workers.c has
 * its threads, steps.c what its policy asks for, and fetch.c all that it reads
 * of the source.  Nothing else may include this.
 *
 * Locks of this filter, outermost first: a vm's policy lock, then a scanner's
 * lock, then the leaf locks (read queue, failures, budget, line, guard, exports),
 * under which nothing is called.  None is held across a call to the layer
 * below, and the client's read path takes the read queue's alone.
 */

#ifndef SCAN_SCANNER_INTERNAL_H
#define SCAN_SCANNER_INTERNAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <pthread.h>

#include "failures.h"
#include "range.h"
#include "reads.h"
#include "scanner.h"
#include "source.h"
#include "ticket.h"
#include "vm.h"

/* How far the end of a scan has come.  It only goes on. */
enum scan_phase {
  SCAN_GOES_ON,
  SCAN_STOPS,                   /* the client has gone, or the server ends */
  SCAN_LAST_TURN,               /* and the policy has been told */
  SCAN_OVER,                    /* nothing more will be prefetched */
};

struct worker {
  struct scanner *scanner;
  pthread_t thread;
  struct source *source;        /* its own, or the scanner's */
  void *scratch;                /* one block, for SOURCE_READ */
  struct pace_transfer transfer; /* what it reads now */
};

struct scanner {
  /* Immutable once the first worker has opened its source. */
  struct scanner_config config;
  struct vm_driver driver;
  struct vm_scan *scan;
  struct reads *reads;
  struct source *source;        /* shared by all workers, or NULL */

  /* enum scan_phase; written with the lock held, read without. */
  atomic_int phase;

  pthread_mutex_t lock;
  pthread_cond_t role_free;     /* nobody decides, or the scan is over */
  pthread_cond_t landed;        /* less is in flight, or the scan stops */
  pthread_cond_t stops;         /* the scan stops */

  /* Protected by lock. */
  struct worker *workers;       /* config.threads of them */
  unsigned nr_workers;          /* that have been started */
  unsigned max_workers;         /* that may be */
  unsigned nr_idle;             /* that wait to become the decider */
  unsigned in_flight;           /* prefetches */
  bool deciding;                /* there is a decider */
  bool warned_of_thread;        /* that could not be used */

  struct failures failures;     /* has a lock of its own */

  /* Decider only. */
  struct range pending;         /* asked for and not yet issued */
  struct ticket ticket;
  struct range read_batch[READS_MAX];
  struct vm_failure failure_batch[FAILURES_MAX];
  struct source_extents extents; /* for disk:next_data */
  void *pread_buf;              /* VM_PREAD_MAX_BYTES, or NULL */
};

static inline enum scan_phase
scan_phase (struct scanner *s)
{
  return atomic_load (&s->phase);
}

/* -- scanner.c ------------------------------------------------------------- */

/* Go on to a later phase and wake all who wait; an earlier one changes
 * nothing.  The lock must not be held.
 */
extern void scan_advance (struct scanner *s, enum scan_phase phase);

/* Nothing more will be prefetched: the scan ends in this state.  Called once,
 * by the decider or, before there is one, by the first worker; the lock must
 * not be held.
 */
extern void scan_end (struct scanner *s, enum stats_state state);

/* -- workers.c ------------------------------------------------------------- */

/* Start another worker.  The lock must be held.  Returns 0 or an errno. */
extern int worker_start (struct scanner *s);

/* -- steps.c --------------------------------------------------------------- */

/* See that there is room for a block.  Returns false if the scan has ended.
 * The caller is the decider.
 */
extern bool steps_take_room (struct scanner *s);

/* Ask the policy, and do what it asks for, until it wants a prefetch; leave
 * that in pending.  Returns false if the scan has ended.  The caller is the
 * decider.
 */
extern bool steps_ask_policy (struct scanner *s, struct worker *w);

/* -- fetch.c --------------------------------------------------------------- */

/* Prefetch a range, at most a block.  A failure is counted and kept for the
 * policy.
 */
extern void fetch_prefetch (struct scanner *s, struct worker *w,
                            struct range range);

/* Read a range for the policy into buf.  Returns 0 or an errno. */
extern int fetch_read (struct scanner *s, struct worker *w,
                       struct range range, void *buf);

#endif /* SCAN_SCANNER_INTERNAL_H */
