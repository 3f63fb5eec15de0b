/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* What the units of the Lua state share: vm.c and its vm-*.c.  Nothing else may
 * include this, or lua.h.
 *
 * The units in order, as below: vm-limits.c, vm-errors.c, vm-native.c, vm-driver.c,
 * and vm.c, whose functions are in vm.h.  Each calls only those before it.
 *
 * What all this guards against is mistakes, not malice: see docs/design.md.
 *
 * Unless it says otherwise, a function here is called with the policy lock
 * held, and one that takes an L may raise a Lua error.
 */

#ifndef SCAN_VM_INTERNAL_H
#define SCAN_VM_INTERNAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <pthread.h>

#include <lua.h>
#include <lauxlib.h>
#include <lualib.h>

#include "clock.h"
#include "vm.h"

#if LUA_VERSION_NUM != 504
#error "this filter needs Lua 5.4"
#endif

/* Once its client has gone, a decision may take this much longer, and a scan
 * waits this long for its last turn.
 */
#define GONE_GRACE_NS (NS_PER_SECOND / 10)

enum kill_reason { ALIVE, TIMED_OUT, CLIENT_GONE };

struct vm {
  /* Immutable. */
  struct vm_config config;
  bool bounded;                 /* no decision can take long, see vm.c */

  /* The policy lock. */
  pthread_mutex_t lock;

  /* Protected by lock. */
  lua_State *L;                 /* NULL before loading and after a failure */
  size_t used_bytes, limit_bytes;
  int main_ref, run_ref, prefetch_range_ref;
  bool loaded, loading;
  char *error;                  /* set once */
  /* The decision in progress. */
  const struct vm_driver *driver;
  lua_State *running;           /* the innermost coroutine, or NULL */
  int look_instructions;        /* between two looks at the clock */
  size_t look_bytes;            /* look at once when more memory is used */
  bool refused;                 /* for the limit's sake, in this decision */
  uint64_t allowed_ns;          /* for all of it, of the thread's own time */
  uint64_t started_ns;          /* by that time */
  uint64_t look_ns;             /* when to look at it; 0: not looked at yet */
  uint64_t gone_ns;             /* 0: not looked at yet, or not gone */
  enum kill_reason killed;
  char killed_at[LUA_IDSIZE + 16];

  /* Atomic.  Failed is set after error; ended is a list of scans that ended
   * while the policy lock was held, freed by whoever takes it next.
   */
  atomic_bool failed;
  _Atomic (struct vm_scan *) ended;
  atomic_uint_fast64_t decisions, lua_ns;
};

/* The policy's end of a scan, inside Lua. */
struct box {
  struct vm_scan *scan;         /* NULL once the scan has ended */
};

struct vm_scan {
  /* Immutable. */
  struct vm *vm;
  const struct vm_driver *driver;

  /* Protected by the vm's lock. */
  struct box *box;              /* NULL before the first decision */
  lua_State *co;
  int ref;
  const struct met_read *reads; /* what an iterator walks over */
  size_t nr_reads, next_read;
  const struct vm_failure *failures;
  size_t nr_failures, next_failure;
  const struct vm_result *results;
  size_t nr_results, next_result;
  bool asked;                   /* yielded nothing, but asks to prefetch this */
  struct range asked_range;

  atomic_bool has_ended;        /* driver may not be used any more */
  struct vm_scan *next_ended;   /* belongs to whoever holds the list */
};

static inline struct vm *
vm_of (lua_State *L)
{
  /* Copied by Lua from the main thread to every coroutine. */
  return *(struct vm **) lua_getextraspace (L);
}

/* -- vm-limits.c ----------------------------------------------------------- */

/* The allocator of a state: counts, and refuses beyond the limit. */
extern void *vm_alloc (void *opaque, void *ptr,
                       size_t old_size, size_t new_size);

/* The count hook: ends a decision that takes too long. */
extern void vm_hook (lua_State *L, lua_Debug *ar);

/* How often the hook runs depends on how much memory is used.  Doesn't raise. */
extern void vm_set_look_interval (struct vm *vm);

/* Begin a decision, or to load the policy, with so much time for it.  driver is
 * NULL while it is loaded at start-up.  Doesn't raise.
 */
extern void vm_begin_decision (struct vm *vm, const struct vm_driver *driver,
                               uint64_t allowed_ns);

/* This coroutine runs from now on.  Doesn't raise. */
extern void vm_enter (struct vm *vm, lua_State *co);

/* Look at the clock, and whether the client is still there; sets vm->killed.
 * Doesn't raise.
 */
extern void vm_look (struct vm *vm, lua_State *L);

/* Raise the error that stops a policy; doesn't return. */
extern int vm_raise_killed (lua_State *L);

/* Fill in source and line of the innermost function that is the policy's own,
 * or else of the innermost in Lua.  Returns false if there is none.  Doesn't
 * raise.
 */
extern bool vm_find_place (lua_State *co, lua_Debug *ar);

/* -- vm-errors.c ----------------------------------------------------------- */

extern const char VM_OUT_OF_MEMORY[];

/* A message handler for loading, which adds a traceback if that shows anything of the
 * user's.
 */
extern int vm_add_traceback (lua_State *L);

/* What to say if a limit is behind this status of a call, in out; else NULL.
 * Doesn't raise.
 */
extern const char *vm_limit_message (const struct vm *vm, int status,
                                     char *out, size_t size);

/* The vm has failed: keep the message and close the state.  message may point
 * into the state, and NULL means that there is no memory for one.  Doesn't
 * raise.
 */
extern void vm_fail (struct vm *vm, const char *message);

/* A coroutine stopped with an error value on its stack, or, if message is
 * given, yielded something that is not a request.  Doesn't raise.
 */
extern void vm_fail_scan (struct vm_scan *scan, int status,
                          const char *message);

/* -- vm-native.c ----------------------------------------------------------- */

/* Where lua_resume can't resume a coroutine it makes a string of one of these
 * messages, with nobody to catch that there is no memory for it.  Short strings are
 * made once and found again: so these are kept.
 */
extern void vm_keep_messages (lua_State *L);

/* Push the table that sandbox.lua calls native. */
extern void vm_push_native (lua_State *L);

/* Push text, chunk name and whether it is ours; or nil and an error.  Returns
 * how many.
 */
extern int vm_push_text (lua_State *L, const struct text *text,
                         const char *error);

/* -- vm-driver.c ----------------------------------------------------------- */

/* Push the table that host.lua calls driver, for the scan in the box at this
 * index of the stack.
 */
extern void vm_push_driver (lua_State *L, int box,
                            const struct vm_driver *driver);

/* "EIO" and so on. */
extern const char *vm_errno_name (int err);

#endif /* SCAN_VM_INTERNAL_H */
