/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* pace, one event after the other: what it makes of transfers that begin and end just so.
 * What it finds on a line is in test-pace.c.
 */

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "check.h"
#include "clock.h"
#include "pace.h"

#define MS (NS_PER_SECOND / 1000)
#define BLOCK (2 * 1024 * 1024)

/* One transfer after the other, from the start of a search: what each brings, how long it
 * takes, and whether it begins beside a read.  Returns the size of the next.
 */
struct first {
  uint32_t count;
  unsigned trip_ms;
  bool is_beside;
};

static uint32_t
piece_after (struct pace *pace, uint32_t largest, const struct first *first,
             unsigned nr)
{
  const struct pace_client beside = { .begun = PACE_LEAST, .reads = 1 };
  const struct pace_client nobody = { 0 };
  struct pace_transfer t;
  uint64_t now_ns = NS_PER_SECOND;
  unsigned i;

  pace_init (pace, largest);
  for (i = 0; i < nr; ++i) {
    const struct pace_client client = first[i].is_beside ? beside : nobody;

    pace_take (pace, &t, client, now_ns);
    pace_begin (pace, &t, client, now_ns);
    now_ns += first[i].trip_ms * MS;
    pace_end (pace, &t, first[i].count, now_ns);
  }
  return pace->piece;
}

static void
test_first_transfers (void)
{
  const uint32_t K = 1024;
  const struct {
    const char *what;
    struct first first[3];
    uint32_t largest, piece;
    enum pace_phase phase;
    double serial_ms;           /* of 64K */
  } cases[] = {
    { "bytes cost nothing",
      { { 4 * K, 20, false }, { 64 * K, 20, true } },
      BLOCK, 512 * K, PACE_MORE, 0 },
    { "but it was short",
      { { 4 * K, 20, false }, { 4 * K, 20, true } },
      BLOCK, 64 * K, PACE_MORE, 0 },
    { "64K took longer, with nobody there",
      { { 4 * K, 20, false }, { 64 * K, 35, false } },
      BLOCK, 64 * K, PACE_MORE, 16 },
    { "beside a read: is it the bytes?",
      { { 4 * K, 20, false }, { 64 * K, 40, true } },
      BLOCK, 128 * K, PACE_FIRST, 0 },
    { "it is not",
      { { 4 * K, 20, false }, { 64 * K, 40, true }, { 128 * K, 40, true } },
      BLOCK, 1024 * K, PACE_MORE, 0 },
    { "it is",
      { { 4 * K, 20, false }, { 64 * K, 40, true }, { 128 * K, 60, true } },
      BLOCK, 64 * K, PACE_MORE, 20 },
    { "it is not, with nobody there",
      { { 4 * K, 20, false }, { 64 * K, 40, true }, { 128 * K, 22, false } },
      BLOCK, 128 * K, PACE_MORE, 2 * 64 / 124.0 },
    { "it waited less",
      { { 4 * K, 20, false }, { 64 * K, 34, true }, { 128 * K, 22, true } },
      BLOCK, 64 * K, PACE_MORE, 14 * 64 / 60.0 },
    { "it was short",
      { { 4 * K, 20, false }, { 64 * K, 34, true }, { 4 * K, 34, true } },
      BLOCK, 64 * K, PACE_MORE, 14 * 64 / 60.0 },
    { "it was not much longer",
      { { 4 * K, 20, false }, { 64 * K, 34, true }, { 68 * K, 36, true } },
      BLOCK, 64 * K, PACE_MORE, 14 * 64 / 60.0 },
    { "the one before was short",
      { { 4 * K, 20, false }, { 2 * K, 40, true }, { 4 * K, 20, false } },
      BLOCK, 64 * K, PACE_MORE, 0 },
    { "it took less than the first of all, which is tried again",
      { { 4 * K, 320, false }, { 64 * K, 85, false } },
      BLOCK, 4 * K, PACE_FIRST, 0 },
    { "is a thin line one?",
      { { 4 * K, 20, false }, { 64 * K, 80, false } },
      BLOCK, 128 * K, PACE_FIRST, 64 },
    { "it is one",
      { { 4 * K, 20, false }, { 64 * K, 80, false }, { 128 * K, 140, false } },
      BLOCK, 64 * K, PACE_HOLD, 60 },
    { "the first was there already",
      { { 4 * K, 2, false }, { 64 * K, 35, false }, { 128 * K, 40, false } },
      BLOCK, 64 * K, PACE_MORE, 5 },
    { "so was it, and at once",
      { { 4 * K, 0, false }, { 64 * K, 35, false }, { 128 * K, 40, false } },
      BLOCK, 64 * K, PACE_MORE, 5 },
    { "some larger ones are allowed",
      { { 4 * K, 20, false }, { 64 * K, 20, true } },
      512 * K, 256 * K, PACE_MORE, 0 },
    { "no larger ones are",
      { { 4 * K, 20, false }, { 64 * K, 34, true } },
      64 * K, 64 * K, PACE_MORE, 14 * 64 / 60.0 },
  };
  static struct pace pace;
  uint32_t piece;
  size_t i;

  for (i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
    piece = piece_after (&pace, cases[i].largest, cases[i].first,
                         cases[i].first[2].count > 0 ? 3 : 2);
    check (piece == cases[i].piece && pace.phase == cases[i].phase &&
           fabs (pace.serial_ns / MS - cases[i].serial_ms) < 0.01,
           "%s: pieces of %" PRIu32 "K, 64K take %.2f ms", cases[i].what, piece / K,
           pace.serial_ns / MS);
    check (pace.phase == PACE_FIRST || pace.low.in_flight <= PACE_SMALLEST,
           "%s: more is compared to what was measured, %.0fK", cases[i].what,
           pace.low.in_flight / K);
  }
}

