/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* pace: on a simulated line it finds the knee, and finds it again.  What it makes of
 * single events is in test-pace-events.c.
 */

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "check.h"
#include "clock.h"
#include "pace.h"

#define MS (NS_PER_SECOND / 1000)
#define MB 1000000.0
#define BLOCK (2 * 1024 * 1024)
#define MAX 256

/* -- a line ---------------------------------------------------------------- */

enum state { FREE, WANTS_ROOM, QUEUED, AT_BUCKET, ON_LINE, THINKS };

/* A thread of ours, or one of the client's reads in a row. */
struct actor {
  enum state state;
  bool is_client;
  uint32_t count;
  uint64_t begun_ns, until_ns, order;
  double wanted;                /* bytes, of the bucket */
  struct pace_transfer transfer;
};

struct sim {
  /* The line. */
  unsigned slots;
  uint64_t latency_ns;
  double rate;                  /* bytes a second */
  double bucket_rate, bucket_bytes;
  bool is_grabbed;              /* the bucket, by whoever looks into it */
  uint64_t looks;
  uint64_t late_ns;             /* three of four take so much longer, by chance */
  uint64_t link_free_ns;
  double bucket_ns;

  /* The client. */
  uint32_t client_count;
  uint64_t think_ns;
  unsigned hits;                /* of its reads, for each that is asked for */
  unsigned reads_left;          /* until it pauses */
  unsigned burst;
  uint64_t pause_ns;

  bool has_short;               /* what is fetched are ranges of 128K to 1M */
  struct pace pace;
  struct pace_client client;
  struct actor actors[MAX];
  unsigned nr_actors;
  uint64_t now_ns, retry_ns, order;

  /* Since `reset`. */
  uint64_t since_ns;
  double ours, theirs;
  unsigned reads, transfers;
  double read_ns, transfer_ns;
};

/* As nbdkit's rate filter does: who finds too little takes that, sleeps for as long as
 * the rest takes to come, and looks again.  So who comes late may be first.
 */
static void
grab (struct sim *s, struct actor *a)
{
  const double full_ns = s->bucket_bytes / s->bucket_rate * NS_PER_SECOND;
  double found;

  /* What is in the bucket came since then. */
  if (s->bucket_ns < s->now_ns - full_ns)
    s->bucket_ns = s->now_ns - full_ns;
  found = (s->now_ns - s->bucket_ns) / NS_PER_SECOND * s->bucket_rate;
  if (found + 1 >= a->wanted) {
    s->bucket_ns += a->wanted / s->bucket_rate * NS_PER_SECOND;
    a->until_ns = s->now_ns + s->latency_ns;
    a->state = ON_LINE;
    return;
  }
  s->bucket_ns = s->now_ns;
  a->wanted -= found;
  a->until_ns = s->now_ns + a->wanted / s->bucket_rate * NS_PER_SECOND;
  /* A sleeper is late by up to half a millisecond. */
  a->until_ns += s->looks++ * 7919 % 64 * (MS / 128);
  a->state = AT_BUCKET;
}

static void
begin (struct sim *s, struct actor *a)
{
  uint64_t from = s->now_ns + s->latency_ns;

  if (s->is_grabbed) {
    a->wanted = a->count;
    grab (s, a);
    return;
  }
  if (from < s->link_free_ns)
    from = s->link_free_ns;
  s->link_free_ns = from + a->count / s->rate * NS_PER_SECOND;
  if (s->bucket_rate > 0) {
    const double bucket = s->bucket_bytes / s->bucket_rate * NS_PER_SECOND;

    if (s->bucket_ns < from)
      s->bucket_ns = from;
    s->bucket_ns += a->count / s->bucket_rate * NS_PER_SECOND;
    if (s->link_free_ns + bucket < s->bucket_ns)
      s->link_free_ns = s->bucket_ns - bucket;
  }
  a->until_ns = s->link_free_ns;
  if (a->order * 7919 % 4 > 0)
    a->until_ns += s->late_ns;
  a->state = ON_LINE;
}

