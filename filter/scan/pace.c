/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See pace.h.  What each constant and each rule is worth is measured:
 * docs/performance-parts.md.
 */

#include <math.h>
#include <string.h>

#include "clock.h"
#include "pace.h"

/* How much of what a level adds has to come back as rate; and how much more larger
 * pieces have to bring than the smaller ones.
 */
#define MORE_BRINGS 0.6
#define LARGER_BEATS 1.15

/* A trip that is longer by no more than this has not waited for anything; one this
 * much longer may have waited for a read of the client's that was in flight.
 */
#define CLEARLY 1.1
#define BESIDE 1.75

/* The line is full, or nearly, if bytes alone take this much of the time. */
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

/* How many times what the smallest piece takes a piece may take: a read that meets it
 * waits for it.
 */
#define PIECE_TIMES 2

/* Within such a part of a trip those begin whose threads were woken together. */
#define TOGETHER (1.0 / 32)

/* This many in a row that were near are no accident. */
#define NEAR_IN_A_ROW 4

/* The first transfer of all may go beside this many of the client's pieces. */
#define FIRST_BESIDE 4

/* Trips of one at a time that are compared, if the client may be in their way. */
#define FIRST_TRIES 3

/* How many times what was measured the first pieces may be. */
#define FIRST_TIMES 8

/* The part of its time that a client may lose for nothing (as much again is lost in
 * searches), and the most that is saved up of it and of what it gained, in least
 * trips: a search costs so much.
 */
#define HARM 0.02
#define CREDIT_TRIPS 5

#define ANEW_NS (15 * NS_PER_SECOND)
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
  return least (p->largest, PACE_SMALLEST);
}

/* How long so many bytes take by themselves. */
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
  p->nr_ended = 0;
  p->full = p->missed = (struct pace_sum) { .least_ns = HUGE_VAL };
  p->brought.count = 0;
  p->brought.nr = 0;
  p->owed.nr = 0;
  p->low_is_burst = false;
}

/* Such a search goes on, however long its first transfers have to wait for credit. */
static bool
is_beginning (const struct pace *p)
{
  return p->phase == PACE_FIRST && p->piece > 0;
}

static void
begin_anew (struct pace *p, uint64_t now_ns)
{
  p->anew_ns = now_ns + ANEW_NS;
  p->piece = least (p->largest, PACE_LEAST);
  p->is_by_requests = false;
  p->wider.window = 0;
  p->cannot_narrow = p->was_long = false;
  p->found_serial_ns = 0;
  p->nr_near = p->nr_tries = 0;
  set_level (p, PACE_FIRST, 0);
}

/* So many bytes in whole smallest pieces, one at least. */
static uint32_t
whole_pieces (const struct pace *p, double bytes)
{
  return most (smallest_piece (p),
               (uint32_t) least (bytes, p->largest) / PACE_SMALLEST * PACE_SMALLEST);
}

static void
hold (struct pace *p, double window)
{
  p->window = most (window, p->piece);
  set_level (p, PACE_HOLD, p->window);
  if (!p->is_by_requests)
    p->piece = whole_pieces (p, p->window / PACE_DEPTH);
}

/* Do the bytes alone take most of the time, with so many times what is carried now? */
static bool
is_full (const struct pace *p, double times)
{
  return bytes_ns (p, times * p->bandwidth) >= FULL;
}

static bool
may_be (const struct pace *p, double piece)
{
  return piece <= p->largest &&
    p->least_ns + bytes_ns (p, piece) <= PIECE_TIMES * (p->least_ns + p->serial_ns);
}

/* The same number of larger pieces; of much larger ones if many of those would not
 * fill the line either.
 */
static void
try_larger (struct pace *p, double level)
{
  const uint32_t times = may_be (p, 4.0 * p->piece) && !is_full (p, 4) ? 4 : 2;

  p->low_level = level;
  p->low_piece = p->piece;
  p->piece *= times;
  set_level (p, PACE_LARGER, times * level);
}