/* A transfer that never ends is not waited for. */
static void
test_hung (void)
{
  static struct pace pace;
  struct pace_transfer hung, t;
  const struct pace_client nobody = { 0 };

  pace_init (&pace, BLOCK);
  check (pace_take (&pace, &hung, nobody, NS_PER_SECOND) > 0, "one is taken");
  pace_begin (&pace, &hung, nobody, NS_PER_SECOND);
  check (pace_take (&pace, &t, nobody, 5 * NS_PER_SECOND) == 0,
         "no other while it is on its way");
  check (pace_take (&pace, &t, nobody, 12 * NS_PER_SECOND) > 0,
         "another once it seems lost");
  pace_begin (&pace, &t, nobody, 12 * NS_PER_SECOND);
  pace_end (&pace, &hung, PACE_LEAST, 12 * NS_PER_SECOND + MS);
  check (pace.ours == t.charge && pace.nr_ours == 1,
         "that it ends after all takes nothing from the other: %.0f", pace.ours);
  pace_end (&pace, &t, PACE_LEAST, 12 * NS_PER_SECOND + 2 * MS);
  check (pace.ours == 0 && pace.nr_ours == 0, "nothing is in flight");
}

/* Bytes take a little, so that pieces are of 64K in these. */
static uint64_t
trip_ns (const struct pace *pace)
{
  return (pace->piece < PACE_SMALLEST ? 69 : 79) * MS;
}

/* All that has room begins, of so many threads.  Returns how many. */
static unsigned
begin_all (struct pace *pace, struct pace_transfer *t, unsigned threads, uint64_t now_ns)
{
  const struct pace_client nobody = { 0 };
  unsigned nr;

  for (nr = 0; nr < threads && pace_take (pace, &t[nr], nobody, now_ns) > 0; ++nr)
    pace_begin (pace, &t[nr], nobody, now_ns);
  return nr;
}

static void
end_all (struct pace *pace, struct pace_transfer *t, unsigned nr, uint64_t now_ns)
{
  unsigned i;

  for (i = 0; i < nr; ++i)
    pace_end (pace, &t[i], pace->piece, now_ns);
}

/* Threads that are woken in any order: of the transfers that began together some end, and
 * others begin, before the rest of them end.  A level that they fill counts as filled.
 * Returns whether all were, up to what so many threads can have in flight.
 */
static bool
is_filled_each_time (unsigned seed)
{
  enum { THREADS = 16 };
  static struct pace pace;
  static struct pace_transfer t[THREADS];
  const struct pace_client nobody = { 0 };
  uint64_t ends_ns[THREADS] = { 0 }, now_ns;
  unsigned step, i, first;

  srandom (seed);
  pace_init (&pace, BLOCK);
  for (step = 0; pace.phase <= PACE_MORE && step < 100; ++step) {
    /* Four wake-ups, and a trip later the next. */
    now_ns = (step / 4 + 1) * 80 * MS + step % 4 * MS / 4;
    first = random () % THREADS;
    for (i = 0; i < THREADS; ++i) {
      const unsigned n = (first + 7 * i) % THREADS;

      if (ends_ns[n] > 0 && ends_ns[n] <= now_ns &&
          (step % 4 == 3 || random () % 2 == 0)) {
        pace_end (&pace, &t[n], pace.piece, now_ns);
        ends_ns[n] = 0;
      }
    }
    for (i = 0; i < THREADS; ++i)
      if (ends_ns[i] == 0 && pace_take (&pace, &t[i], nobody, now_ns) > 0) {
        pace_begin (&pace, &t[i], nobody, now_ns);
        ends_ns[i] = now_ns + trip_ns (&pace);
      }
  }
  return pace.phase > PACE_MORE &&
    pace.low_level >= (THREADS - 1.0) * pace.low_piece;
}