/* Give free slots to those who came first. */
static void
begin_queued (struct sim *s)
{
  unsigned i, busy;
  struct actor *first;

  for (;;) {
    first = NULL;
    busy = 0;
    for (i = 0; i < s->nr_actors; ++i) {
      struct actor *a = &s->actors[i];

      busy += a->state == ON_LINE || a->state == AT_BUCKET;
      if (a->state == QUEUED && (first == NULL || a->order < first->order))
        first = a;
    }
    if (first == NULL || busy >= s->slots)
      return;
    begin (s, first);
  }
}

static void
submit (struct sim *s, struct actor *a)
{
  a->state = QUEUED;
  a->order = s->order++;
  a->begun_ns = s->now_ns;
}

static void
start_client_read (struct sim *s, struct actor *a)
{
  a->count = s->client_count;
  s->client.begun += a->count;
  s->client.reads++;
  submit (s, a);
}

/* Let those prefetch that may. */
static void
ask_pace (struct sim *s)
{
  uint32_t range;
  unsigned i;

  for (i = 0; i < s->nr_actors; ++i) {
    struct actor *a = &s->actors[i];

    if (a->is_client || a->state != WANTS_ROOM)
      continue;
    a->count = pace_take (&s->pace, &a->transfer, s->client, s->now_ns);
    if (a->count == 0) {
      s->retry_ns = pace_retry_ns (&s->pace, s->now_ns);
      return;
    }
    pace_begin (&s->pace, &a->transfer, s->client, s->now_ns);
    range = (s->order * 7919 % 8 + 1) * 128 * 1024;
    if (s->has_short && range < a->count)
      a->count = range;
    submit (s, a);
  }
  s->retry_ns = UINT64_MAX;
}

static void
end (struct sim *s, struct actor *a)
{
  if (!a->is_client) {
    s->ours += a->count;
    s->transfers++;
    s->transfer_ns += s->now_ns - a->begun_ns;
    pace_end (&s->pace, &a->transfer, a->count, s->now_ns);
    a->state = WANTS_ROOM;
    return;
  }
  s->client.ended += a->count;
  s->client.reads--;
  s->client.hits += s->hits;
  s->client.hit_bytes += s->hits * (uint64_t) a->count;
  s->theirs += a->count;
  s->reads++;
  s->read_ns += s->now_ns - a->begun_ns;
  a->state = THINKS;
  a->until_ns = s->now_ns + s->think_ns;
  if (s->burst > 0 && --s->reads_left == 0) {
    s->reads_left = s->burst;
    a->until_ns = s->now_ns + s->pause_ns;
  }
}

static void
run (struct sim *s, double seconds)
{
  const uint64_t stop_ns = s->now_ns + seconds * NS_PER_SECOND;
  unsigned i;

  s->since_ns = s->now_ns;
  s->ours = s->theirs = s->read_ns = s->transfer_ns = 0;
  s->reads = s->transfers = 0;
  for (;;) {
    struct actor *next = NULL;

    ask_pace (s);
    begin_queued (s);
    for (i = 0; i < s->nr_actors; ++i) {
      struct actor *a = &s->actors[i];

      if ((a->state == ON_LINE || a->state == AT_BUCKET ||
           a->state == THINKS) &&
          (next == NULL || a->until_ns < next->until_ns))
        next = a;
    }
    if (s->retry_ns < (next ? next->until_ns : UINT64_MAX))
      next = NULL;
    s->now_ns = next ? next->until_ns : s->retry_ns;
    if (s->now_ns >= stop_ns)
      break;
    if (next == NULL)
      continue;
    if (next->state == THINKS)
      start_client_read (s, next);
    else if (next->state == AT_BUCKET)
      grab (s, next);
    else
      end (s, next);
  }
  s->now_ns = stop_ns;
}

/* Bytes a second, ours and the client's. */
static double
all_per_second (const struct sim *s)
{
  return (s->ours + s->theirs) * NS_PER_SECOND / (s->now_ns - s->since_ns);
}

