/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See pace.h. */

#include <math.h>
#include <string.h>

#include "clock.h"
#include "pace.h"

/* How much of what a level adds has to come back as rate. */
#define MORE_BRINGS 0.6

/* How much more larger pieces have to bring than the smaller ones. */
#define LARGER_BEATS 1.15
#define LARGER_TRIES 4

/* A trip that is longer by no more than this has not waited for anything, so the
 * level may grow fourfold; one this much longer may have waited for a read of the
 * client's that was in flight.
 */
#define CLEARLY 1.1
#define BESIDE 1.75

/* Requests may be what limits if the bytes alone take less of the time; and the
 * line is full enough for larger pieces to bring no more if they take this much.
 */
#define BY_BYTES 0.5
#define FULL 0.8

/* How much of a piece there has to be room for, so that whole pieces come close
 * to the window.
 */
#define ROUNDING 0.75

/* The window is this many times what the line carries in a round trip: the
 * client's share is guessed, and with exactly enough in flight some of the line is
 * always idle.
 */
#define GAIN 1.1

/* Transfers at the window between two probes: so few that a change is noticed
 * soon, so many that what a probe adds to the queue is little on average.
 */
#define HOLD_TRANSFERS 28

/* Those that begin within such a part of a trip begin together. */
#define TOGETHER 0.125

/* This many in a row that were near are no accident. */
#define NEAR_IN_A_ROW 4

/* The first transfer of all may go beside this many of the client's pieces. */
#define FIRST_BESIDE 4

/* The part of its time that a client may lose for nothing, and the most that is
 * saved up of it and of what it gained, in least trips: a search costs so much.
 */
#define HARM 0.03
#define CREDIT_TRIPS 4

#define ANEW_MIN_NS (10 * NS_PER_SECOND)
#define ANEW_MAX_NS (80 * NS_PER_SECOND)
#define HUNG_NS (10 * NS_PER_SECOND)

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

/* How long the bytes of a piece take by themselves. */
static double
bytes_ns (const struct pace *p, double bytes)
{
  return p->serial_ns * bytes / smallest_piece (p);
}

/* How long a piece takes where nothing is in its way.  If bytes are what limits,
 * smaller ones would do.
 */
static double
alone_ns (const struct pace *p)
{
  return p->least_ns +
    bytes_ns (p, p->is_by_requests ? p->piece : smallest_piece (p));
}

static double
window_of (const struct pace *p)
{
  return GAIN * p->bandwidth * alone_ns (p);
}

/* -- levels ---------------------------------------------------------------- */

static void
set_level (struct pace *p, enum pace_phase phase, double level)
{
  p->phase = phase;
  p->level = level;
  p->level_id++;
  p->nr_older = p->nr_ours;
  p->nr_ended = p->nr_full = 0;
  p->nr_not_full = 0;
  p->weight = 1;
  p->sum = p->missed = (struct pace_means) { 0, 0 };
  p->nr_missed = 0;
  if (phase != PACE_HOLD || p->is_by_requests)
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
  p->began_ns = now_ns;
  p->anew_ns = now_ns + ANEW_MIN_NS;
  p->piece = p->least_ns > 0 ? smallest_piece (p) :
    least (p->largest, PACE_LEAST);
  p->is_by_requests = false;
  p->nr_near = 0;
  p->theirs = 0;
  set_level (p, PACE_FIRST, 0);
}

static void
set_low (struct pace *p, struct pace_means means)
{
  p->low = means;
  p->low_level = p->level;
  p->low_piece = p->piece;
  p->low_is_first = p->phase == PACE_FIRST;
  p->low_is_burst = false;
}

static void
hold (struct pace *p, double window)
{
  p->window = most (window, p->piece);
  set_level (p, PACE_HOLD, p->window);
}

/* The search is over. */
static void
hold_first (struct pace *p, double window)
{
  const bool same = window > p->window_before * 0.75 &&
    window < p->window_before * 1.25;

  p->interval_ns = same ? least (p->interval_ns * 2, ANEW_MAX_NS) : ANEW_MIN_NS;
  p->anew_ns = p->began_ns + p->interval_ns;
  hold (p, window);
}

/* The same number of larger pieces; of much larger ones if many of those would not
 * fill the line either.
 */
static void
try_larger (struct pace *p)
{
  const uint32_t times = p->low_piece * 4 <= p->largest &&
    p->low_level >= (double) PACE_DEPTH * p->low_piece &&
    bytes_ns (p, 4 * p->bandwidth) < FULL ? 4 : 2;

  p->piece = p->low_piece * times;
  set_level (p, PACE_LARGER, p->low_level * times);
}

