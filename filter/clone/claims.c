/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See claims.h. */

#include <string.h>

#include "claims.h"
#include "cleanup.h"

/* A read is not joined that takes longer than so many of its size have taken, if it hangs
 * (CLAIMS_HANGS_NS).
 */
#define HANGS_TRIPS 4

/* On the stack of who waits; protected by the lock. */
struct waiter {
  pthread_cond_t cond;
  bool done;
  struct waiter *next;
};

void
claims_init (struct claims *claims, struct map *map)
{
  memset (claims, 0, sizeof *claims);
  pthread_mutex_init (&claims->lock, NULL);
  claims->map = map;
}

void
claims_destroy (struct claims *claims)
{
  pthread_mutex_destroy (&claims->lock);
}

/* -- with the lock held ---------------------------------------------------- */

static bool
overlaps (const struct claim *claim, uint64_t first, uint64_t end)
{
  return claim->first < end && first < claim->end;
}

static void
add (struct claims *claims, struct claim *claim, enum claim_kind kind,
     uint64_t first, uint64_t end)
{
  *claim = (struct claim) {
    .first = first, .end = end, .kind = kind,
    .number = ++claims->last_number, .next = claims->list,
  };
  claims->list = claim;
}

/* Wait until this claim ends, or until this time.  The lock is given up
 * meanwhile, so the list is another one afterwards.  Returns whether it has
 * ended.
 */
static bool
wait_for (struct claims *claims, struct claim *claim, uint64_t deadline_ns)
{
  struct waiter waiter = { .next = claim->waiters }, **p;

  clock_cond_init (&waiter.cond);
  claim->waiters = &waiter;
  while (!waiter.done)
    if (clock_wait_until (&waiter.cond, &claims->lock, deadline_ns) != 0)
      break;
  if (!waiter.done) {
    for (p = &claim->waiters; *p != &waiter; p = &(*p)->next)
      ;
    *p = waiter.next;
  }
  pthread_cond_destroy (&waiter.cond);
  return waiter.done;
}

static unsigned
class_of (uint64_t blocks)
{
  return 63 - __builtin_clzll (blocks);
}

/* What a read of so many blocks takes at least, 0 if it isn't known: of fewer
 * it may be.
 */
static uint64_t
least_trip_ns (const struct claims *claims, uint64_t blocks)
{
  unsigned n = class_of (blocks);

  while (n > 0 && claims->trip_ns[n] == 0)
    n--;
  return claims->trip_ns[n];
}

/* Should it end as soon as a read of so many blocks would that begins now?  One
 * that is overdue by as much is no more to be relied on.
 */
static bool
ends_soon (const struct claims *claims, const struct claim *claim,
           uint64_t blocks, uint64_t now_ns)
{
  const uint64_t trip_ns = claims->trip_ns[class_of (claim->end
                                                     - claim->first)];
  const uint64_t own_ns = least_trip_ns (claims, blocks);
  const uint64_t end_ns = claim->begun_ns + trip_ns;

  return trip_ns > 0 && end_ns <= now_ns + own_ns && now_ns <= end_ns + own_ns;
}

/* May it be joined?  Then *deadline_ns is until when.  One that takes far longer than
 * such have is of a connection that hangs, maybe, and one's own may not.
 */
static bool
may_join (const struct claims *claims, const struct claim *claim,
          struct join join, uint64_t now_ns, uint64_t *deadline_ns)
{
  const uint64_t blocks = claim->end - claim->first;
  uint64_t hangs_ns;

  if (claim->kind != CLAIM_READ || claim->spoilt_end > 0)
    return false;
  if (blocks <= join.blocks) {
    hangs_ns = HANGS_TRIPS * claims->trip_ns[class_of (blocks)];
    if (hangs_ns < CLAIMS_HANGS_NS)
      hangs_ns = CLAIMS_HANGS_NS;
    *deadline_ns = claim->begun_ns + hangs_ns;
    return now_ns < *deadline_ns;
  }
  if (join.own == 0 || !ends_soon (claims, claim, join.own, now_ns))
    return false;
  *deadline_ns = now_ns + least_trip_ns (claims, join.own);
  return true;
}

static void
end_claim (struct claims *claims, struct claim *claim)
{
  struct claim **p;
  struct waiter *w, *next;

  for (p = &claims->list; *p != claim; p = &(*p)->next)
    ;
  *p = claim->next;
  /* With the lock held, as the waiters are on stacks of their own. */
  for (w = claim->waiters; w != NULL; w = next) {
    next = w->next;
    w->done = true;
    pthread_cond_signal (&w->cond);
  }
}

/* -- the functions --------------------------------------------------------- */