static void
init (struct sim *s, double latency_ms, double rate, unsigned slots,
      unsigned threads)
{
  memset (s, 0, sizeof *s);
  s->latency_ns = latency_ms * MS;
  s->rate = rate;
  s->slots = slots;
  s->nr_actors = threads;
  while (threads > 0)
    s->actors[--threads].state = WANTS_ROOM;
  pace_init (&s->pace, BLOCK);
}

static void
add_client (struct sim *s, unsigned depth, uint32_t count, double think_ms)
{
  s->client_count = count;
  s->think_ns = think_ms * MS;
  while (depth-- > 0) {
    struct actor *a = &s->actors[s->nr_actors++];

    a->is_client = true;
    a->state = THINKS;
    a->until_ns = s->now_ns + s->think_ns;
  }
}

/* -- the tests ------------------------------------------------------------- */

static struct sim sim;

/* In round trips of a smallest piece; what has been there before may have taken
 * longer.
 */
static void
run_trips (struct sim *s, unsigned trips)
{
  run (s, trips * (s->latency_ns / (double) NS_PER_SECOND +
                   PACE_SMALLEST / s->rate));
}

/* Ten round trips later the line carries at least 90 % of what it can, and a
 * client's read takes at most this much longer than alone.
 */
static void
expect (struct sim *s, const char *what, double knee, double longer)
{
  double alone_ns;

  run_trips (s, 10);
  run_trips (s, 20);
  check (all_per_second (s) >= 0.9 * knee,
         "%s: %.2f of %.2f MB/s after ten round trips", what,
         all_per_second (s) / MB, knee / MB);
  run (s, 60);
  check (all_per_second (s) >= 0.9 * knee, "%s: %.2f of %.2f MB/s for a minute",
         what, all_per_second (s) / MB, knee / MB);
  if (s->reads > 0) {
    alone_ns = s->latency_ns + s->client_count / s->rate * NS_PER_SECOND;
    check (s->read_ns / s->reads <= alone_ns * longer,
           "%s: a client's read takes %.2f times as long as alone", what,
           s->read_ns / s->reads / alone_ns);
  }
}

static void
test_knees (void)
{
  static const struct {
    const char *what;
    double latency_ms, rate;
    unsigned slots, threads;
    double knee;
  } cases[] = {
    { "20 ms, 400 Mbit/s", 20, 50 * MB, 64, 32, 50 * MB },
    { "80 ms, 100 Mbit/s", 80, 12.5 * MB, 64, 32, 12.5 * MB },
    { "… with 8 threads", 80, 12.5 * MB, 64, 8, 12.5 * MB },
    { "5 ms, 400 Mbit/s", 5, 50 * MB, 64, 8, 50 * MB },
    /* A piece of twice the latency, alone. */
    { "… with 1 thread", 80, 12.5 * MB, 64, 1, 1024 * 1024 / 0.164 },
    { "one at a time", 20, 50 * MB, 1, 8, 1024 * 1024 / 0.041 },
    { "four at a time", 20, 50 * MB, 4, 8, 4 * 128 * 1024 / 0.02262 },
  };
  size_t i;

  for (i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
    init (&sim, cases[i].latency_ms, cases[i].rate, cases[i].slots,
          cases[i].threads);
    expect (&sim, cases[i].what, cases[i].knee, 0);
  }
}

/* What changes is found too. */
static void
test_changes (void)
{
  init (&sim, 20, 50 * MB, 64, 32);
  run (&sim, 3);
  sim.rate = 25 * MB;
  expect (&sim, "half the rate", 25 * MB, 0);
  sim.rate = 50 * MB;
  expect (&sim, "twice the rate", 50 * MB, 0);
  sim.latency_ns = 60 * MS;
  expect (&sim, "three times the latency", 50 * MB, 0);
  sim.latency_ns = 20 * MS;
  add_client (&sim, 1, 4096, 1);
  expect (&sim, "the latency falls", 50 * MB, 1.5);

  init (&sim, 20, 50 * MB, 64, 32);
  sim.bucket_rate = 10 * MB;
  sim.bucket_bytes = 20 * MB;
  run (&sim, 2);
  expect (&sim, "a token bucket", 10 * MB, 0);
}