static void
test_woken_in_any_order (void)
{
  unsigned seed, nr = 0;

  for (seed = 1; seed <= 200; ++seed)
    nr += is_filled_each_time (seed);
  check (nr == 200, "of 200 searches with 16 threads %u reach 16 in flight", nr);
}

/* What is in the way of nothing is no part of it: a read of the policy's that was let pass
 * without room, from a thread that is gone when the next begins.
 */
static void
test_without_room (void)
{
  static struct pace pace;
  struct pace_transfer none = { 0 }, t;
  const struct pace_client nobody = { 0 };

  pace_init (&pace, BLOCK);
  pace_begin (&pace, &none, nobody, NS_PER_SECOND);
  check (pace.last == NULL, "what has no room does not stand for others");
  pace_end (&pace, &none, PACE_LEAST, NS_PER_SECOND + MS);
  check (pace_take (&pace, &t, nobody, 2 * NS_PER_SECOND) > 0, "one is taken");
  pace_begin (&pace, &t, nobody, 2 * NS_PER_SECOND);
  check (pace.last == &t, "which does");
  pace_end (&pace, &t, PACE_LEAST, 3 * NS_PER_SECOND);
  check (pace.last == NULL, "until it ends");
}

/* Beside each transfer are others that begin a moment later, and say nothing of the line:
 * they fail, or find all there.
 */
static void
test_nothing_to_say (void)
{
  enum { THREADS = 16 };
  static struct pace pace;
  static struct pace_transfer t[THREADS], empty;
  const struct pace_client nobody = { 0 };
  unsigned round, nr, fails;
  uint64_t now_ns;

  for (fails = 0; fails < 2; ++fails) {
    pace_init (&pace, BLOCK);
    for (round = 1; round < 40 && pace.phase <= PACE_MORE; ++round) {
      now_ns = round * 80 * MS;
      for (nr = 0; nr < THREADS && pace_take (&pace, &t[nr], nobody, now_ns) > 0; ++nr) {
        pace_begin (&pace, &t[nr], nobody, now_ns);
        if (pace_take (&pace, &empty, nobody, now_ns) > 0) {
          pace_begin (&pace, &empty, nobody, now_ns + 1000);
          pace_end (&pace, &empty, fails ? 0 : pace.piece, now_ns + 2000);
        }
      }
      end_all (&pace, t, nr, now_ns + trip_ns (&pace));
    }
    check (pace.phase > PACE_MORE, "transfers count beside some that %s: level %.0f",
           fails ? "fail" : "end at once", pace.level);
  }
  check (pace.low_level >= (THREADS - 1.0) * pace.low_piece,
         "and beside failures as what was in flight with them: %.1f pieces",
         pace.low_level / pace.low_piece);
}

/* One transfer fails, that stands for those which began with it. */
static void
test_one_fails (void)
{
  enum { THREADS = 8 };
  static struct pace pace;
  static struct pace_transfer t[THREADS];
  bool has_failed = false;
  unsigned round, nr;
  uint64_t now_ns;

  pace_init (&pace, BLOCK);
  for (round = 1; round < 40 && pace.phase <= PACE_MORE; ++round) {
    now_ns = round * 80 * MS;
    nr = begin_all (&pace, t, THREADS, now_ns);
    if (nr == THREADS && !has_failed) {
      pace_end (&pace, &t[--nr], 0, now_ns + MS);
      has_failed = true;
    }
    end_all (&pace, t, nr, now_ns + trip_ns (&pace));
  }
  check (has_failed && pace.low_level >= (THREADS - 1.0) * pace.low_piece,
         "one failure does not give a level up: %.1f pieces",
         pace.low_level / pace.low_piece);
}

/* Those of a burst wait for each other, so the first that does not is not made to stand
 * for them.
 */
