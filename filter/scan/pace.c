/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See pace.h. */

#include <string.h>

#include "clock.h"
#include "pace.h"

/* How much of what a level adds has to come back as rate; larger pieces also
 * take longer where nothing queues.
 */
#define MORE_BRINGS 0.6
#define LARGER_BRINGS 0.4

/* And they have to beat what more of the smaller ones have brought. */
#define LARGER_BEATS 1.2
#define LARGER_TRIES 4

/* A transfer of so much of the smallest piece is short enough to tell. */
#define SHORT 0.75

/* How much of a piece there has to be room for, so that whole pieces come close
 * to the window.
 */
#define ROUNDING 0.75

/* The window is this many times what the line carries in a round trip, where that
 * is a few pieces and only bytes are what limits: the client's share is guessed,
 * and with exactly enough in flight some of the line is always idle.
 */
#define GAIN 1.1
#define GAIN_PIECES 4

/* Transfers at the window between two probes: so few that a change is noticed
 * soon, so many that what a probe adds to the queue is little on average.
 */
#define HOLD_TRANSFERS 32

/* This many in a row that were near are no accident. */
#define NEAR_IN_A_ROW 4

/* The first transfer of all may go beside this many of the client's pieces. */
#define FIRST_BESIDE 4

#define ANEW_MIN_NS (10 * NS_PER_SECOND)
#define ANEW_MAX_NS (80 * NS_PER_SECOND)

static inline double
least (double a, double b)
{
  return a < b ? a : b;
}

static inline double
most (double a, double b)
{
  return a > b ? a : b;
}

static uint32_t
smallest_piece (const struct pace *p)
{
  return p->largest < PACE_SMALLEST ? p->largest : PACE_SMALLEST;
}

/* -- levels ---------------------------------------------------------------- */

static void
set_level (struct pace *p, enum pace_phase phase, double level)
{
  p->phase = phase;
  p->level = level;
  p->level_id++;
  p->nr_older = p->nr_ours;
  p->nr_ended = p->nr_full = p->nr_not_full = 0;
  p->sum = (struct pace_means) { 0, 0 };
  if (phase == PACE_LARGER || p->is_larger)
    return;
  while (p->piece * 2 <= p->largest && p->piece * 2 * PACE_DEPTH <= level)
    p->piece *= 2;
  while (p->piece > PACE_SMALLEST && p->piece * PACE_DEPTH > level)
    p->piece /= 2;
}

static void
begin_anew (struct pace *p, uint64_t now_ns)
{
  p->window_before = p->window;
  p->anew_ns = now_ns + p->interval_ns;
  p->piece = smallest_piece (p);
  p->is_larger = false;
  p->nr_near = 0;
  set_level (p, PACE_FIRST, 0);
}

static void
set_low (struct pace *p, struct pace_means means)
{
  p->low = means;
  p->low_level = p->level;
  p->low_piece = p->piece;
  p->low_is_first = p->phase == PACE_FIRST;
}

static void
hold (struct pace *p, double window)
{
  p->window = most (window, p->piece);
  set_level (p, PACE_HOLD, p->window);
}

/* There was room for two pieces.  That more in flight took much longer may have
 * had to do with something else, so smaller pieces before none but in pauses.
 */
static void
hold_probed (struct pace *p, double window)
{
  while (p->piece > PACE_SMALLEST && window < 2.0 * p->piece)
    p->piece /= 2;
  hold (p, window);
}

/* The search is over. */
static void
hold_first (struct pace *p, double window)
{
  const bool same = window > p->window_before * 0.75 &&
    window < p->window_before * 1.25;

  p->interval_ns = same ? least (p->interval_ns * 2, ANEW_MAX_NS) : ANEW_MIN_NS;
  hold (p, window);
}

static void
try_larger (struct pace *p)
{
  p->piece = p->low_piece * 2;
  set_level (p, PACE_LARGER, p->low_level * 2);
}

/* More does not bring more: hold the window, unless there are so few pieces that
 * larger ones may.
 */
static void
end_more (struct pace *p)
{
  if (!p->is_larger && p->low_piece * 2 <= p->largest &&
      p->window < 2 * PACE_DEPTH * smallest_piece (p))
    try_larger (p);
  else
    hold_first (p, p->window);
}

static double
rate_of (struct pace_means means)
{
  return means.in_flight / means.trip_ns;
}

static double
window_of (const struct pace *p)
{
  const double product = p->bandwidth * p->latency_ns;

  return p->is_larger || product < GAIN_PIECES * smallest_piece (p) ? product :
    GAIN * product;
}