enum claim_result
claims_begin_read (struct claims *claims, struct claim *claim, uint64_t first,
                   uint64_t *end, struct join join, uint64_t now_ns)
{
  const struct claim *c;
  uint64_t deadline_ns;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&claims->lock);

  /* It may have become present since `end` was looked for, and be it no more. */
  if (first >= *end || map_has (claims->map, first, first + 1))
    return CLAIM_PRESENT;
  for (c = claims->list; c != NULL; c = c->next) {
    if (!overlaps (c, first, *end) || !may_join (claims, c, join, now_ns, &deadline_ns))
      continue;
    if (c->first <= first) {
      if (c->end < *end)
        *end = c->end;
      claim->number = c->number;
      return CLAIM_JOIN;
    }
    *end = c->first;
  }
  add (claims, claim, CLAIM_READ, first, *end);
  claim->begun_ns = now_ns;
  return CLAIM_MADE;
}

void
claims_begin_ask (struct claims *claims, struct claim *claim, uint64_t first,
                  uint64_t end)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&claims->lock);

  add (claims, claim, CLAIM_ASK, first, end);
}

void
claims_join (struct claims *claims, uint64_t first, uint64_t end,
             struct join join, uint64_t last, uint64_t now_ns)
{
  struct claim *c;
  uint64_t deadline_ns;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&claims->lock);

  do {
    first = map_find (claims->map, first, end, false);
    for (c = claims->list; c != NULL; c = c->next)
      if (c->number <= last && overlaps (c, first, end) &&
          may_join (claims, c, join, now_ns, &deadline_ns))
        break;
  } while (c != NULL && wait_for (claims, c, deadline_ns));
}

bool
claims_begin_store (struct claims *claims, struct claim *claim,
                    const struct claim *read, uint64_t first, uint64_t end)
{
  const struct claim *c;
  uint64_t stop;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&claims->lock);

 again:
  if (first < end)
    first = map_find (claims->map, first, end, false);
  if (first >= end)
    return false;
  if (first >= read->spoilt_first && first < read->spoilt_end) {
    first = read->spoilt_end;
    goto again;
  }
  stop = map_find (claims->map, first, end, true);
  if (first < read->spoilt_first && read->spoilt_first < stop)
    stop = read->spoilt_first;
  for (c = claims->list; c != NULL; c = c->next) {
    if (c->kind < CLAIM_STORE || !overlaps (c, first, stop))
      continue;
    if (c->first <= first) {
      first = c->end;
      goto again;
    }
    stop = c->first;
  }
  add (claims, claim, CLAIM_STORE, first, stop);
  return true;
}

/* With the lock held: wait until nobody stores there and, if `alone`, nobody
 * writes; or until then.
 */
static void
wait_for_others (struct claims *claims, uint64_t first, uint64_t end,
                 bool alone, uint64_t deadline_ns)
{
  struct claim *c;

  do {
    for (c = claims->list; c != NULL; c = c->next)
      if (overlaps (c, first, end) &&
          (c->kind == CLAIM_STORE || (alone && c->kind == CLAIM_WRITE)))
        break;
  } while (c != NULL && wait_for (claims, c, deadline_ns));
}

void
claims_begin_write (struct claims *claims, struct claim *claim,
                    uint64_t first, uint64_t end, bool alone)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&claims->lock);

  wait_for_others (claims, first, end, alone, CLOCK_NEVER);
  add (claims, claim, CLAIM_WRITE, first, end);
}

void
claims_settle (struct claims *claims, uint64_t block, uint64_t deadline_ns)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&claims->lock);

  wait_for_others (claims, block, block + 1, true, deadline_ns);
}

/* With the lock held. */
static void
spoil (struct claims *claims, uint64_t first, uint64_t end)
{
  struct claim *c;

  for (c = claims->list; c != NULL; c = c->next)
    if (c->kind < CLAIM_STORE && overlaps (c, first, end)) {
      if (c->spoilt_end == 0 || first < c->spoilt_first)
        c->spoilt_first = first;
      if (end > c->spoilt_end)
        c->spoilt_end = end;
    }
}

void
claims_spoil (struct claims *claims, uint64_t first, uint64_t end)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&claims->lock);

  spoil (claims, first, end);
}

void
claims_distrust (struct claims *claims, struct map *map)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&claims->lock);

  claims->map = map;
  spoil (claims, 0, UINT64_MAX);
}

void
claims_end (struct claims *claims, struct claim *claim)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&claims->lock);

  end_claim (claims, claim);
}

void
claims_end_read (struct claims *claims, struct claim *claim, uint64_t now_ns)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&claims->lock);
  uint64_t *trip_ns = &claims->trip_ns[class_of (claim->end - claim->first)];
  const uint64_t ns = now_ns - claim->begun_ns;

  /* Of the last few, so that a line that changes is noticed. */
  *trip_ns = *trip_ns == 0 ? ns : (3 * *trip_ns + ns) / 4;
  end_claim (claims, claim);
}
