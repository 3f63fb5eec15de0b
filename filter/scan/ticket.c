/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See ticket.h. */

#include "budget.h"
#include "cleanup.h"
#include "clock.h"
#include "scanner-internal.h"
#include "ticket.h"

bool
ticket_take (struct scanner *s)
{
  uint64_t until_ns;

  if (s->ticket.bytes > 0 || scan_phase (s) != SCAN_GOES_ON)
    return true;
  s->ticket.bytes = budget_take (s->config.budget, s->config.block, &until_ns);
  if (s->ticket.bytes == 0)
    return false;
  if (until_ns > 0) {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

    while (scan_phase (s) == SCAN_GOES_ON && clock_now_ns () < until_ns)
      clock_wait_until (&s->stops, &s->lock, until_ns);
  }
  return true;
}

void
ticket_use (struct scanner *s, uint32_t bytes)
{
  budget_give (s->config.budget, s->ticket.bytes - bytes);
  s->ticket.bytes = 0;
}

void
ticket_give (struct scanner *s)
{
  ticket_use (s, 0);
}