/* Has more in flight brought more? */
static bool
has_grown (const struct pace *p, struct pace_means high)
{
  const double brings = p->phase == PACE_LARGER ? LARGER_BRINGS : MORE_BRINGS;
  const double added = high.in_flight / p->low.in_flight - 1;

  return rate_of (high) >= rate_of (p->low) * (1 + brings * added);
}

/* Have larger pieces? */
static bool
has_brought_more (const struct pace *p, struct pace_means high)
{
  return has_grown (p, high) &&
    rate_of (high) >= LARGER_BEATS * p->bandwidth &&
    high.trip_ns <= 2 * p->smallest_ns;
}

static void
end_larger (struct pace *p)
{
  p->piece = p->low_piece;
  hold_first (p, p->is_larger ? p->low_level : p->window);
}

/* Enough is known of this level. */
static void
decide (struct pace *p, struct pace_means m)
{
  switch (p->phase) {
  case PACE_FIRST:
    p->smallest_ns = p->latency_ns = m.trip_ns;
    set_low (p, m);
    p->low_level = p->piece;
    set_level (p, PACE_MORE, 2 * m.in_flight);
    break;

  case PACE_MORE:
  case PACE_PROBE:
    if (has_grown (p, m)) {
      /* A probe may seem to bring more by chance; then the trip of the window,
       * with its queue, would make the window larger each time.
       */
      if (p->phase == PACE_MORE)
        p->latency_ns = p->low.trip_ns;
      set_low (p, m);
      set_level (p, PACE_MORE, 2 * p->level);
      break;
    }
    p->bandwidth = rate_of (m);
    p->latency_ns = least (p->latency_ns, p->low.trip_ns);
    if (p->phase == PACE_PROBE) {
      hold_probed (p, window_of (p));
      break;
    }
    /* The client may have been in the first level; then that was too much. */
    p->window = p->low_is_first ? p->piece : window_of (p);
    if (p->low_is_first)
      p->low.in_flight = p->piece;
    end_more (p);
    break;

  case PACE_LARGER:
    if (has_brought_more (p, m)) {
      p->is_larger = true;
      p->bandwidth = rate_of (m);
      p->latency_ns = m.trip_ns;
      set_low (p, m);
      if (p->piece * 2 <= p->largest)
        try_larger (p);
      else
        end_larger (p);
    }
    else
      end_larger (p);
    break;

  case PACE_HOLD:
    set_low (p, m);
    if (p->window < 2 * p->piece)
      hold (p, p->window);
    else
      set_level (p, PACE_PROBE,
                 p->window + most (p->window / 4, p->piece));
    break;
  }
}

/* The level is not reached: too few threads, or nothing to fetch. */
static void
give_up_level (struct pace *p)
{
  switch (p->phase) {
  case PACE_FIRST:
    break;
  case PACE_MORE:
    /* Ours alone: of a client it is not known whether it has filled what it is
     * charged.
     */
    p->window = p->last_ours;
    p->low_level = p->last;
    p->bandwidth = rate_of (p->low);
    end_more (p);
    break;
  case PACE_LARGER:
    end_larger (p);
    break;
  case PACE_HOLD:
  case PACE_PROBE:
    hold (p, p->window);
    break;
  }
}

/* How many transfers a level takes to be known. */
static double
transfers_needed (const struct pace *p)
{
  const double pieces = p->level / p->piece;

  switch (p->phase) {
  case PACE_FIRST:
    return 1;
  case PACE_LARGER:
    return pieces / 4;
  case PACE_MORE:
  case PACE_PROBE:
    return most (2, pieces / 2);
  default:
    return most (HOLD_TRANSFERS, 2 * pieces);
  }
}

/* While the level doubles, transfers wait for those of the burst that it begins
 * with.  None waits for less than what is in flight, so the least trip counts.
 */
static struct pace_means
means_of_level (const struct pace *p)
{
  return (struct pace_means) {
    .in_flight = p->sum.in_flight / p->nr_full,
    .trip_ns = p->phase == PACE_HOLD || p->phase == PACE_PROBE ?
      p->sum.trip_ns / p->nr_full : p->least_trip_ns,
  };
}

/* A transfer has ended that does not tell what the level brings. */
static void
miss_level (struct pace *p)
{
  if (++p->nr_not_full > most (2, p->level / p->piece))
    give_up_level (p);
}

/* Has a transfer of less than the smallest piece taken less time by as much?  Then
 * the line is thin, and larger pieces bring nothing.
 */
static bool
is_by_bytes (const struct pace *p, uint32_t count, double trip_ns)
{
  const double share = (double) count / smallest_piece (p);

  return share <= SHORT && trip_ns <= p->smallest_ns * 2 * share / (1 + share);
}

/* Is enough known of the level?  One transfer may tell that more brings more,
 * but one that was held up by something else does not tell that it doesn't.
 */
