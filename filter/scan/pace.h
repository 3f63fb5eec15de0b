/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* How much may be on its way from the source, apart from what.
 *
 * The client's bytes in flight and ours together are held at a window: a little
 * more than what the line carries in one round trip.  Then the line is full,
 * little queues in front of a client's read, and a client that fills the line by
 * itself leaves no room.  The window is found by trying, so that a limit of any
 * kind will do: a line, a number of connections, a token bucket.
 *
 * Levels.  At each moment some level is in force: the most that may be in
 * flight.  Only transfers that began when there was no room for another say
 * something about it; of those that begin together, as threads are woken, the last
 * stands for all.  When enough have ended, half of what is in flight, there
 * are three means: what was in flight when they began (I), their time (trip), and by
 * Little's law the rate of the line, I / trip.  A level is compared to the one before,
 * with I / I' = g.  If the rate has grown by more than 0.6 (g - 1), more brings more:
 * the line was not full before.  If not, the higher level's rate is the bandwidth, and
 * the window a tenth more than its product with the latency: what a piece takes where
 * nothing is in its way, or, where bytes are what limits, the smallest piece.
 * Levels are compared with pieces of one size, but for the first, which is compared to
 * one of the smallest.  One that is not reached in a round trip, or in PACE_HOLD in as many
 * transfers as the others take, for want of threads or of something to fetch, is judged by
 * what was reached.
 *
 * - PACE_FIRST: one of PACE_LEAST, and the smallest piece: what bytes add to the time.
 *   If that is more than all else, the line is thin, and the window one piece.  What
 *   begins beside a client's read and takes longer than it did may have waited for that:
 *   the least of three counts.  Or the client's bytes came with it; or, with nobody there,
 *   the first was answered by a layer that had it already, or all of that size were: then
 *   one of twice the size shows what bytes add.  And if the smallest took less, that
 *   is tried again.  From then on pieces are as large as take an eighth of the latency
 *   by their bytes: eight fill a line that bytes limit, and a source that requests limit
 *   needs fewer.  They are no more than eight times the largest that was measured, nor
 *   more than half of what is allowed.
 * - PACE_MORE: two pieces, or half the last window if that is more, up to eight.  The
 *   level doubles for as long as more brings more, or, of small pieces, is four times as
 *   much where nothing has waited at all.  What waited for the burst that a level begins
 *   with counts, too, if it brings enough even so; of large pieces only where nothing of
 *   the client's is in flight.
 * - PACE_LARGER: if it was not reached, or bytes alone would take less than 0.8 of
 *   the time, requests may be what limits (connections, our own threads): the
 *   pieces double, or grow fourfold where that would not fill the line either, and
 *   their number stays, for as long as that brings 0.15 more, and us 0.6 of what it
 *   should by what bytes take, and bytes do not take all of the time, or 0.8 of it where
 *   a client is.  No piece takes longer than twice what the smallest takes.  If the first
 *   step brings nothing, it seems to be bytes that limit: what they take is a guess.  If
 *   two went side by side, the window has room for two, if need be smaller ones.
 * - PACE_HOLD: at the window for a while.  If transfers take clearly longer there, in the
 *   mean, than by themselves, and not all of them do, they may be in a queue of ours: some
 *   were lucky in the search, as at a bucket that is not first come, first served, or short,
 *   and so more was found than there is.  If that is so twice in a row, as something may
 *   have stood still for a moment, the window is narrowed to what has gone through it, but
 *   not below a piece as it was, and then in smaller ones if it has no room for two.  If
 *   less goes through then, it was something else that took long: back, and not again in
 *   this search.  If not, bytes are what limits, and take so long at least, also for the
 *   next search, until a probe shows that they do not.
 *   A window of less than two pieces is judged by three transfers.  If they take longer
 *   than a wait for one read of the client's explains, what was there already was taken
 *   for the line, and all begins anew; or, of large pieces, bytes cost nothing in a burst,
 *   which the next search is told.
 * - PACE_PROBE: a quarter more, or a piece, compared to PACE_HOLD: back there
 *   with the new product, in smaller pieces if it has no room for two, or to
 *   PACE_MORE.  Not below two pieces, where the one more would double what a
 *   client waits.
 *
 * Fifteen seconds after a search has begun, but not in PACE_FIRST, all begins anew, for
 * latencies fall unseen behind a queue, and limits on requests go away.  So it does if
 * nothing has moved for ten seconds: what is in flight then is not waited for.
 *
 * Pieces are an eighth of the window in whole PACE_SMALLEST, or as found where requests
 * are what limits, so that a read that has to wait for one waits little longer than for
 * its own.  A transfer is charged a whole piece however short it is; but a rate above what
 * bytes allow counts only if so much was brought.  Of the client's
 * reads one is answered before us, whatever its length: what it is charged is the
 * others, the smallest piece at least, if it has any in flight.
 *
 * Where the window is less than PACE_DEPTH of the smallest pieces, and while it is
 * looked for, a piece may be in the client's way: one thing goes at a time, or the
 * bytes of one take long.  There the client has a credit of time: 2 % of
 * all time, and the trip of each of its reads that needed none because of us, not of
 * one that reads the same again, which the clone keeps in any case; what a transfer may cost
 * it is taken off when that ends.  Without credit only the
 * client's pauses are used, once it has had nothing in flight for a latency; in
 * them all is free.  So a client that reads what is fetched for it pays for more,
 * and one that does not loses little.  A window below two pieces is one at a time.
 * What takes less than PACE_NEAR_NS did not come from the source, or that is near:
 * it says nothing of the line, and only pauses are used, of PACE_NEAR_NS then.
 *
 * All times are passed in, nothing here waits, allocates or fails.  The caller
 * has a lock.
 */

