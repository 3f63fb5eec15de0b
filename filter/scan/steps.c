/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* What a policy asks for, one function for each request.  See
 * scanner-internal.h.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "cleanup.h"
#include "clock.h"
#include "escape.h"
#include "scanner-internal.h"
#include "stats.h"

/* The shortest disk:wait, and disk:settle where there was one just before, so that a
 * policy can't spin.
 */
#define WAIT_MIN_NS (NS_PER_SECOND / 1000)

/* A walk over a vast hole rests for as long after each stretch of it, so that
 * one without an end doesn't keep a processor busy.
 */
#define WALK_REST_NS (NS_PER_SECOND / 100)

/* -D scan.decisions=1: every decision of a policy. */
NBDKIT_DLL_PUBLIC int scan_debug_decisions;

static void
step_prefetch (struct scanner *s, struct worker *w,
               const struct vm_request *request, struct vm_answer *answer)
{
  s->pending = request->range;
}

static void
step_wait (struct scanner *s, struct worker *w,
           const struct vm_request *request, struct vm_answer *answer)
{
  const uint64_t least = clock_now_ns () + WAIT_MIN_NS;

  reads_wait (s->reads, &s->waiter, request->until_ns > least ? request->until_ns : least);
}

/* Wait until no prefetch is in flight, or the scan stops. */
static void
step_settle (struct scanner *s, struct worker *w,
             const struct vm_request *request, struct vm_answer *answer)
{
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

    while (s->in_flight > 0 && scan_phase (s) == SCAN_GOES_ON)
      pthread_cond_wait (&s->landed, &s->lock);
  }
  /* A policy that asks for nothing else would spin. */
  if (s->settled)
    reads_wait (s->reads, &s->waiter, clock_now_ns () + WAIT_MIN_NS);
}

static void
step_next_data (struct scanner *s, struct worker *w,
                const struct vm_request *request, struct vm_answer *answer)
{
  const uint64_t from = request->range.offset;
  const uint64_t offset = source_next_data (w->source, &s->extents, from,
                                            &answer->more);

  if (offset > from)
    map_hole (s->config.map, (struct range) { from, offset - from });
  if (offset < s->driver.size) {
    answer->type = VM_OFFSET;
    answer->offset = offset;
  }
  if (answer->more) {
    ticket_give (s);
    reads_wait (s->reads, &s->waiter, clock_now_ns () + WALK_REST_NS);
  }
}

/* Returns 0 or an errno. */
static int
read_within_limit (struct scanner *s, struct worker *w, struct range range)
{
  uint32_t count = 0;

  /* The policy may have been asked without room, for its reads. */
  if (ticket_take (s, true))
    count = ticket_use (s, w, range.count);
  if (count == range.count)
    return fetch_read (s, w, range, s->pread_buf);
  /* Stopped, or the limit is used up: if the policy hears of it, then in its last turn. */
  ticket_cancel (w);
  return ENOSPC;
}

static void
step_pread (struct scanner *s, struct worker *w,
            const struct vm_request *request, struct vm_answer *answer)
{
  const uint32_t minimum = s->config.info.minimum;
  const struct range range = range_widen (request->range, minimum, s->driver.size);

  if (s->pread_buf == NULL)
    s->pread_buf = malloc (VM_PREAD_MAX_BYTES + 2 * (minimum - 1));
  answer->err = s->pread_buf == NULL
    ? ENOMEM : read_within_limit (s, w, range);
  if (answer->err != 0) {
    answer->type = VM_ERRNO;
    return;
  }
  answer->type = VM_BYTES;
  answer->bytes = s->pread_buf + (request->range.offset - range.offset);
  answer->length = request->range.count;
}

/* The requests.  A new one is a line here, a function above, and its check in
 * vm.c.
 */
static const struct step {
  const char *name;             /* in the debug log */
  bool waits;                   /* for something else than the source */
  /* Called by the decider, with no lock held. */
  void (*run) (struct scanner *s, struct worker *w,
               const struct vm_request *request, struct vm_answer *answer);
} steps[] = {
  [VM_PREFETCH]  = { "prefetch",  false, step_prefetch },
  [VM_WAIT]      = { "wait",      true,  step_wait },
  [VM_SETTLE]    = { "settle",    true,  step_settle },
  [VM_NEXT_DATA] = { "next_data", false, step_next_data },
  [VM_PREAD]     = { "pread",     false, step_pread },
};

static void
log_request (const struct step *step, const struct vm_request *request,
             bool dropped)
{
  const char *why = dropped ? " (dropped: client has gone)" : "";

  if (step->waits)
    nbdkit_debug ("scan: policy: %s%s", step->name, why);
  else
    nbdkit_debug ("scan: policy: %s offset=0x%" PRIx64 " count=0x%" PRIx64 "%s",
                  step->name, request->range.offset, request->range.count, why);
}

/* Wait until no prefetch is in flight; scanner_stop would wait as well. */
static void
let_land (struct scanner *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  while (s->in_flight > 0)
    pthread_cond_wait (&s->landed, &s->lock);
}

/* End the scan because of this, which is not a request. */
static void
end (struct scanner *s, enum vm_request_type why)
{
  enum stats_state state = STATS_WAITING;
  char error[ESCAPE_TEXT_MAX];

  if (why == VM_FAILED) {
    nbdkit_error ("scan: %s", escape (ESCAPE_TEXT, vm_error (s->config.vm),
                                      error, sizeof error));
    state = STATS_FAILED;
  }
  else if (why == VM_GONE) {
    if (vm_has_failed (s->config.vm))
      state = STATS_FAILED;
  }
  else if (scan_phase (s) == SCAN_LAST_TURN)
    nbdkit_debug ("scan: exiting background thread on %s",
                  s->config.background ? "server exit" : "connection close");
  else {
    let_land (s);
    nbdkit_debug ("scan: finished scanning the plugin");
    state = STATS_FINISHED;
  }
  scan_end (s, state);
}

bool
steps_take_room (struct scanner *s)
{
  if (failures_is_full (&s->failures)) {
    ticket_give (s);
    scan_end (s, STATS_FAILED);
    return false;
  }
  if (ticket_take (s, s->pending.count > 0))
    return true;
  nbdkit_debug ("scan: scan-limit has been reached");
  scan_end (s, STATS_FINISHED);
  return false;
}

bool
steps_ask_policy (struct scanner *s, struct worker *w)
{
  struct vm_answer answer = { .type = VM_NOTHING };
  struct vm_request request;
  const struct step *step;

  do {
    if (scan_phase (s) == SCAN_OVER)
      return false;
    if (scan_phase (s) == SCAN_STOPS)
      scan_advance (s, SCAN_LAST_TURN);
    request = vm_resume (s->scan, &answer);
    if (request.type >= sizeof steps / sizeof *steps) {
      end (s, request.type);
      return false;
    }
    step = &steps[request.type];
    if (scan_debug_decisions)
      log_request (step, &request, scan_phase (s) == SCAN_LAST_TURN);
    if (scan_phase (s) == SCAN_LAST_TURN) {
      end (s, VM_FINISHED);
      return false;
    }
    answer.type = VM_NOTHING;
    if (step->waits)
      ticket_give (s);
    step->run (s, w, &request, &answer);
    s->settled = request.type == VM_SETTLE;
    if (!steps_take_room (s))
      return false;
  } while (request.type != VM_PREFETCH);
  return true;
}