/* More in flight brings no more.  If bytes are not what limits, larger pieces may. */
static void
end_more (struct pace *p, double window, bool is_reached)
{
  const bool is_free = !is_reached || bytes_ns (p, p->bandwidth) < BY_BYTES;

  p->window = most (window, p->piece);
  p->is_by_requests |= is_free;
  if (is_free && p->piece * 2 <= p->largest) {
    p->level = p->window;
    set_low (p, (struct pace_means) { p->window, alone_ns (p) });
    try_larger (p);
  }
  else
    hold_first (p, p->window);
}

static void
end_larger (struct pace *p)
{
  p->piece = p->low_piece;
  p->is_by_requests = p->piece > smallest_piece (p);
  hold_first (p, least (p->low_level, window_of (p)));
}

static double
rate_of (struct pace_means means)
{
  return means.in_flight / means.trip_ns;
}

/* Has more in flight brought more? */
static bool
has_grown (const struct pace *p, struct pace_means high)
{
  const double added = high.in_flight / p->low.in_flight - 1;

  return rate_of (high) >= rate_of (p->low) * (1 + MORE_BRINGS * added);
}

/* Have larger pieces?  Their least trip counts: others may have been held up. */
static bool
has_brought_more (const struct pace *p, struct pace_means high)
{
  return high.in_flight / p->least_trip_ns >= LARGER_BEATS * p->bandwidth &&
    p->least_trip_ns <= 2 * (p->least_ns + p->serial_ns);
}

/* A piece alone has taken this long. */
static void
decide_first (struct pace *p, double trip_ns, uint32_t count)
{
  const uint32_t smallest = smallest_piece (p);
  bool is_small, is_same, is_clear;

  /* It has waited for one of the client's. */
  if (p->is_beside && p->least_before_ns > 0 &&
      trip_ns > BESIDE * p->least_before_ns)
    trip_ns = most (p->least_before_ns, trip_ns - p->least_before_ns);
  is_small = p->piece < smallest;
  is_same = p->is_measured && trip_ns > 0.8 * (p->least_ns + p->serial_ns) &&
    trip_ns < 1.25 * (p->least_ns + p->serial_ns);
  if (!is_small && p->is_measured && !is_same) {
    p->is_measured = false;
    p->least_ns = p->serial_ns = 0;
    p->piece = least (p->largest, PACE_LEAST);
    set_level (p, PACE_FIRST, 0);
    return;
  }
  if (p->least_ns == 0)
    p->least_ns = trip_ns;
  else if (trip_ns < p->least_ns)
    p->least_ns = most (trip_ns - p->serial_ns, trip_ns / 2);
  else if (count > PACE_LEAST)
    p->serial_ns = (trip_ns - p->least_ns) * smallest / (count - PACE_LEAST);
  p->least_before_ns = p->least_ns;
  if (is_small) {
    p->piece = least (4.0 * p->piece, smallest);
    set_level (p, PACE_FIRST, 0);
    return;
  }
  p->is_measured = true;
  set_low (p, (struct pace_means) { p->piece, trip_ns });
  if (p->serial_ns > p->least_ns) {
    p->bandwidth = p->piece / p->serial_ns;
    hold_first (p, p->piece);
    return;
  }
  p->low_level = p->piece;
  is_clear = !p->is_beside && trip_ns <= CLEARLY * p->least_ns;
  set_level (p, PACE_MORE, p->theirs +
             most ((is_clear ? 4.0 : 2.0) * p->piece,
                   is_same ? least (p->window_before / 2,
                                    (double) PACE_DEPTH * p->piece) : 0));
}