static void
test_after_a_burst (void)
{
  enum { THREADS = 8 };
  static struct pace pace;
  static struct pace_transfer t[THREADS], none;
  const struct pace_client nobody = { 0 };
  unsigned round, nr = 0;
  uint64_t now_ns = 0;

  pace_init (&pace, BLOCK);
  for (round = 1; round < 10; ++round) {
    now_ns = round * 80 * MS;
    for (nr = 0; nr < THREADS && pace_take (&pace, &t[nr], nobody, now_ns) > 0; ++nr) {
      if (nr == THREADS - 1) {
        pace_begin (&pace, &none, nobody, now_ns);
        pace_end (&pace, &none, PACE_LEAST, now_ns);
      }
      pace_begin (&pace, &t[nr], nobody, now_ns);
    }
    if (nr == THREADS)
      break;
    end_all (&pace, t, nr, now_ns + trip_ns (&pace));
  }
  check (nr == THREADS && t[nr - 2].weight == 0 && t[nr - 1].weight == 1,
         "after a burst one stands for itself");
  end_all (&pace, t, nr, now_ns + trip_ns (&pace));
}

/* Larger pieces seem to bring much, as some of the first come out of a bucket, and the
 * window has no room for two.  They went side by side, and smaller ones do.
 */
static void
test_two_side_by_side (void)
{
  enum { THREADS = 16 };
  static struct pace pace;
  static struct pace_transfer t[THREADS];
  uint64_t now_ns = NS_PER_SECOND;
  unsigned round, nr;

  pace_init (&pace, BLOCK);
  for (round = 0; round < 20 && pace.phase != PACE_HOLD; ++round) {
    nr = begin_all (&pace, t, THREADS, now_ns);
    if (pace.phase == PACE_MORE)
      now_ns += pace.level < BLOCK ? 108 * MS : 170 * MS;
    else
      now_ns += pace.phase == PACE_LARGER ? 118 * MS : 80 * MS;
    end_all (&pace, t, nr, now_ns);
  }
  check (pace.phase == PACE_HOLD && pace.piece < BLOCK && pace.piece > BLOCK / 4 &&
         pace.window >= 2.0 * pace.piece,
         "two pieces go side by side: %" PRIu32 " of %.0f", pace.piece, pace.window);
}

/* A line that bytes fill, 64K in 10 ms; and once it has been measured, transfers that bring
 * little and so are in nobody's way.  It is no wider for that than bytes allow: the next
 * ones may bring whole pieces.
 */
static void
test_short (void)
{
  enum { THREADS = 64 };
  static struct pace pace;
  static struct pace_transfer t[THREADS];
  const double most = 1.1 / 0.8 * 79 / 10 * PACE_SMALLEST;
  uint64_t now_ns = NS_PER_SECOND;
  bool is_short = false;
  unsigned round, nr, i;

  pace_init (&pace, BLOCK);
  for (round = 0; round < 100; ++round) {
    nr = begin_all (&pace, t, THREADS, now_ns);
    now_ns += is_short || nr < 8 ? trip_ns (&pace) : 10 * MS * nr;
    for (i = 0; i < nr; ++i)
      pace_end (&pace, &t[i], is_short ? PACE_LEAST : pace.piece, now_ns);
    is_short |= pace.phase == PACE_HOLD;
  }
  check (is_short && pace.window <= most, "short pieces: a window of %.0f of at most %.0f",
         pace.window, most);
}

/* Threads that begin again as soon as there is room, in turn: every fourth transfer
 * takes 79 ms, the others so long.  Until so many have ended.
 */
struct threads {
  struct pace pace;
  struct pace_transfer t[16];
  uint64_t until_ns[16];        /* 0: none is on its way */
  uint64_t now_ns;
  unsigned order;
};

static void
run_threads (struct threads *s, unsigned nr, uint64_t late_ns)
{
  const struct pace_client nobody = { 0 };
  unsigned i, next;

  while (nr-- > 0) {
    for (i = next = 0; i < 16; ++i) {
      if (s->until_ns[i] == 0 &&
          pace_take (&s->pace, &s->t[i], nobody, s->now_ns) > 0) {
        pace_begin (&s->pace, &s->t[i], nobody, s->now_ns);
        s->until_ns[i] = s->now_ns + 69 * MS;
        if (s->pace.piece >= PACE_SMALLEST)
          s->until_ns[i] = s->now_ns + (s->order++ % 4 ? late_ns : 79 * MS);
        s->now_ns += 4 * MS;    /* not together */
      }
      if (s->until_ns[i] > 0 &&
          (s->until_ns[next] == 0 || s->until_ns[i] < s->until_ns[next]))
        next = i;
    }
    if (s->now_ns < s->until_ns[next])
      s->now_ns = s->until_ns[next];
    s->until_ns[next] = 0;
    pace_end (&s->pace, &s->t[next], s->pace.piece, s->now_ns);
  }
}

/* Most take long: less in flight is tried.  If they take less long then they were in a
 * queue, and if not, all of it is in flight again.
 */