#ifndef SCAN_PACE_H
#define SCAN_PACE_H

#include <stdbool.h>
#include <stdint.h>

#define PACE_LEAST 4096         /* bytes */
#define PACE_SMALLEST 65536
#define PACE_DEPTH 8           /* pieces */
#define PACE_NEAR_NS 500000

/* How long nobody looks whether the client has left room. */
#define PACE_RETRY_MIN_NS 1000000
#define PACE_RETRY_MAX_NS 20000000

enum pace_phase {
  PACE_FIRST, PACE_MORE, PACE_LARGER, PACE_HOLD, PACE_PROBE,
};

/* What a level has shown. */
struct pace_means {
  double in_flight;             /* bytes */
  double ours;                  /* of these */
  double trip_ns;
};

struct pace_sum {
  double in_flight, ours, trip_ns;
  double least_ns;              /* of the trips */
  unsigned nr;                  /* transfers */
};

struct pace {
  uint32_t largest;             /* most bytes of a piece; immutable */

  enum pace_phase phase;
  double level;                 /* bytes, ours and the client's */
  uint32_t piece;               /* bytes */
  bool is_by_requests;          /* what limits, as far as is known */
  double ours;                  /* bytes charged to transfers */
  unsigned nr_ours;

  /* Transfers that ended at this level, by how they began. */
  uint64_t level_id;
  unsigned nr_older;            /* begun before, on their way still */
  unsigned nr_ended;
  struct pace_sum full, missed;
  struct { double count; unsigned nr; } brought; /* bytes, by both */

  /* Stood for by one that says nothing itself: so many, and how that one began. */
  struct { unsigned nr; double in_flight, ours; bool is_full; } owed;

  /* The level that it is compared to, and what larger pieces are. */
  struct pace_means low;
  bool low_is_burst;            /* its trip has waited */
  double low_level;
  uint32_t low_piece;

  /* The window before it was narrowed, and what it carried; 0 if it was not. */
  struct {
    struct pace_means carried;
    double window;
    uint32_t piece;
    bool is_by_requests;
  } wider;
  bool cannot_narrow;           /* less would carry less: tried in this search */
  bool was_long;                /* the mean trip, of PACE_HOLD before this one */

  /* What was found; 0 if not yet. */
  double window;                /* bytes */
  double bandwidth;             /* bytes per ns */
  double least_ns;              /* trip of PACE_LEAST, where nothing is in its way */
  double serial_ns;             /* what the smallest piece takes beyond that */
  double shown_serial_ns;       /* at least that, as a narrowed window has shown, or 0 */
  double found_serial_ns;       /* and what it was before that, or 0 */
  unsigned nr_near;             /* transfers in a row that were too fast */

  uint64_t anew_ns;             /* when to begin anew */
  unsigned nr_tries;            /* of PACE_FIRST, beside the client; the least is `low` */

  /* What the smallest piece took and brought, perhaps beside the client's. */
  struct { double trip_ns; uint32_t count; bool is_beside; } before;
  uint32_t guessed;             /* piece that the search began with: no smaller ones were
                                 * seen to bring less */

  /* The client, when last seen; and what it may lose. */
  uint64_t client_begun, hits, hit_bytes;
  uint64_t busy_ns, seen_ns;
  double credit_ns;

  /* When something was last taken or ended; transfers of levels up to this one
   * are not counted any more.
   */
  uint64_t moved_ns, forgotten_id;

  /* The transfer that began last, while it is on its way, or NULL; and when the first
   * of those began that it stands for.
   */
  struct pace_transfer *last;
  uint64_t first_ns;
};

/* One transfer, from pace_take to pace_end. */
struct pace_transfer {
  double charge;                /* bytes; 0 if none is taken */
  double cost;                  /* for the client, as a part of its trip */
  double in_flight, ours;       /* when it began, with itself */
  uint64_t begun_ns, level_id;
  unsigned weight;              /* it stands for so many that began with it */
  bool is_full, is_settled;
};

/* What the client has asked of the source so far, in bytes, which only grow; how
 * many of those reads are in flight; and its first reads so far of what was fetched
 * for it, and their bytes.
 */
struct pace_client {
  uint64_t begun, ended;
  unsigned reads;
  uint64_t hits, hit_bytes;
};

/* largest is the most bytes of one transfer. */
extern void pace_init (struct pace *pace, uint32_t largest);

/* Take room for a transfer.  Returns how many bytes it may have, or 0 if there
 * is no room: ask again when a transfer has ended, and at pace_retry_ns at the
 * latest.
 */
extern uint32_t pace_take (struct pace *pace, struct pace_transfer *transfer,
                           struct pace_client client, uint64_t now_ns);

/* Give back the room of a transfer, begun or not.  May be called twice. */
extern void pace_give (struct pace *pace, struct pace_transfer *transfer);

/* A transfer that has room begins. */
extern void pace_begin (struct pace *pace, struct pace_transfer *transfer,
                        struct pace_client client, uint64_t now_ns);

/* It has ended, and gives back its room.  count is what it has brought, 0 if it
 * has failed.
 */
extern void pace_end (struct pace *pace, struct pace_transfer *transfer,
                      uint32_t count, uint64_t now_ns);

/* What a piece takes where nothing is in its way, as far as is known. */
extern double pace_latency_ns (const struct pace *pace);

/* When to look at the client again, if there was no room. */
extern uint64_t pace_retry_ns (const struct pace *pace, uint64_t now_ns);

/* For the debug log. */
extern const char *pace_phase_name (enum pace_phase phase);

#endif /* SCAN_PACE_H */
