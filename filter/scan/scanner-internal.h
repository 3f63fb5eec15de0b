/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* What the units of a scan share: scanner.c starts and ends it, workers.c has
 * its threads, steps.c what its policy asks for, and fetch.c all that it reads
 * of the source.  Nothing else may include this.
 *
 * The order of locks is in docs/design.md.
 */

#ifndef SCAN_SCANNER_INTERNAL_H
#define SCAN_SCANNER_INTERNAL_H

#include <stdatomic.h>
#include <stdbool.h>

#include <pthread.h>

#include "failures.h"
#include "opening.h"
#include "range.h"
#include "reads.h"
#include "results.h"
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
  enum {
    WORKER_AT_WORK,
    WORKER_OPENING,             /* its source; or closing it, in a scan that
                                   stopped meanwhile */
    WORKER_ENDED,
  } state;                      /* protected by the scanner's lock */
  bool joined;                  /* protected by the scanner's joining */
  struct source *source;        /* its own, or the scanner's */
  void *scratch;                /* one block, for SOURCE_READ */
  struct pace_transfer transfer; /* what it reads now */
  struct opening opening;
};

struct looker {
  pthread_mutex_t lock;         /* above the read queue's and the map's */

  /* Protected by lock. */
  bool looking;                 /* there is a thread that has not ended */
  bool policy_done;             /* and looks for no more reads */
  size_t nr_kept;               /* reads that the policy has not had */
  struct met_read kept[READS_MAX];
  struct met_read batch[READS_MAX];

  pthread_t thread;
  bool to_join;                 /* protected by the scanner's joining */
};

struct scanner {
  /* Written before another thread sees them: by scanner_start, and, in the
   * background, config.info and driver.size by the first worker, before it lets
   * another be started.
   */
  struct scanner_config config;
  struct vm_driver driver;
  struct vm_scan *scan;
  struct reads *reads;
  struct source *source;        /* shared by all workers, or NULL */

  /* enum scan_phase; written with the lock held, read without. */
  atomic_int phase;

  /* Held while threads are waited for; the threads never take it. */
  pthread_mutex_t joining;

  pthread_mutex_t lock;
  pthread_cond_t role_free;     /* nobody decides, or the scan is over */
  pthread_cond_t landed;        /* less is in flight, or the scan stops */
  pthread_cond_t stops;         /* the scan stops */
  pthread_cond_t try_now;       /* scanner_try_now, or the scan stops */

  /* Protected by lock. */
  struct worker *workers;       /* config.threads of them */
  unsigned nr_workers;          /* that have been started */
  unsigned max_workers;         /* that may be */
  unsigned nr_ended;
  unsigned nr_idle;             /* that wait to become the decider */
  unsigned in_flight;           /* prefetches */
  bool deciding;                /* there is a decider */
  bool left;                    /* scanner_tell_stop was called */
  bool warned_of_thread;        /* that could not be used */
  struct outage outage;
  struct naming naming;

  struct looker looker;         /* has a lock of its own */
  struct failures failures;     /* these two have locks of their own */
  struct results results;

  /* Decider only. */
  struct reads_waiter waiter;
  struct range pending;         /* asked for and not yet issued */
  bool settled;                 /* nothing was asked for since disk:settle */
  struct ticket ticket;
  struct met_read read_batch[READS_MAX];
  struct vm_failure failure_batch[FAILURES_MAX];
  struct vm_result result_batch[RESULTS_MAX];
  struct source_extents extents; /* for disk:next_data */
  char *pread_buf;              /* VM_PREAD_MAX_BYTES in whole blocks, or NULL */
};

static inline enum scan_phase
scan_phase (struct scanner *s)
{
  return atomic_load (&s->phase);
}

/* -- scanner.c ------------------------------------------------------------- */

/* Go on to a later phase and wake all who wait; an earlier one changes
 * nothing.  Returns whether it was a later one.  The lock must not be held.
 */
extern bool scan_advance (struct scanner *s, enum scan_phase phase);

/* Nothing more will be prefetched: the scan ends in this state.  Changes nothing
 * if it has ended.  Called by the decider or by a worker whose source is of no
 * use; the lock must not be held.
 */
extern void scan_end (struct scanner *s, enum stats_state state);

/* -- looker.c -------------------------------------------------------------- */

/* Tell the map and the recorder of the reads that are new, and keep them for the
 * policy.
 */
extern void looker_look (struct scanner *s);

/* The reads that the policy has not had yet, at most READS_MAX; the caller is the
 * decider.
 */
extern size_t looker_take (struct scanner *s, struct met_read *out);

/* Start looking for the recorder, if there is one that wants reads.  Returns 0 or
 * an errno.
 */
extern int looker_start (struct scanner *s);

/* No more reads are noted, but for the recorder, for as long as it wants them. */
extern void looker_policy_is_done (struct scanner *s);

/* Wait for its thread, which ends once scanner_tell_stop was called. */
extern void looker_join (struct scanner *s);

/* -- workers.c ------------------------------------------------------------- */

/* Start another worker.  The lock must be held.  Returns 0 or an errno. */
extern int worker_start (struct scanner *s);

/* Wait for the threads of a scan that stops to end; for those that are opening
 * their source only if that is said.
 */
extern void workers_join (struct scanner *s, bool also_opening);

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

/* Prefetch a range, at most a block, which the map has in flight; and not any more
 * when this returns.  A failure is counted and kept for the policy, and the source
 * perhaps opened again (see opening.h).
 */
extern void fetch_prefetch (struct scanner *s, struct worker *w,
                            struct range range);

/* Read a range for the policy into buf.  Returns 0 or an errno. */
extern int fetch_read (struct scanner *s, struct worker *w,
                       struct range range, void *buf);

#endif /* SCAN_SCANNER_INTERNAL_H */
