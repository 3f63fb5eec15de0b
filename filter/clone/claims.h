/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Who is doing what to the blocks that are absent.
 *
 * A fetch is a claim to read from the source, so that others can join it, and
 * then one to store each run of blocks in the clone's file.  A write of absent
 * blocks is a claim to write.  The rules:
 *
 *   - storing begins only where blocks are still absent and nobody stores or
 *     writes; what it can't have it leaves out;
 *   - a write waits while somebody stores there;
 *   - bits are set before the claim ends.
 *
 * So a fetch never stores over a client's data, however late it comes, and who
 * writes whole blocks never waits for the source's answer to somebody else's read.
 * (Who writes a part of one that is absent needs the rest, and may join the read.)
 *
 * How long reads of the source take is measured, by their length, so that one
 * can be joined that is expected to end soon.
 *
 * Claims live on the stack of who makes them; nothing is allocated.  One lock,
 * a leaf, guards all claims and who waits for them.  A waiter holds no claim,
 * so nobody waits in a circle; each has its own condition.  Times are passed
 * in.
 */

#ifndef CLONE_CLAIMS_H
#define CLONE_CLAIMS_H

#include <stdbool.h>
#include <stdint.h>

#include <pthread.h>

#include "clock.h"
#include "map.h"

/* Who hasn't come back after this hangs, maybe: any source should be done by then. */
#define CLAIMS_HANGS_NS (10 * NS_PER_SECOND)

struct claim {
  uint64_t first, end;          /* blocks */

  /* The rest is for claims.c, protected by the lock. */
  enum claim_kind { CLAIM_ASK, CLAIM_READ, CLAIM_STORE, CLAIM_WRITE } kind;
  uint64_t number;              /* claims are counted */
  uint64_t begun_ns;            /* read */
  uint64_t spoilt_first, spoilt_end; /* ask, read: what must not be stored of the
                                        answer; 0 and 0: nothing */
  struct waiter *waiters;
  struct claim *next;
};

struct claims {
  pthread_mutex_t lock;

  /* Protected by the lock. */
  struct map *map;
  struct claim *list;
  uint64_t last_number;
  uint64_t trip_ns[64];         /* of reads of 2^n blocks and more; 0: unknown */
};

/* Whom a request joins. */
struct join {
  /* Any read in flight of so many blocks at most, unless it seems to hang; 0: nobody. */
  uint64_t blocks;
  /* A larger one that should end as soon as one of so many blocks would. */
  uint64_t own;
};

extern void claims_init (struct claims *claims, struct map *map);

/* No claim is left. */
extern void claims_destroy (struct claims *claims);

enum claim_result {
  CLAIM_MADE,
  CLAIM_PRESENT,                /* the first block has become present */
  CLAIM_JOIN,                   /* somebody reads the blocks up to *end */
};

/* Claim to read blocks from first on, the first of which was absent.  Reads in
 * flight that may be joined are left to be: *end is moved to where this read,
 * or the one to join, ends.  CLAIM_JOIN sets the claim's number to that of the
 * one to join.
 */
extern enum claim_result claims_begin_read (struct claims *claims,
                                            struct claim *claim,
                                            uint64_t first, uint64_t *end,
                                            struct join join, uint64_t now_ns);

/* Claim to ask the source about blocks; nobody joins that. */
extern void claims_begin_ask (struct claims *claims, struct claim *claim,
                              uint64_t first, uint64_t end);

/* Wait for the reads of absent blocks in this range that may be joined, and are
 * not later than the claim of this number.  Those larger than join.blocks are
 * waited for no longer than a read of join.own blocks has been seen to take,
 * by the monotonic clock, and the others until they seem to hang.
 */
extern void claims_join (struct claims *claims, uint64_t first, uint64_t end,
                         struct join join, uint64_t last, uint64_t now_ns);

/* Claim to store the first run of blocks from first on, and before end, that
 * may be stored; false if there is none.  `read` is the claim under which the
 * plugin was asked.
 */
extern bool claims_begin_store (struct claims *claims, struct claim *claim,
                                const struct claim *read, uint64_t first,
                                uint64_t end);

/* Claim to write blocks; waits while somebody stores there, and if `alone`
 * also while somebody writes there.
 */
extern void claims_begin_write (struct claims *claims, struct claim *claim,
                                uint64_t first, uint64_t end, bool alone);

/* Wait until nobody stores or writes this block, or until then, by the monotonic clock. */
extern void claims_settle (struct claims *claims, uint64_t block, uint64_t deadline_ns);

/* What is being read from the source here is out of date. */
extern void claims_spoil (struct claims *claims, uint64_t first, uint64_t end);

/* From now on what is present is what is in this map, and what is being read from the
 * plugin is not stored.
 */
extern void claims_distrust (struct claims *claims, struct map *map);

/* End any claim, and wake those who wait for it. */
extern void claims_end (struct claims *claims, struct claim *claim);

/* End a claim to read, which the source has answered: so long it takes. */
extern void claims_end_read (struct claims *claims, struct claim *claim,
                             uint64_t now_ns);

#endif /* CLONE_CLAIMS_H */