/* Beside a client that does one read after the other. */
static void
test_beside (void)
{
  init (&sim, 20, 50 * MB, 64, 32);
  add_client (&sim, 1, 4096, 1);
  expect (&sim, "beside a client at 20 ms", 50 * MB, 1.25);
  init (&sim, 80, 12.5 * MB, 64, 8);
  add_client (&sim, 1, 4096, 1);
  expect (&sim, "beside a client at 80 ms", 12.5 * MB, 1.25);
  init (&sim, 20, 50 * MB, 4, 8);
  add_client (&sim, 1, 4096, 1);
  expect (&sim, "four at a time, one is the client's",
          3 * 128 * 1024 / 0.02262, 1.75);
}

/* A latency that has grown is found, also if a client is always there. */
static void
test_changes_beside (void)
{
  init (&sim, 20, 50 * MB, 64, 8);
  add_client (&sim, 1, 4096, 0.1);
  run (&sim, 20);
  sim.latency_ns = 60 * MS;
  run (&sim, 60);
  check (sim.ours / 60 > 15 * MB,
         "three times the latency, beside a client: %.1f MB/s of ours",
         sim.ours / 60 / MB);
}

/* Also one that has grown so much, unseen, that searches have credit for one small
 * transfer in ten seconds.
 */
static void
test_grown_unseen (void)
{
  init (&sim, 20, 50 * MB, 64, 8);
  add_client (&sim, 1, 4096, 0.1);
  run (&sim, 20);
  sim.latency_ns = 200 * MS;
  sim.pace.anew_ns = sim.now_ns;
  run (&sim, 120);
  check (sim.ours / 120 > 0.5 * MB,
         "ten times the latency, beside a client: %.1f MB/s of ours",
         sim.ours / 120 / MB);
}

/* What was near is far away. */
static void
test_near_no_more (void)
{
  init (&sim, 0.1, 1000 * MB, 64, 8);
  run (&sim, 20);
  sim.latency_ns = 20 * MS;
  sim.rate = 50 * MB;
  run (&sim, 20);
  run (&sim, 20);
  check (sim.ours / 20 > 45 * MB, "near before, 20 ms now: %.1f MB/s of ours",
         sim.ours / 20 / MB);
}

/* A client that waits for its large reads leaves the line idle while they are on
 * their way.
 */
static void
test_large_reads (void)
{
  init (&sim, 20, 100 * MB, 64, 32);
  add_client (&sim, 2, 512 * 1024, 0);
  run (&sim, 5);
  check (sim.ours / 5 > 40 * MB, "beside two readers of 512K: %.1f MB/s of ours",
         sim.ours / 5 / MB);
}

/* A client that fills the line is left alone. */
static void
test_greedy (void)
{
  double alone;

  init (&sim, 20, 50 * MB, 64, 0);
  add_client (&sim, 16, 256 * 1024, 0.1);
  run (&sim, 20);
  alone = sim.theirs;
  init (&sim, 20, 50 * MB, 64, 32);
  add_client (&sim, 16, 256 * 1024, 0.1);
  run (&sim, 20);
  check (sim.theirs >= 0.99 * alone, "a greedy client has %.3f of what it had",
         sim.theirs / alone);
}

/* Where there is room for one thing at a time, only pauses are used. */
static void
test_pauses (void)
{
  double alone;
  static const struct { double latency_ms, rate; unsigned slots; } cases[] = {
    { 20, 50 * MB, 1 }, { 0.1, 1000 * MB, 64 }, { 20, 1.25 * MB, 64 },
  };
  size_t i;

  for (i = 0; i < 3; ++i) {
    init (&sim, cases[i].latency_ms, cases[i].rate, cases[i].slots, 0);
    add_client (&sim, 1, 4096, 0.1);
    sim.burst = sim.reads_left = 1000;
    sim.pause_ns = 2 * NS_PER_SECOND;
    run (&sim, 120);
    alone = sim.reads;
    init (&sim, cases[i].latency_ms, cases[i].rate, cases[i].slots, 8);
    add_client (&sim, 1, 4096, 0.1);
    sim.burst = sim.reads_left = 1000;
    sim.pause_ns = 2 * NS_PER_SECOND;
    run (&sim, 120);
    check (sim.reads >= 0.95 * alone,
           "%g ms, %g MB/s, %u at a time: a client has %.3f of its reads",
           cases[i].latency_ms, cases[i].rate / MB, cases[i].slots,
           sim.reads / alone);
    check (sim.ours > 0, "and its pauses are used: %.1f MB", sim.ours / MB);
  }
}