static void
end_larger (struct pace *p, double level, uint32_t piece)
{
  double window;

  p->is_by_requests = piece > p->guessed;
  p->piece = p->is_by_requests ? piece : smallest_piece (p);
  window = least (level, window_of (p));
  /* Two went side by side, and do. */
  if (p->is_by_requests && p->low.in_flight >= 2.0 * piece) {
    if (window >= (1 + ROUNDING) * piece)
      window = most (window, 2.0 * piece);
    else
      p->piece = whole_pieces (p, window / 2);
  }
  hold (p, window);
}

static double
rate_of (struct pace_means means)
{
  return means.in_flight / means.trip_ns;
}

static struct pace_means
mean_of (struct pace_sum sum)
{
  return (struct pace_means) {
    .in_flight = sum.in_flight / sum.nr,
    .ours = sum.ours / sum.nr,
    .trip_ns = sum.trip_ns / sum.nr,
  };
}

/* What was in flight, as it counts.  A transfer is charged a whole piece, for where
 * requests are what limits a short one is as good as any.  But no line carries more than
 * its bytes allow: what is beyond that counts only if it was brought.
 */
static struct pace_means
counted (const struct pace *p, struct pace_means m)
{
  double part, most_bytes;

  if (p->brought.nr == 0 || p->is_by_requests || p->serial_ns == 0)
    return m;
  part = least (1, p->brought.count / p->brought.nr / p->piece);
  most_bytes = m.trip_ns / bytes_ns (p, FULL);
  m.in_flight = least (m.in_flight,
                       most (m.in_flight - (1 - part) * m.ours, most_bytes));
  return m;
}

/* Has more in flight brought more? */
static bool
has_grown (struct pace_means low, struct pace_means high)
{
  const double added = high.in_flight / low.in_flight - 1;

  return added > 0 && rate_of (high) >= rate_of (low) * (1 + MORE_BRINGS * added);
}

/* More in flight brings no more, or was not reached.  If bytes are not what limits,
 * larger pieces may.
 */
static void
end_more (struct pace *p, struct pace_means m, bool is_reached)
{
  double window;
  bool is_free;

  p->low = m;
  p->bandwidth = rate_of (m);
  window = most (is_reached ? window_of (p) : m.in_flight, p->piece);
  is_free = !is_reached || !is_full (p, 1);
  p->is_by_requests |= is_free;
  if (is_free && may_be (p, 2.0 * p->piece))
    try_larger (p, window);
  else
    hold (p, window);
}

/* A trip that is longer than it was in the last search may have waited for what is
 * the client's, which was in flight: the least of a few counts.
 */
static bool
is_tried_again (struct pace *p, struct pace_means *m)
{
  const double known_ns = p->least_ns +
    (p->piece < smallest_piece (p) ? 0 : p->serial_ns);

  if (p->nr_tries > 0)
    m->trip_ns = least (m->trip_ns, p->low.trip_ns);
  p->low.trip_ns = m->trip_ns;
  if (m->in_flight == p->piece || p->bandwidth == 0 ||
      m->trip_ns <= CLEARLY * known_ns || ++p->nr_tries == FIRST_TRIES) {
    p->nr_tries = 0;
    return false;
  }
  set_level (p, PACE_FIRST, 0);
  return true;
}

/* Eight of such pieces fill the line if bytes are what limits: those of one take an
 * eighth of the latency.  That is a guess, so a larger one is left to be compared to it.
 */
static uint32_t
first_piece (const struct pace *p, uint32_t count)
{
  double limit = least (p->largest / 2, (double) FIRST_TIMES * count);

  if (p->serial_ns > 0)
    limit = least (limit, p->least_ns / PACE_DEPTH / p->serial_ns *
                   smallest_piece (p));
  return whole_pieces (p, limit);
}

/* What bytes take, from a piece of twice the size of one before: what it took longer than
 * that, or, if that one began beside the client and this one did not, than the smallest of
 * all.  Not known if it is short, or has waited less.
 */