static void
test_narrowed (void)
{
  static struct threads s;
  unsigned is_queue, i;
  double window;

  for (is_queue = 0; is_queue < 2; ++is_queue) {
    s = (struct threads) { .now_ns = NS_PER_SECOND };
    pace_init (&s.pace, BLOCK);
    for (i = 0; i < 200 && s.pace.phase != PACE_HOLD; ++i)
      run_threads (&s, 1, 79 * MS);
    window = s.pace.window;
    for (i = 0; i < 400 && s.pace.wider.window == 0; ++i)
      run_threads (&s, 1, 200 * MS);
    check (s.pace.wider.window > 0 && s.pace.window < 0.8 * s.pace.wider.window,
           "most take long: %.0f of %.0f in flight", s.pace.window, window);
    window = s.pace.wider.window;
    for (i = 0; i < 400 && s.pace.wider.window > 0; ++i)
      run_threads (&s, 1, is_queue ? 79 * MS : 200 * MS);
    if (is_queue)
      check (s.pace.window < window && !s.pace.cannot_narrow,
             "less brings as much: %.0f in flight", s.pace.window);
    else
      check (s.pace.window == window && s.pace.cannot_narrow,
             "less brings less: %.0f in flight again", s.pace.window);
  }
}

/* What is there already takes no time: it goes on in the shortest pauses of a client that
 * waits for a source far away.
 */
static void
test_there_already (void)
{
  static struct pace pace;
  struct pace_transfer t;
  struct pace_client client = { 0 };
  uint64_t now_ns = NS_PER_SECOND;
  unsigned i;

  pace_init (&pace, BLOCK);
  for (i = 0; i < 30 && pace_take (&pace, &t, client, now_ns) > 0; ++i) {
    pace_begin (&pace, &t, client, now_ns);
    now_ns += i < 20 ? 80 * MS : MS / 10;
    pace_end (&pace, &t, t.charge, now_ns);
  }
  check (i == 30, "some came from far away, and some were there: %u", i);
  client.begun = client.ended = PACE_LEAST;
  check (pace_take (&pace, &t, client, now_ns) == 0, "not when a read has just ended");
  check (pace_take (&pace, &t, client, now_ns + MS) > 0, "a millisecond later");
}

/* What the simulator's pace in Lua has made of the same events: pace-events.lua wrote it
 * down, and says how, when this was built.
 */
static void
test_events (void)
{
  static struct pace pace;
  static struct pace_transfer live[8192];
  struct pace_client client;
  uint64_t now_ns, count, piece;
  uint32_t largest;
  unsigned id, next_id = 1, transfers = 0;
  double level;
  char line[160];
  bool same = true;
  FILE *fp = fopen (PACE_EVENTS, "r");

  check (fp != NULL, "%s can be read", PACE_EVENTS);
  if (fp == NULL)
    return;
  while (same && fgets (line, sizeof line, fp) != NULL) {
    if (sscanf (line, "init %" SCNu32, &largest) == 1) {
      pace_init (&pace, largest);
      next_id = 1;
    }
    else if (sscanf (line,
                     "take %" SCNu64 " %" SCNu64 " %u %" SCNu64 " %" SCNu64
                     " %" SCNu64,
                     &client.begun, &client.ended, &client.reads, &client.hits,
                     &now_ns, &count) == 6) {
      client.hit_bytes = client.hits * 4096;
      same = pace_take (&pace, &live[next_id], client, now_ns) == count;
      next_id += count > 0;
      transfers += count > 0;
    }
    else if (sscanf (line, "begin %u %" SCNu64 " %" SCNu64 " %u %" SCNu64,
                     &id, &client.begun, &client.ended, &client.reads,
                     &now_ns) == 5)
      pace_begin (&pace, &live[id], client, now_ns);
    else if (sscanf (line, "end %u %" SCNu64 " %" SCNu64 " %" SCNu64 " %lf",
                     &id, &count, &now_ns, &piece, &level) == 5) {
      pace_end (&pace, &live[id], count, now_ns);
      same = pace.piece == piece && pace.level - level < 1e-6 * level + 1 &&
        level - pace.level < 1e-6 * level + 1;
    }
  }
  fclose (fp);
  check (same && transfers > 1000, "%u transfers like the simulator's: %s",
         transfers, same ? "all" : line);
}

int
main (void)
{
  test_events ();
  test_first_transfers ();
  test_hung ();
  test_woken_in_any_order ();
  test_without_room ();
  test_nothing_to_say ();
  test_one_fails ();
  test_after_a_burst ();
  test_two_side_by_side ();
  test_short ();
  test_narrowed ();
  test_there_already ();
  return done ();
}