/* A line that is slow for a moment, while more is tried, leaves more than the
 * client's pauses, of which there are none.
 */
static void
test_slow_moment (void)
{
  double before;
  int i;

  init (&sim, 20, 10000 * MB, 4, 8);
  add_client (&sim, 1, 4096, 0.1);
  for (i = 0; i < 5000 && sim.pace.phase != PACE_PROBE; ++i)
    run (&sim, 0.001);
  check (sim.pace.phase == PACE_PROBE && sim.pace.piece == BLOCK,
         "large pieces bring more, and more of them are tried");
  before = sim.pace.window;
  sim.latency_ns = 150 * MS;
  for (i = 0; i < 5000 && sim.pace.phase == PACE_PROBE; ++i)
    run (&sim, 0.001);
  check (sim.pace.window < before / 2, "that they take long shows");
  sim.latency_ns = 20 * MS;
  run (&sim, 5);
  check (sim.ours / 5 > 40 * MB, "then %.1f MB/s of ours beside a client",
         sim.ours / 5 / MB);
}

/* A client of small reads loses next to nothing of its first second on a thin
 * line: that it is thin is found out with small pieces.
 */
static void
test_thin_start (void)
{
  double alone;

  init (&sim, 1, 1.25 * MB, 64, 0);
  add_client (&sim, 1, 4096, 0.1);
  run (&sim, 1);
  alone = sim.reads;
  init (&sim, 1, 1.25 * MB, 64, 8);
  add_client (&sim, 1, 4096, 0.1);
  run (&sim, 1);
  check (sim.reads >= 0.9 * alone,
         "10 Mbit/s, the first second: a client has %.3f of its reads",
         sim.reads / alone);
}

/* One thread does not show that a thin line is wide. */
static void
test_thin (void)
{
  double alone;

  init (&sim, 1, 1.25 * MB, 64, 0);
  add_client (&sim, 1, 4096, 0.1);
  run (&sim, 60);
  alone = sim.reads;
  init (&sim, 1, 1.25 * MB, 64, 1);
  add_client (&sim, 1, 4096, 0.1);
  run (&sim, 60);
  check (sim.reads >= 0.9 * alone,
         "one thread, 10 Mbit/s: a client has %.3f of its reads",
         sim.reads / alone);
}

/* What bytes add is known soon, and with it how large a piece may be: a source that does
 * one thing at a time is of use to a client only with large ones.
 */
static void
test_first_pieces (void)
{
  const double far = 4000 * MB;

  init (&sim, 20, far, 64, 1);
  run_trips (&sim, 3);
  check (sim.pace.piece >= 512 * 1024, "bytes cost nothing: pieces of %" PRIu32 " soon",
         sim.pace.piece);

  init (&sim, 5, far, 1, 8);
  add_client (&sim, 1, 256 * 1024, 0);
  run_trips (&sim, 12);
  check (sim.pace.piece == BLOCK,
         "nor beside a client, one thing at a time: %" PRIu32, sim.pace.piece);

  /* Eight pieces of 128K fill seven eighths of the line, and there are no more threads:
   * a line that is nearly full is told from that.
   */
  init (&sim, 86, 12.5 * MB, 64, 8);
  run_trips (&sim, 12);
  run_trips (&sim, 20);
  check (all_per_second (&sim) >= 0.95 * 12.5 * MB,
         "8 threads at 86 ms: %.2f of 12.50 MB/s", all_per_second (&sim) / MB);
}