static bool
is_known (const struct pace *p)
{
  if (p->nr_full < transfers_needed (p))
    return false;
  return p->phase != PACE_LARGER || p->nr_full >= LARGER_TRIES ||
    has_brought_more (p, means_of_level (p));
}

/* -- the functions of pace.h ----------------------------------------------- */

void
pace_init (struct pace *p, uint32_t largest)
{
  memset (p, 0, sizeof *p);
  p->largest = largest;
  p->interval_ns = ANEW_MIN_NS;
}

/* What the client is charged: all of its reads but one.  A client with one read
 * after the other leaves the line idle while each is on its way, be it large.
 */
static double
charge_client (const struct pace *p, struct pace_client client)
{
  const double bytes = client.begun - client.ended;
  const double mean = client.reads > 0 ? bytes / client.reads : bytes;

  return bytes == 0 ? 0 :
    most (bytes - mean, most (smallest_piece (p), p->piece / 2));
}

static bool
has_room (const struct pace *p, double client, uint64_t now_ns)
{
  const bool in_pauses = p->nr_near >= NEAR_IN_A_ROW ||
    (p->phase != PACE_FIRST && p->level < 2 * p->piece);

  if (in_pauses)
    return p->ours == 0 && client == 0 &&
      now_ns >= p->busy_ns + most (p->latency_ns, PACE_NEAR_NS);
  if (p->phase == PACE_FIRST)
    return p->ours == 0 && client <= FIRST_BESIDE * p->piece;
  return p->ours + client + p->piece * ROUNDING <= p->level;
}

uint32_t
pace_take (struct pace *p, struct pace_transfer *t, struct pace_client client,
           uint64_t now_ns)
{
  const double theirs = charge_client (p, client);

  if (now_ns >= p->anew_ns)
    begin_anew (p, now_ns);
  if (theirs > 0 || client.begun != p->client_begun)
    p->busy_ns = now_ns;
  p->client_begun = client.begun;
  if (!has_room (p, theirs, now_ns))
    return 0;
  t->charge = p->piece;
  p->ours += t->charge;
  p->nr_ours++;
  t->level_id = p->level_id;
  return p->piece;
}

void
pace_give (struct pace *p, struct pace_transfer *t)
{
  if (t->charge == 0)
    return;
  p->ours -= t->charge;
  p->nr_ours--;
  if (t->level_id < p->level_id)
    p->nr_older--;
  t->charge = 0;
}

void
pace_begin (struct pace *p, struct pace_transfer *t, struct pace_client client,
            uint64_t now_ns)
{
  t->begun_ns = now_ns;
  t->ours = p->ours;
  t->in_flight = p->ours + charge_client (p, client);
  t->is_full = t->in_flight + p->piece * ROUNDING > p->level;
  /* The last of a burst waits for the others; and where there was more before,
   * or other pieces, it waits for those.
   */
  t->is_settled = (p->nr_ended > 0 || p->nr_ours == 1) &&
    (p->nr_older == 0 || p->phase == PACE_MORE || p->phase == PACE_PROBE);
}

void
pace_end (struct pace *p, struct pace_transfer *t, uint32_t count,
          uint64_t now_ns)
{
  const double trip_ns = now_ns - t->begun_ns;
  const double charge = t->charge;

  pace_give (p, t);
  p->nr_ended++;
  if (count == 0 || charge == 0)
    return;
  if (p->piece > PACE_SMALLEST && count < charge) {
    if (p->phase == PACE_LARGER && is_by_bytes (p, count, trip_ns))
      miss_level (p);
    return;
  }
  if (trip_ns < PACE_NEAR_NS) {
    p->nr_near++;
    return;
  }
  p->nr_near = 0;
  if (t->level_id != p->level_id || !t->is_settled)
    return;

  p->last = t->in_flight;
  p->last_ours = t->ours;
  if (t->is_full) {
    p->nr_full++;
    p->sum.in_flight += t->in_flight;
    p->sum.trip_ns += trip_ns;
    p->least_trip_ns = p->nr_full == 1 ? trip_ns :
      least (p->least_trip_ns, trip_ns);
    if (is_known (p))
      decide (p, means_of_level (p));
  }
  else
    miss_level (p);
}

uint64_t
pace_retry_ns (const struct pace *p, uint64_t now_ns)
{
  return now_ns + most (PACE_RETRY_MIN_NS,
                        least (PACE_RETRY_MAX_NS, p->latency_ns / 8));
}

const char *
pace_phase_name (enum pace_phase phase)
{
  static const char *const names[] = {
    [PACE_FIRST] = "first", [PACE_MORE] = "more", [PACE_LARGER] = "larger",
    [PACE_HOLD] = "hold", [PACE_PROBE] = "probe",
  };

  return names[phase];
}
