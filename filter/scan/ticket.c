/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See ticket.h. */

#include "budget.h"
#include "cleanup.h"
#include "clock.h"
#include "line.h"
#include "scanner-internal.h"
#include "ticket.h"

/* Wait for this time, or until the scan stops. */
static void
wait_until (struct scanner *s, uint64_t until_ns)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  while (scan_phase (s) == SCAN_GOES_ON && clock_now_ns () < until_ns)
    clock_wait_until (&s->stops, &s->lock, until_ns);
}

/* Leave a source alone that has failed several times in a row. */
static void
leave_alone (struct scanner *s)
{
  const uint64_t pause_ns = failures_pause_ns (&s->failures);

  if (pause_ns > 0)
    wait_until (s, clock_now_ns () + pause_ns);
}

/* See that this much of the rate is paid for. */
static void
pay (struct scanner *s, uint32_t count)
{
  struct ticket *t = &s->ticket;

  if (count > t->paid)
    wait_until (s, budget_pay (s->config.budget, count - t->paid,
                               clock_now_ns ()));
  else
    budget_refund (s->config.budget, t->paid - count);
  t->paid = count;
}

bool
ticket_take (struct scanner *s, bool is_known)
{
  struct ticket *t = &s->ticket;
  uint64_t left;
  uint32_t most;

  if (t->is_held)
    return true;
  leave_alone (s);
  if (scan_phase (s) != SCAN_GOES_ON)
    return true;
  left = budget_left (s->config.budget);
  if (left == 0)
    return false;
  most = s->config.block;
  if (s->config.line != NULL)
    most = line_take (s->config.line, &t->transfer, &s->phase,
                      is_known ? NULL : s->reads);
  if (most == 0)
    return true;
  t->is_held = true;
  t->most = most < left ? most : left;
  pay (s, t->last < t->most ? t->last : t->most);
  return true;
}

uint32_t
ticket_room (const struct scanner *s)
{
  return s->ticket.most > 0 ? s->ticket.most : s->config.block;
}

uint32_t
ticket_use (struct scanner *s, struct worker *w, uint32_t count)
{
  struct ticket *t = &s->ticket;

  pay (s, count);
  if (scan_phase (s) == SCAN_GOES_ON)
    count = budget_draw (s->config.budget, count);
  else
    count = 0;
  /* Paid for also where there is no room to give back. */
  pay (s, count);
  if (count == 0) {
    ticket_give (s);
    return 0;
  }
  w->transfer = t->transfer;
  *t = (struct ticket) { .last = count, .most = t->most };
  return count;
}

void
ticket_give (struct scanner *s)
{
  struct ticket *t = &s->ticket;

  if (!t->is_held)
    return;
  pay (s, 0);
  if (s->config.line != NULL)
    line_give (s->config.line, &t->transfer);
  t->is_held = false;
}

void
ticket_cancel (struct worker *w)
{
  if (w->scanner->config.line != NULL)
    line_give (w->scanner->config.line, &w->transfer);
}

void
ticket_begin (struct worker *w)
{
  if (w->scanner->config.line != NULL)
    line_begin (w->scanner->config.line, &w->transfer);
}

void
ticket_end (struct worker *w, uint32_t count)
{
  if (w->scanner->config.line != NULL)
    line_end (w->scanner->config.line, &w->transfer, count);
}