/* Two seconds later a line of 100 Mbit/s is full for so long. */
static void
expect_full (const char *what, unsigned clients, double seconds)
{
  run (&sim, 2);
  run (&sim, seconds);
  check (all_per_second (&sim) >= 0.9 * 12.5 * MB,
         "%s, %u clients: %.2f of 12.50 MB/s", what, clients,
         all_per_second (&sim) / MB);
}

/* What the scan begins with is in the layer below already, as after a restart: the first
 * of all, or the two that are measured.  That is no line.
 */
static void
test_there_already (void)
{
  unsigned nr;

  for (nr = 1; nr <= 2; ++nr) {
    init (&sim, 3, 4000 * MB, 64, 16);
    run (&sim, nr * 0.003 - 0.0001);
    sim.latency_ns = 30 * MS;
    sim.rate = 12.5 * MB;
    expect_full (nr == 1 ? "the first is there already" : "so is the second", 0, 10);
  }
}

/* A client with several reads at once fills a thin line: what two sizes of ours have waited
 * for them says nothing of bytes.
 */
static void
test_thin_beside_many (void)
{
  unsigned depth;

  for (depth = 2; depth <= 4; ++depth) {
    init (&sim, 100, 0.25 * MB, 64, 8);
    add_client (&sim, depth, 64 * 1024, 1);
    run (&sim, 120);
    check (sim.theirs >= 0.95 * 120 * 0.25 * MB,
           "%u reads at once on a thin line: %.3f of 0.250 MB/s", depth,
           sim.theirs / 120 / MB);
  }
}

/* What bytes take was guessed too low, so that pieces begin many times too large. */
static void
test_wrong_guess (void)
{
  unsigned clients;

  for (clients = 0; clients < 2; ++clients) {
    /* The first trip of all is a long one: somebody has to wake up. */
    init (&sim, 320, 12.5 * MB, 64, 16);
    add_client (&sim, clients, 4096, 1);
    run (&sim, 0.3);
    sim.latency_ns = 80 * MS;
    expect_full ("a long first trip", clients, 10);

    /* What is fetched first comes from near by. */
    init (&sim, 80, 4000 * MB, 64, 16);
    add_client (&sim, clients, 4096, 1);
    run (&sim, clients > 0 ? 0.24 : 0.17);
    sim.rate = 12.5 * MB;
    expect_full ("bytes cost nothing at first", clients, 10);

    /* The first bytes of all are free. */
    init (&sim, 80, 4000 * MB, 64, 16);
    add_client (&sim, clients, 4096, 1);
    sim.bucket_rate = 12.5 * MB;
    sim.bucket_bytes = 0.625 * MB;
    expect_full ("a token bucket", clients, 30);
  }
}

/* A search has an end, though what is smaller seems to take longer. */
static void
test_search_ends (void)
{
  init (&sim, 30, 200 * MB, 64, 8);
  run (&sim, 0.01);
  sim.latency_ns = 0.3 * MS;
  run (&sim, 1);
  run (&sim, 2);
  check (all_per_second (&sim) >= 0.9 * 200 * MB,
         "a long first trip to a near source: %.1f of 200.0 MB/s",
         all_per_second (&sim) / MB);

  init (&sim, 20, 12.5 * MB, 64, 16);
  pace_init (&sim.pace, PACE_LEAST);
  run (&sim, 1);
  sim.latency_ns = 12 * MS;
  run (&sim, 15);
  run (&sim, 10);
  check (all_per_second (&sim) >= 15 * PACE_LEAST / 0.013,
         "pieces of 4K, and a latency that falls: %.2f MB/s",
         all_per_second (&sim) / MB);
}

/* Two threads have two pieces in flight. */
static void
test_two_threads (void)
{
  init (&sim, 20, 200 * MB, 64, 2);
  run (&sim, 1);
  run (&sim, 10);
  check (all_per_second (&sim) >= 90 * MB, "two threads: %.1f of 100.0 MB/s at 20 ms",
         all_per_second (&sim) / MB);
}