static bool
measure_twice (struct pace *p, double trip_ns, uint32_t count, bool is_beside)
{
  const bool is_alone = !is_beside && !p->before.is_beside;
  double before_ns = p->before.trip_ns;
  uint32_t before = p->before.count;

  if (count < 2 * before || (is_beside && before_ns > CLEARLY * trip_ns))
    return false;
  if (p->before.is_beside && !is_beside) {
    before_ns = p->least_ns;
    before = PACE_LEAST;
  }
  p->serial_ns = most (0, trip_ns - before_ns) * smallest_piece (p) /
    (count - before);
  if (is_alone)
    p->least_ns = most (PACE_NEAR_NS, before_ns - bytes_ns (p, before));
  return true;
}

/* It is known what bytes take: beside so much of the client's, the smallest piece takes
 * this long.
 */
static void
end_first (struct pace *p, double theirs, double trip_ns, uint32_t count)
{
  /* That the line is thin, it says itself. */
  p->serial_ns = most (p->serial_ns, least (p->shown_serial_ns, p->least_ns));
  p->shown_serial_ns = 0;
  p->low = (struct pace_means) { p->piece, p->piece, trip_ns };
  p->piece = p->guessed = first_piece (p, count);
  /* It took so long that the next is due: the rest of it comes first. */
  if (p->moved_ns >= p->anew_ns)
    p->anew_ns = p->moved_ns + ANEW_NS;
  if (p->serial_ns > p->least_ns) {
    p->bandwidth = p->piece / p->serial_ns;
    hold (p, p->piece);
    return;
  }
  set_level (p, PACE_MORE, theirs +
             most (2.0 * p->piece,
                   least (p->window / 2, (double) PACE_DEPTH * p->piece)));
}

/* A piece alone has taken this long; one of the client's was there, too, if more was
 * in flight, and if it has waited for that, that is its time.
 */
static void
decide_first (struct pace *p, struct pace_means m, uint32_t count)
{
  const uint32_t smallest = smallest_piece (p);
  const double theirs = m.in_flight - p->piece;
  const double trip_ns = m.trip_ns;
  const bool is_known = p->least_ns > 0;
  bool is_thin, is_doubtful;

  if (p->piece > smallest) {
    if (!measure_twice (p, trip_ns, count, theirs > 0))
      count = 0;
    p->piece = smallest;
    end_first (p, theirs, p->least_ns + p->serial_ns, count);
    return;
  }
  if (theirs > 0 && p->least_ns > 0 && trip_ns > BESIDE * p->least_ns)
    m.trip_ns = most (p->least_ns, trip_ns - p->least_ns);
  if (is_tried_again (p, &m))
    return;
  if (p->piece < smallest) {
    p->least_ns = m.trip_ns;
    p->piece = smallest;
    set_level (p, PACE_FIRST, 0);
    return;
  }
  if (is_known && count > PACE_LEAST)
    p->serial_ns = most (0, m.trip_ns - p->least_ns) * smallest /
      (count - PACE_LEAST);
  /* A smaller one takes no longer than this, but may have been held up: the first of all
   * is, while a connection is made.
   */
  if (m.trip_ns * CLEARLY < p->least_ns) {
    p->least_ns = m.trip_ns;
    p->piece = least (p->largest, PACE_LEAST);
    set_level (p, PACE_FIRST, 0);
    return;
  }
  p->least_ns = is_known ? least (p->least_ns, m.trip_ns) : m.trip_ns;
  /* Beside a client its bytes may be in that, or a wait for them.  With nobody there, that
   * bytes are all it takes may be said of a smaller one that was there already.
   */
  is_thin = p->serial_ns > p->least_ns;
  is_doubtful = theirs > 0 ? !is_thin && trip_ns > CLEARLY * p->least_ns : is_thin;
  if ((!is_known || is_doubtful) &&
      count > PACE_LEAST && p->largest >= 2 * smallest) {
    p->before.trip_ns = trip_ns;
    p->before.count = count;
    p->before.is_beside = theirs > 0;
    p->piece = 2 * smallest;
    set_level (p, PACE_FIRST, 0);
    return;
  }
  end_first (p, theirs, m.trip_ns, count);
}

