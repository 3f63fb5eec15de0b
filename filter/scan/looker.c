/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Who looks at the reads of a scan's queue: the decider, and where they are
 * recorded a thread of its own, for a decider may wait for long where clients
 * fill the line.  What was looked at is kept for the policy.  See
 * scanner-internal.h.
 */

#include <sched.h>
#include <string.h>

#include "cleanup.h"
#include "clock.h"
#include "scanner-internal.h"

/* How long the thread rests after something was read, before it looks: the queue is for
 * clients of fifty thousand reads a second.
 */
#define LOOK_NS (NS_PER_SECOND / 200)

static uint64_t
end_of (const struct met_read *read)
{
  return range_end (read->range);
}

/* Keep a read for the policy, by the rule of the queue. */
static void
keep (struct looker *l, const struct met_read *read)
{
  if (l->nr_kept < READS_MAX)
    l->kept[l->nr_kept++] = *read;
  else if (end_of (&l->kept[READS_MAX-1]) < end_of (read))
    l->kept[READS_MAX-1] = *read;
}

/* The looker's lock must be held. */
static void
look (struct scanner *s)
{
  struct looker *l = &s->looker;
  const size_t taken = reads_take (s->reads, l->batch);
  size_t i, n = 0;

  for (i = 0; i < taken; ++i) {
    if (l->batch[i].failed) {
      map_unread (s->config.map, l->batch[i].range);
      failures_add_read (&s->failures, l->batch[i].range);
      continue;
    }
    map_read (s->config.map, l->batch[i].range);
    keep (l, &l->batch[i]);
    l->batch[n++] = l->batch[i];
  }
  if (n > 0 && recorder_is_on (s->config.recorder))
    recorder_add (s->config.recorder, l->batch, n, reads_take_lost (s->reads));
}

void
looker_look (struct scanner *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->looker.lock);

  look (s);
}

/* Nobody may be looking for as long as a source is down, and what fails then is what
 * has to be fetched later: who finds the queue full empties it.
 */
void
scanner_read_failed (struct scanner *s, uint64_t offset, uint32_t count)
{
  while (!reads_failed (s->reads, offset, count)) {
    looker_look (s);
    sched_yield ();             /* for a reader that is just adding its own */
  }
}

size_t
looker_take (struct scanner *s, struct met_read *out)
{
  struct looker *l = &s->looker;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&l->lock);
  size_t n;

  look (s);
  n = l->nr_kept;
  memcpy (out, l->kept, n * sizeof *out);
  l->nr_kept = 0;
  return n;
}

/* -- the thread ------------------------------------------------------------ */

/* Wait for reads.  Returns false once the client has left. */
static bool
wait_for_reads (struct scanner *s, struct reads_waiter *waiter)
{
  uint64_t next_ns;

  reads_wait (s->reads, waiter, CLOCK_NEVER);
  next_ns = clock_now_ns () + LOOK_NS;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  while (!s->left && clock_wait_until (&s->stops, &s->lock, next_ns) == 0)
    ;
  return !s->left;
}

static void *
run (void *vp)
{
  struct scanner *s = vp;
  struct reads_waiter waiter = { 0 };
  bool go_on;

  pthread_setname_np (pthread_self (), "nbdkit-look");
  do {
    go_on = wait_for_reads (s, &waiter);
    looker_look (s);
  } while (go_on && recorder_is_on (s->config.recorder));

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->looker.lock);

  s->looker.looking = false;
  if (s->looker.policy_done)
    reads_stop (s->reads);
  return NULL;
}

int
looker_start (struct scanner *s)
{
  struct looker *l = &s->looker;
  int err;

  if (!recorder_is_on (s->config.recorder))
    return 0;
  l->looking = true;
  err = pthread_create (&l->thread, NULL, run, s);
  if (err != 0)
    l->looking = false;
  l->to_join = err == 0;
  return err;
}

void
looker_policy_is_done (struct scanner *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->looker.lock);

  s->looker.policy_done = true;
  if (!s->looker.looking)
    reads_stop (s->reads);
}

void
looker_join (struct scanner *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->joining);

  if (s->looker.to_join)
    pthread_join (s->looker.thread, NULL);
  s->looker.to_join = false;
}