/* That bytes are free at first, and then are not, is no reason to stand in the way. */
static void
test_thin_bucket (void)
{
  init (&sim, 3, 4000 * MB, 1, 4);
  add_client (&sim, 1, 4096, 1);
  sim.bucket_rate = 1.25 * MB;
  sim.bucket_bytes = 2.5 * MB;
  run (&sim, 5);
  run (&sim, 10);
  check (sim.read_ns / sim.reads <= 30 * MS,
         "a thin bucket: a client's reads take %.1f ms",
         sim.read_ns / sim.reads / MS);
}

/* Each level of a search is judged by its first trip, also that of large pieces. */
static void
test_search_is_short (void)
{
  init (&sim, 20, 4000 * MB, 64, 32);
  run_trips (&sim, 8);
  check (sim.pace.piece > PACE_SMALLEST && sim.pace.nr_ours == 32,
         "in eight trips 32 are in flight: %u, of %" PRIu32, sim.pace.nr_ours,
         sim.pace.piece);
}

/* One thread has nothing side by side but the client's reads. */
static void
test_one_thread_beside (void)
{
  init (&sim, 50, 12.5 * MB, 64, 1);
  pace_init (&sim.pace, 256 * 1024);
  add_client (&sim, 1, 16 * 1024, 1);
  run (&sim, 5);
  check (sim.pace.piece == 256 * 1024, "one thread beside a client: pieces of %" PRIu32,
         sim.pace.piece);
}

/* Large pieces go side by side, a client is there, and a bucket is full at first. */
static void
test_beside_a_bucket (void)
{
  double alone_ns;

  init (&sim, 20, 4000 * MB, 64, 8);
  add_client (&sim, 1, 4096, 1);
  sim.bucket_rate = 12.5 * MB;
  sim.bucket_bytes = 8 * MB;
  run (&sim, 10);
  alone_ns = sim.latency_ns + 4096 / (4000 * MB) * NS_PER_SECOND;
  check (sim.read_ns / sim.reads <= 1.5 * alone_ns,
         "a full bucket: a client's read takes %.2f times as long as alone",
         sim.read_ns / sim.reads / alone_ns);
}

/* Those that wait at a bucket are overtaken, and some have little to fetch: the lucky
 * ones say that the line carries far more than it does.  That is found out, for all but
 * the time of a search.
 */
static void
test_lucky_at_a_bucket (void)
{
  static const struct {
    double latency_ms, rate;
    unsigned threads;
  } cases[] = {
    { 80, 12.5 * MB, 8 }, { 80, 12.5 * MB, 32 }, { 20, 50 * MB, 16 },
  };
  double alone_ns;
  size_t i;

  for (i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
    init (&sim, cases[i].latency_ms, cases[i].rate, 64, cases[i].threads);
    sim.is_grabbed = true;
    sim.bucket_rate = cases[i].rate;
    sim.bucket_bytes = cases[i].rate / 20;
    sim.has_short = true;
    run (&sim, 15);
    run (&sim, 60);
    alone_ns = sim.latency_ns + PACE_SMALLEST / sim.rate * NS_PER_SECOND;
    check (sim.transfer_ns <= 3 * alone_ns * sim.transfers,
           "%.0f ms, %u threads at a bucket: a transfer takes %.2f times as long "
           "as alone", cases[i].latency_ms, cases[i].threads,
           sim.transfer_ns / sim.transfers / alone_ns);
    check (all_per_second (&sim) >= 0.9 * sim.rate, "… which carries %.2f of "
           "%.2f MB/s", all_per_second (&sim) / MB, sim.rate / MB);
  }
}

/* A line that carries next to nothing for two seconds, whenever that is, does so no longer
 * afterwards: the window is found again soon, and bytes do not take what they took then.
 */