static void
decide_more (struct pace *p, struct pace_means m)
{
  double times;

  m = counted (p, m);
  if (!has_grown (p->low, m)) {
    end_more (p, m, true);
    return;
  }
  /* Nothing has waited at the level before. */
  if (!p->low_is_burst)
    p->least_ns = most (p->least_ns, p->low.trip_ns - bytes_ns (p, p->piece));
  /* Nor now, and so few are far from full. */
  times = p->piece <= PACE_SMALLEST &&
    m.trip_ns <= CLEARLY * p->low.trip_ns ? 4 : 2;
  p->low = m;
  set_level (p, PACE_MORE, times * p->level);
}

/* Have larger pieces brought more, and we most of what we should by what bytes take?
 * Their least trip counts: others may have been held up.
 */
static void
decide_larger (struct pace *p, struct pace_means m)
{
  const double should = (double) p->piece / p->low_piece *
    (p->least_ns + bytes_ns (p, p->low_piece)) /
    (p->least_ns + bytes_ns (p, p->piece));

  if (m.in_flight / p->full.least_ns < LARGER_BEATS * p->bandwidth ||
      m.ours / p->full.least_ns <
      MORE_BRINGS * should * p->low.ours / p->low.trip_ns) {
    /* One that is held up says nothing. */
    if (p->full.nr >= 2)
      end_larger (p, p->low_level, p->low_piece);
    return;
  }
  p->low = m;
  p->bandwidth = rate_of (m);
  /* Several of them side by side may fill the line by now, or, beside a client, nearly. */
  if (may_be (p, 2.0 * p->piece) &&
      (p->level < 2.0 * p->piece || !is_full (p, m.in_flight > m.ours ? 1 : FULL)))
    try_larger (p, p->level);
  else
    end_larger (p, p->level, p->piece);
}

/* The window was narrowed: is as much carried?  Then bytes are what limits, and this is
 * what they take, also for the next search, which a burst may tell less.  If not, back.
 * Returns whether it went back.
 */
static bool
judge_narrower (struct pace *p, struct pace_means carried)
{
  const bool is_enough = !has_grown (carried, p->wider.carried) &&
    rate_of (carried) >= FULL * rate_of (p->wider.carried);
  const double window = p->wider.window;

  p->wider.window = 0;
  if (is_enough) {
    if (!p->is_by_requests) {
      if (p->found_serial_ns == 0)
        p->found_serial_ns = most (p->serial_ns, 1);
      p->shown_serial_ns = smallest_piece (p) / rate_of (carried);
      p->serial_ns = most (p->serial_ns, p->shown_serial_ns);
    }
    return false;
  }
  p->piece = p->wider.piece;
  p->is_by_requests = p->wider.is_by_requests;
  p->cannot_narrow = true;
  hold (p, window);
  return true;
}

/* Transfers take clearly longer in the mean than by themselves, and not all of them do:
 * are they in a queue of ours?  What is carried would need less in flight, in smaller
 * pieces if not two of these.  Returns whether the level is another one now.
 */