/* Enough is known of this level. */
static void
decide (struct pace *p, struct pace_means m)
{
  double times;

  switch (p->phase) {
  case PACE_FIRST:
    decide_first (p, m.trip_ns, p->first_count);
    break;

  case PACE_MORE:
  case PACE_PROBE:
    if (has_grown (p, m)) {
      /* That is a search like any other. */
      if (p->phase == PACE_PROBE)
        p->began_ns = p->moved_ns;
      /* A probe may seem to bring more by chance; then the trip of the window,
       * with its queue, would make the window larger each time.
       */
      else if (!p->low_is_burst)
        p->least_ns = most (p->least_ns,
                            p->low.trip_ns - bytes_ns (p, p->piece));
      /* Large pieces are often cut short, and then little is clear. */
      times = p->phase == PACE_MORE && p->piece <= PACE_SMALLEST &&
        m.trip_ns <= CLEARLY * p->low.trip_ns ? 4 : 2;
      set_low (p, m);
      set_level (p, PACE_MORE, times * p->level);
      break;
    }
    p->bandwidth = rate_of (m);
    if (p->phase == PACE_PROBE) {
      /* Several went side by side, and do again, if need be smaller ones. */
      p->is_by_requests = p->is_by_requests && window_of (p) >= 2.0 * p->piece;
      hold (p, window_of (p));
    }
    else
      end_more (p, window_of (p) - (p->low_is_first ? p->theirs : 0), true);
    break;

  case PACE_LARGER:
    if (has_brought_more (p, m)) {
      p->bandwidth = rate_of (m);
      set_low (p, m);
      /* Several of them side by side may fill the line by now. */
      if (p->piece * 2 <= p->largest &&
          (p->level < 2.0 * p->piece ||
           bytes_ns (p, p->bandwidth) < FULL))
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
  struct pace_means reached;

  switch (p->phase) {
  case PACE_FIRST:
    break;
  case PACE_MORE:
    /* What was reached says what it is worth. */
    reached = (struct pace_means) { p->missed.in_flight / p->nr_missed,
                                    p->missed.trip_ns / p->nr_missed };
    p->bandwidth = rate_of (reached);
    if (!has_grown (p, reached))
      end_more (p, least (reached.in_flight, CLEARLY * window_of (p)), true);
    else
      end_more (p, reached.in_flight, false);
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
    .trip_ns = p->phase == PACE_MORE ? p->least_trip_ns :
      p->sum.trip_ns / p->nr_full,
  };
}

static void
add_means (struct pace_means *sum, double in_flight, double trip_ns,
           unsigned weight)
{
  sum->in_flight += weight * in_flight;
  sum->trip_ns += weight * trip_ns;
}

/* A transfer has ended that does not tell what the level brings, or by a share. */
static void
miss_level (struct pace *p, double share)
{
  p->nr_not_full += share;
  if (p->nr_not_full > most (2, p->level / p->piece))
    give_up_level (p);
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

/* -- what the client pays, and is paid ------------------------------------- */

static bool
is_paused (const struct pace *p, double client, uint64_t now_ns)
{
  return client == 0 &&
    now_ns >= p->busy_ns + most (alone_ns (p), PACE_NEAR_NS);
}

/* May a piece be in the client's way? */
static bool
is_tight (const struct pace *p)
{
  return p->phase == PACE_FIRST || p->level < 2.0 * p->piece ||
    p->level < (double) PACE_DEPTH * smallest_piece (p);
}

/* What a transfer may cost the client: a share of its trip while it is not known
 * how many go side by side, else half of the time that its bytes take for the
 * part of the time in which they are on the line.
 */
static void
set_cost (const struct pace *p, struct pace_transfer *t)
{
  const double ns = bytes_ns (p, p->piece);

  if ((p->phase != PACE_HOLD && p->phase != PACE_PROBE) ||
      p->level < 2.0 * p->piece)
    t->cost_share = p->piece / most (p->level, p->piece);
  else
    t->cost_ns = ns * ns / (2 * (p->least_ns + ns));
}

static bool
may_be_in_the_way (const struct pace *p)
{
  if (p->nr_near >= NEAR_IN_A_ROW)
    return false;
  if (!is_tight (p) || p->least_ns == 0)
    return true;
  return p->credit_ns >
    (p->phase == PACE_FIRST ? p->least_ns + p->serial_ns : 0);
}

static void
earn (struct pace *p, struct pace_client client, uint64_t now_ns)
{
  const double hits = client.hits - p->hits;
  const double bytes = client.hit_bytes - p->hit_bytes;

  if (p->least_ns > 0)
    p->credit_ns = least (CREDIT_TRIPS * p->least_ns,
                          p->credit_ns + HARM * (now_ns - p->seen_ns) +
                          hits * p->least_ns + bytes_ns (p, bytes));
  p->hits = client.hits;
  p->hit_bytes = client.hit_bytes;
  p->seen_ns = now_ns;
}

/* -- the functions of pace.h ----------------------------------------------- */

void
pace_init (struct pace *p, uint32_t largest)
{
  memset (p, 0, sizeof *p);
  p->largest = largest;
  p->interval_ns = ANEW_MIN_NS;
  p->credit_ns = HUGE_VAL;
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
has_room (const struct pace *p, double client, bool is_free)
{
  if (!is_free && !may_be_in_the_way (p))
    return false;
  if (p->phase == PACE_FIRST)
    return p->ours == 0 && client <= FIRST_BESIDE * smallest_piece (p);
  if (p->nr_near >= NEAR_IN_A_ROW || p->level < 2.0 * p->piece)
    return p->ours == 0;
  return p->ours + client + p->piece * ROUNDING <= p->level;
}

/* What has been on its way for so long, with nothing else moving, is lost: nobody
 * may wait for it for ever.
 */
static void
forget_hung (struct pace *p, uint64_t now_ns)
{
  if (p->nr_ours == 0 || now_ns < p->moved_ns + HUNG_NS)
    return;
  p->forgotten_id = p->level_id;
  p->ours = 0;
  p->nr_ours = 0;
  begin_anew (p, now_ns);
}

uint32_t
pace_take (struct pace *p, struct pace_transfer *t, struct pace_client client,
           uint64_t now_ns)
{
  double theirs;
  bool is_free;

  forget_hung (p, now_ns);
  if (now_ns >= p->anew_ns)
    begin_anew (p, now_ns);
  theirs = charge_client (p, client);
  if (theirs > 0 || client.begun != p->client_begun)
    p->busy_ns = now_ns;
  p->client_begun = client.begun;
  if (p->phase == PACE_FIRST)
    p->theirs = most (p->theirs, theirs);
  earn (p, client, now_ns);
  is_free = is_paused (p, theirs, now_ns);
  if (!has_room (p, theirs, is_free))
    return 0;
  *t = (struct pace_transfer) { .charge = p->piece, .level_id = p->level_id };
  if (!is_free && is_tight (p))
    set_cost (p, t);
  p->ours += t->charge;
  p->nr_ours++;
  p->moved_ns = now_ns;
  return p->piece;
}

void
pace_give (struct pace *p, struct pace_transfer *t)
{
  if (t->charge == 0)
    return;
  if (t->level_id > p->forgotten_id) {
    p->ours -= t->charge;
    p->nr_ours--;
    if (t->level_id < p->level_id)
      p->nr_older--;
  }
  t->charge = 0;
}

void
pace_begin (struct pace *p, struct pace_transfer *t, struct pace_client client,
            uint64_t now_ns)
{
  t->begun_ns = now_ns;
  t->in_flight = p->ours + charge_client (p, client);
  t->is_full = p->phase == PACE_LARGER ||
    t->in_flight + p->piece * ROUNDING > p->level;
  t->number = ++p->nr_begun;
  p->last_begun_ns = now_ns;
  /* The last of a burst waits for the others; and where there was more before,
   * or other pieces, it waits for those.
   */
  t->is_settled = (p->nr_ended > 0 || p->nr_ours == 1) &&
    p->nr_older == 0;
  if (p->phase == PACE_FIRST)
    p->is_beside = client.reads > 0;
}

void
pace_end (struct pace *p, struct pace_transfer *t, uint32_t count,
          uint64_t now_ns)
{
  const double trip_ns = now_ns - t->begun_ns;
  const double charge = t->charge;
  struct pace_means m;
  unsigned weight;

  pace_give (p, t);
  p->nr_ended++;
  p->moved_ns = now_ns;
  if (charge == 0)
    return;
  p->credit_ns -= t->cost_ns + t->cost_share * trip_ns;
  if (count == 0)
    return;
  if (p->piece > PACE_SMALLEST && count < charge) {
    if (p->phase == PACE_LARGER)
      miss_level (p, 0.25);
    return;
  }
  if (trip_ns < PACE_NEAR_NS) {
    p->nr_near++;
    if (p->phase == PACE_FIRST)
      p->piece = smallest_piece (p);
    return;
  }
  p->nr_near = 0;
  if (t->level_id != p->level_id)
    return;
  if (!t->is_settled) {
    /* Even the last of a burst, which waits for the others, may have taken no
     * longer than so many should.
     */
    m = (struct pace_means) { t->in_flight, trip_ns };
    if (p->phase == PACE_MORE && p->piece <= PACE_SMALLEST &&
        t->is_full && has_grown (p, m)) {
      decide (p, m);
      p->low_is_burst = true;
    }
    return;
  }

  /* Of those that begin together the last stands for all: they end together, or it
   * waits for the others.
   */
  if (t->number < p->nr_begun &&
      p->last_begun_ns - t->begun_ns <= trip_ns * TOGETHER) {
    p->weight++;
    return;
  }
  weight = p->weight;
  p->weight = 1;
  p->first_count = count;
  if (t->is_full) {
    add_means (&p->sum, t->in_flight, trip_ns, weight);
    p->least_trip_ns = p->nr_full == 0 ? trip_ns :
      least (p->least_trip_ns, trip_ns);
    p->nr_full += weight;
    if (is_known (p))
      decide (p, means_of_level (p));
  }
  else {
    add_means (&p->missed, t->in_flight, trip_ns, weight);
    p->nr_missed += weight;
    miss_level (p, weight);
  }
}

double
pace_latency_ns (const struct pace *p)
{
  return alone_ns (p);
}

uint64_t
pace_retry_ns (const struct pace *p, uint64_t now_ns)
{
  return now_ns + most (PACE_RETRY_MIN_NS,
                        least (PACE_RETRY_MAX_NS, alone_ns (p) / 8));
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