static void
test_dip (void)
{
  unsigned clients, at;
  double least = HUGE_VAL, longest = 0;

  for (clients = 0; clients < 2; ++clients)
    for (at = 1; at <= 12; ++at) {
      init (&sim, 20, 50 * MB, 64, 16);
      if (clients > 0)
        add_client (&sim, 1, 4096, 10);
      run (&sim, at + 2);
      sim.rate = 1.5 * MB;
      run (&sim, 2);
      sim.rate = 50 * MB;
      run (&sim, 4);
      run (&sim, 32);
      least = all_per_second (&sim) < least ? all_per_second (&sim) : least;
      if (sim.reads > 0 && sim.read_ns / sim.reads > longest)
        longest = sim.read_ns / sim.reads;
    }
  check (least >= 30 * MB, "after two slow seconds: at least %.1f of 50.0 MB/s",
         least / MB);
  check (longest <= 1.5 * sim.latency_ns, "… and a client's read takes %.1f ms",
         longest / MS);

  /* Nor does the next search take the line for a thin one, whatever it has shown. */
  init (&sim, 20, 50 * MB, 64, 16);
  run (&sim, 14);
  sim.pace.shown_serial_ns = 100 * MS;
  run (&sim, 2);
  run (&sim, 10);
  check (all_per_second (&sim) >= 45 * MB, "a search that was told it is thin: %.1f of "
         "50.0 MB/s", all_per_second (&sim) / MB);

  /* Few threads need their large pieces again after a second in which nothing comes. */
  init (&sim, 20, 125 * MB, 64, 8);
  run (&sim, 5);
  sim.link_free_ns += NS_PER_SECOND;
  run (&sim, 2);
  run (&sim, 30);
  check (all_per_second (&sim) >= 110 * MB, "after a second of nothing: %.1f of 125.0 MB/s",
         all_per_second (&sim) / MB);
}

/* If some take longer by chance, that is no queue, and less in flight brings less. */
static void
test_late_by_chance (void)
{
  static const struct { double rate; unsigned slots; double least; } cases[] = {
    { 50 * MB, 64, 35 * MB }, { 200 * MB, 8, 90 * MB },
  };
  size_t i;

  for (i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
    init (&sim, 20, cases[i].rate, cases[i].slots, 32);
    sim.late_ns = 40 * MS;
    run (&sim, 3);
    run (&sim, 60);
    check (all_per_second (&sim) >= cases[i].least,
           "20 or 60 ms, %u at once: %.2f of %.2f MB/s", cases[i].slots,
           all_per_second (&sim) / MB, cases[i].least / MB);
  }
}

/* Where one thing goes at a time, a client that never pauses has little taken away;
 * one whose reads are answered by what was fetched, too, pays for more of that.
 */
static void
test_credit (void)
{
  double alone, ours;

  init (&sim, 20, 50 * MB, 1, 0);
  add_client (&sim, 1, 4096, 0.1);
  run (&sim, 60);
  alone = sim.reads;
  init (&sim, 20, 50 * MB, 1, 8);
  add_client (&sim, 1, 4096, 0.1);
  run (&sim, 60);
  ours = sim.ours;
  check (sim.reads >= 0.95 * alone, "without hits a client has %.3f of its reads",
         sim.reads / alone);
  init (&sim, 20, 50 * MB, 1, 8);
  add_client (&sim, 1, 4096, 0.1);
  sim.hits = 2;
  run (&sim, 60);
  check (sim.ours >= 5 * ours, "with hits %.1f MB are fetched beside it, not %.1f",
         sim.ours / MB, ours / MB);
}

int
main (void)
{
  test_knees ();
  test_changes ();
  test_beside ();
  test_changes_beside ();
  test_grown_unseen ();
  test_near_no_more ();
  test_large_reads ();
  test_greedy ();
  test_pauses ();
  test_slow_moment ();
  test_thin ();
  test_thin_start ();
  test_first_pieces ();
  test_there_already ();
  test_thin_beside_many ();
  test_wrong_guess ();
  test_search_ends ();
  test_two_threads ();
  test_thin_bucket ();
  test_search_is_short ();
  test_one_thread_beside ();
  test_beside_a_bucket ();
  test_lucky_at_a_bucket ();
  test_dip ();
  test_late_by_chance ();
  test_credit ();
  return done ();
}