static bool
narrow (struct pace *p, struct pace_sum sum)
{
  const struct pace_means m = mean_of (sum);
  /* Pieces that are cut short are less than they are charged. */
  const double part = least (1, p->brought.count / p->brought.nr / p->piece);
  const struct pace_means carried = {
    .in_flight = part * m.in_flight, .trip_ns = m.trip_ns,
  };
  double long_ns, window;

  if (p->wider.window > 0 && judge_narrower (p, carried))
    return true;
  long_ns = CLEARLY * GAIN * alone_ns (p);
  if (p->cannot_narrow || least (p->window, m.in_flight) < 2.0 * p->piece ||
      m.trip_ns <= long_ns || sum.least_ns > long_ns) {
    p->was_long = false;
    return false;
  }
  /* If only once, something has stood still for a moment. */
  p->was_long = !p->was_long;
  if (p->was_long) {
    hold (p, p->window);
    return true;
  }
  p->wider.carried = carried;
  p->wider.window = p->window;
  p->wider.piece = p->piece;
  p->wider.is_by_requests = p->is_by_requests;
  p->bandwidth = rate_of (m);
  if (window_of (p) < 2.0 * p->piece) {
    p->bandwidth = rate_of (carried);
    p->is_by_requests = false;
  }
  /* Probes only lead up from two pieces on. */
  window = most (window_of (p), 2.0 * smallest_piece (p));
  hold (p, least (p->window, window));
  return true;
}

static void
decide_hold (struct pace *p, struct pace_means m)
{
  if (narrow (p, p->full))
    return;
  p->low = m;
  if (p->window >= 2.0 * p->piece) {
    set_level (p, PACE_PROBE, p->window + most (p->window / 4, p->piece));
    return;
  }
  /* One at a time waits for nobody, or for one read of the client's.  If it takes longer,
   * what was there already was taken for the line; or, of large pieces, there was a burst
   * in which bytes cost nothing, which the next search knows.
   */
  if (p->full.least_ns > (m.in_flight > m.ours ? 2 : 1) * BESIDE * alone_ns (p)) {
    if (p->piece <= smallest_piece (p)) {
      begin_anew (p, p->moved_ns);
      return;
    }
    p->shown_serial_ns = (p->full.least_ns - p->least_ns) * smallest_piece (p) /
      p->piece;
  }
  hold (p, p->window);
}

static void
decide_probe (struct pace *p, struct pace_means m)
{
  m = counted (p, m);
  if (has_grown (p->low, m)) {
    /* A search like any other.  Its latency is not that of the window, whose trip
     * has a queue in it: by chance a probe may seem to bring more each time.
     */
    p->anew_ns = p->moved_ns + ANEW_NS;
    p->low = m;
    /* What bytes took when the window was narrowed, they do not take. */
    if (p->found_serial_ns > 0)
      p->serial_ns = p->found_serial_ns;
    p->found_serial_ns = p->shown_serial_ns = 0;
    set_level (p, PACE_MORE, 2 * p->level);
    return;
  }
  p->bandwidth = rate_of (m);
  /* Several went side by side, and do again, if need be smaller ones. */
  p->is_by_requests = p->is_by_requests && window_of (p) >= 2.0 * p->piece;
  hold (p, window_of (p));
}

/* Enough is known of this level. */
static void
decide (struct pace *p, struct pace_means m, uint32_t count)
{
  switch (p->phase) {
  case PACE_FIRST: decide_first (p, m, count); break;
  case PACE_MORE: decide_more (p, m); break;
  case PACE_LARGER: decide_larger (p, m); break;
  case PACE_HOLD: decide_hold (p, m); break;
  case PACE_PROBE: decide_probe (p, m); break;
  }
}

/* The level is not reached: too few threads, or nothing to fetch.  What was reached
 * says what it is worth.
 */
static void
give_up_level (struct pace *p, struct pace_means reached)
{
  bool is_more;

  switch (p->phase) {
  case PACE_FIRST:
  case PACE_LARGER:
    break;                      /* whatever is in flight is all of it */
  case PACE_MORE:
    /* If no more was in flight than before, it is not known whether that brings more:
     * what was reached is what there is.
     */
    is_more = reached.in_flight > CLEARLY * p->low.in_flight;
    end_more (p, reached, is_more && !has_grown (p->low, reached));
    break;
  case PACE_HOLD:
    if (narrow (p, p->missed))
      break;
    /* fall through */
  case PACE_PROBE:
    /* It carries at least what it has carried. */
    reached = counted (p, reached);
    if (rate_of (reached) > p->bandwidth) {
      p->bandwidth = rate_of (reached);
      p->window = most (p->window, window_of (p));
    }
    hold (p, p->window);
    break;
  }
}

