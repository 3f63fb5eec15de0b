/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See outage.h. */

#include <errno.h>

#include "cleanup.h"
#include "outage.h"

void
outage_init (struct outage *outage)
{
  pthread_mutex_init (&outage->lock, NULL);
  clock_cond_init (&outage->ended);
}

void
outage_destroy (struct outage *outage)
{
  pthread_cond_destroy (&outage->ended);
  pthread_mutex_destroy (&outage->lock);
}

enum outage_turn
outage_connect (struct outage *outage)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&outage->lock);

  if (outage->is_tried)
    return OUTAGE_NOT_NOW;
  if (!outage->is_known)
    return OUTAGE_NONE;
  outage->is_tried = true;
  return OUTAGE_TRY;
}

enum outage_turn
outage_request (struct outage *outage)
{
  const uint64_t now_ns = clock_now_ns ();
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&outage->lock);

  if (outage->is_tried) {
    while (outage->is_tried)
      if (clock_wait_until (&outage->ended, &outage->lock,
                            now_ns + OUTAGE_REST_NS) == ETIMEDOUT)
        return OUTAGE_NOT_NOW;
    return OUTAGE_TRIED;
  }
  if (outage->is_known && now_ns < outage->next_ns)
    return OUTAGE_NOT_NOW;
  outage->is_tried = true;
  return OUTAGE_TRY;
}

bool
outage_end (struct outage *outage, enum outage_turn turn, bool is_open)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&outage->lock);
  const bool is_news = !is_open && !outage->is_known;

  outage->is_known = !is_open;
  outage->next_ns = clock_now_ns () + OUTAGE_REST_NS;
  if (turn == OUTAGE_TRY) {
    outage->is_tried = false;
    pthread_cond_broadcast (&outage->ended);
  }
  return is_news;
}
