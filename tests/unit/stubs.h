/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Stand-ins for the server's functions, and for the means that can run out, so
 * that units of the filter run in a test program.
 */

#ifndef STUBS_H
#define STUBS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <nbdkit-filter.h>

/* -- messages -------------------------------------------------------------- */

/* How many there were, and the last one. */
extern unsigned stub_errors;
extern char stub_last_error[4096];

/* Wait until nbdkit_debug has been called with a message that has this in it,
 * since stub_reset.  Fails the program after a minute.
 */
extern void stub_wait_for_debug (const char *text);

/* Forget messages and calls, and let everything succeed. */
extern void stub_reset (void);

/* -- means that run out ---------------------------------------------------- */

/* For programs linked with STUB_WRAP (see build.mk): the calls of the filter's
 * own code, not of the libraries'.
 */
enum stub_failure {
  STUB_ALL_OK,
  STUB_ONE_FAILS,               /* the n-th allocation */
  STUB_ALL_FAIL_FROM,           /* the n-th allocation and all later ones */
};

/* From now on, count allocations and let them fail. */
extern void stub_fail_allocations (enum stub_failure how, unsigned n);

/* Allocations since the last stub_fail_allocations. */
extern unsigned stub_allocations (void);

/* Allocations that have not been freed, in all. */
extern long stub_outstanding (void);

/* The n-th call of pthread_create from now on, and all later ones, fail with
 * EAGAIN; 0: none.
 */
extern void stub_fail_threads (unsigned n);

/* The same for nbdkit_next_context_open. */
extern void stub_fail_contexts (unsigned n);

/* -- the layer below ------------------------------------------------------- */

/* What it is like; stub_reset makes it a disk of 64K where all works. */
struct stub_layer {
  int64_t size;                 /* bytes, -1: get_size fails */
  int prepare;                  /* what .prepare returns */
  int err;                      /* errno of every .cache and .pread, or 0 */
};
extern struct stub_layer stub_layer;

/* A context of the layer, as a connection has it. */
extern nbdkit_next *stub_next (void);

/* Calls since stub_reset.  Contexts that are open count connections of the
 * scan's own.
 */
extern unsigned stub_cache_calls (void);
extern uint64_t stub_cached_bytes (void);
extern int stub_open_contexts (void);

#endif /* STUBS_H */