/* While the level doubles, transfers wait for those of the burst that it begins
 * with.  None waits for less than what is in flight, so the least trip counts.
 */
static struct pace_means
mean_of_level (const struct pace *p)
{
  struct pace_means m = mean_of (p->full);

  if (p->phase == PACE_MORE)
    m.trip_ns = p->full.least_ns;
  return m;
}

/* -- what the client pays, and is paid ------------------------------------- */

/* May a piece be in the client's way? */
static bool
is_tight (const struct pace *p)
{
  return p->level < most (2.0 * p->piece, (double) PACE_DEPTH * smallest_piece (p));
}

/* The part of its trip that a transfer may cost the client: by how many go side by
 * side; once that is known, what a read waits that comes while its bytes are on the line,
 * half of what they take, as a client's reads come one in a trip.
 */
static double
cost_of (const struct pace *p)
{
  const double ns = bytes_ns (p, p->piece);

  if ((p->phase == PACE_HOLD || p->phase == PACE_PROBE) &&
      p->level >= 2.0 * p->piece)
    return least (1, ns * ns / 2 / p->least_ns / (p->least_ns + ns));
  return p->piece / most (p->level, p->piece);
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

/* What the client is charged: all of its reads but one.  A client with one read
 * after the other leaves the line idle while each is on its way, be it large.  As
 * they are counted one after the other there may be bytes of no read for a moment.
 */
static double
charge_client (const struct pace *p, struct pace_client client)
{
  const double bytes = client.begun - client.ended;

  return bytes == 0 ? 0 :
    most (bytes - bytes / most (client.reads, 1), smallest_piece (p));
}

/* So many in a row came at once: from near by, or they were there already. */
static bool
is_near (const struct pace *p)
{
  return p->nr_near >= NEAR_IN_A_ROW;
}

/* In the client's pauses all is free. */
static bool
has_room (const struct pace *p, double client, bool is_paused)
{
  if (!is_paused &&
      (is_near (p) || (is_tight (p) && p->least_ns > 0 && p->credit_ns <= 0)))
    return false;
  if (p->phase == PACE_FIRST && client > FIRST_BESIDE * smallest_piece (p))
    return false;
  if (is_near (p) || p->level < 2.0 * p->piece)
    return p->ours == 0;
  return p->ours + client + p->piece * ROUNDING <= p->level;
}

/* -- the functions of pace.h ----------------------------------------------- */

void
pace_init (struct pace *p, uint32_t largest)
{
  memset (p, 0, sizeof *p);
  p->largest = largest;
  p->credit_ns = HUGE_VAL;
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
  double theirs, pause_ns;
  bool is_paused;

  forget_hung (p, now_ns);
  if (now_ns >= p->anew_ns && !is_beginning (p))
    begin_anew (p, now_ns);
  theirs = charge_client (p, client);
  if (theirs > 0 || client.begun != p->client_begun)
    p->busy_ns = now_ns;
  p->client_begun = client.begun;
  earn (p, client, now_ns);
  /* What comes at once is in nobody's way for long. */
  pause_ns = is_near (p) ? 0 : alone_ns (p);
  is_paused = theirs == 0 && now_ns >= p->busy_ns + most (pause_ns, PACE_NEAR_NS);
  if (!has_room (p, theirs, is_paused))
    return 0;
  *t = (struct pace_transfer) {
    .charge = p->piece, .level_id = p->level_id,
    .cost = !is_paused && is_tight (p) ? cost_of (p) : 0,
  };
  p->ours += t->charge;
  p->nr_ours++;
  p->moved_ns = now_ns;
  return p->piece;
}

void
pace_give (struct pace *p, struct pace_transfer *t)
{
  if (p->last == t)
    p->last = NULL;
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
  if (t->charge == 0)
    return;
  t->ours = p->ours;
  t->in_flight = p->ours + charge_client (p, client);
  t->is_full = p->phase == PACE_LARGER ||
    t->in_flight + p->piece * ROUNDING > p->level;
  /* The last of a burst waits for the others; and where there was more before,
   * or other pieces, it waits for those.
   */
  t->is_settled = (p->nr_ended > 0 || p->nr_ours == 1) &&
    p->nr_older == 0;
  /* Of those that begin together the last stands for all: they end together, or it
   * waits for the others.
   */
  t->weight = 1;
  if (p->last != NULL && p->last->level_id == t->level_id &&
      now_ns - p->first_ns <= alone_ns (p) * TOGETHER) {
    if (p->last->is_settled || !t->is_settled)
      t->weight += p->last->weight;
    p->last->weight = 0;
  }
  else
    p->first_ns = now_ns;
  p->last = t;
}

/* A transfer of this level has ended that waited for what began with it, or before.
 * Even so it may have taken no longer than so many should.  Large ones beside a client are
 * not hurried, as by a bucket that is full at first.
 */
static void
end_unsettled (struct pace *p, const struct pace_transfer *t, double trip_ns)
{
  const struct pace_means m = {
    .in_flight = t->in_flight, .ours = t->ours, .trip_ns = trip_ns,
  };

  if (p->phase == PACE_MORE && t->is_full && has_grown (p->low, m) &&
      (p->piece <= PACE_SMALLEST || t->in_flight == t->ours)) {
    decide_more (p, m);
    p->low_is_burst = true;
  }
}

void
pace_end (struct pace *p, struct pace_transfer *t, uint32_t count,
          uint64_t now_ns)
{
  const double trip_ns = now_ns - t->begun_ns;
  const bool is_counted = t->charge > 0;
  struct pace_sum *sum;
  double needed;

  pace_give (p, t);
  p->nr_ended++;
  p->moved_ns = now_ns;
  if (!is_counted)
    return;
  p->credit_ns -= t->cost * trip_ns;
  /* It says nothing, and those that it stood for have to do so themselves. */
  if ((count == 0 || trip_ns < PACE_NEAR_NS) && t->level_id == p->level_id &&
      t->is_settled && t->weight > 1) {
    p->owed.nr += t->weight - 1;
    p->owed.in_flight = t->in_flight;
    p->owed.ours = t->ours;
    p->owed.is_full = t->is_full;
  }
  if (count == 0)
    return;
  if (trip_ns < PACE_NEAR_NS) {
    p->nr_near++;
    if (p->phase == PACE_FIRST) {
      p->piece = smallest_piece (p);
      p->nr_tries = 0;
    }
    return;
  }
  p->nr_near = 0;
  if (t->level_id != p->level_id)
    return;
  if (!t->is_settled) {
    end_unsettled (p, t, trip_ns);
    return;
  }

  p->brought.count += count;
  p->brought.nr++;
  if (t->weight == 0) {
    if (p->owed.nr == 0)
      return;
    p->owed.nr--;
    t->weight = 1;
    t->in_flight = p->owed.in_flight;
    t->ours = p->owed.ours;
    t->is_full = p->owed.is_full;
  }
  sum = t->is_full ? &p->full : &p->missed;
  sum->in_flight += t->weight * t->in_flight;
  sum->ours += t->weight * t->ours;
  sum->trip_ns += t->weight * trip_ns;
  sum->least_ns = least (sum->least_ns, trip_ns);
  sum->nr += t->weight;
  if (p->phase == PACE_HOLD)
    needed = p->level < 2.0 * p->piece ? FIRST_TRIES : HOLD_TRANSFERS;
  else
    needed = t->is_full ? p->level / p->piece / 2 : most (2, t->in_flight / p->piece);
  if (t->is_full && sum->nr >= needed)
    decide (p, mean_of_level (p), count);
  else if (!t->is_full && sum->nr > needed)
    give_up_level (p, mean_of (*sum));
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
