/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* What keeps a policy within its limits; see vm-internal.h.
 *
 * The allocator counts bytes.  The count hook looks at the clock; it is set
 * before any code of a policy runs, and coroutines inherit it (but those of a
 * bounded policy, see vm.c).
 */

#include <stdio.h>
#include <stdlib.h>

#include "vm-internal.h"

/* Lua instructions between two looks at the clock, at most: 50 to 200 us if
 * they are ordinary ones.  But one instruction can compare, copy or collect all
 * that the policy keeps in memory, so that there are fewer of them the more that
 * is: this many bytes times instructions are at most a few tenths of a second.
 */
#define LOOK_INSTRUCTIONS_MAX 8192
#define LOOK_BYTES_INSTRUCTIONS (UINT64_C (512) * 1024 * 1024)

void
vm_set_look_interval (struct vm *vm)
{
  int n = LOOK_INSTRUCTIONS_MAX;

  while (n > 1 && (uint64_t) n * vm->used_bytes > LOOK_BYTES_INSTRUCTIONS)
    n /= 2;
  vm->look_instructions = n;
  vm->look_bytes = 2 * vm->used_bytes;
}

void *
vm_alloc (void *opaque, void *ptr, size_t old_size, size_t new_size)
{
  struct vm *vm = opaque;
  void *p;

  if (ptr == NULL)              /* then old_size is a type, not a size */
    old_size = 0;
  if (new_size == 0) {
    free (ptr);
    vm->used_bytes -= old_size;
    return NULL;
  }
  if (new_size > old_size &&
      new_size - old_size > vm->limit_bytes - vm->used_bytes) {
    vm->refused = true;
    return NULL;
  }
  p = realloc (ptr, new_size);
  if (p == NULL) {
    if (new_size > old_size)
      return NULL;
    p = ptr;                    /* Lua relies on shrinking */
  }
  vm->used_bytes += new_size - old_size;
  if (vm->used_bytes > vm->look_bytes && vm->running != NULL) {
    vm_set_look_interval (vm);
    lua_sethook (vm->running, vm_hook, LUA_MASKCOUNT, 1); /* may be called anywhere */
  }
  return p;
}

bool
vm_find_place (lua_State *co, lua_Debug *ar)
{
  int level, ours = -1;

  for (level = 0; lua_getstack (co, level, ar); ++level) {
    lua_getinfo (co, "Sl", ar);
    if (ar->currentline > 0) {
      if (ar->source[0] != '@' || !library_is_ours (ar->source + 1))
        return true;
      if (ours == -1)
        ours = level;
    }
  }
  return ours >= 0 && lua_getstack (co, ours, ar) &&
    lua_getinfo (co, "Sl", ar);
}

/* Has the decision used up its time, which is the thread's own?  Asking for that is
 * a system call, so only where enough has passed by the other clock.
 */
static bool
time_is_over (struct vm *vm, uint64_t now_ns)
{
  uint64_t used_ns;

  if (vm->look_ns == 0) {
    vm->started_ns = clock_thread_ns ();
    vm->look_ns = now_ns + vm->allowed_ns;
  }
  if (now_ns <= vm->look_ns)
    return false;
  used_ns = clock_thread_ns () - vm->started_ns;
  if (used_ns > vm->allowed_ns)
    return true;
  vm->look_ns = now_ns + vm->allowed_ns - used_ns;
  return false;
}

void
vm_look (struct vm *vm, lua_State *L)
{
  const uint64_t now = clock_now_ns ();
  lua_Debug ar;

  if (vm->killed != ALIVE)
    return;
  if (vm->gone_ns == 0 && vm->driver != NULL &&
      vm->driver->gone (vm->driver->opaque))
    vm->gone_ns = now;

  if (time_is_over (vm, now))
    vm->killed = TIMED_OUT;
  else if (vm->gone_ns != 0 && now - vm->gone_ns > GONE_GRACE_NS)
    vm->killed = CLIENT_GONE;
  if (vm->killed != ALIVE && vm_find_place (L, &ar))
    snprintf (vm->killed_at, sizeof vm->killed_at, "%s:%d: ", ar.short_src,
              ar.currentline);
}

int
vm_raise_killed (lua_State *L)
{
  return luaL_error (L, "the policy was stopped");
}

/* Runs after every look_instructions.  A policy may catch the error, so once it
 * is over the hook runs after every instruction.
 */
void
vm_hook (lua_State *L, lua_Debug *ar)
{
  struct vm *vm = vm_of (L);

  (void) ar;
  vm_look (vm, L);
  if (vm->killed != ALIVE) {
    lua_sethook (L, vm_hook, LUA_MASKCOUNT, 1);
    vm_raise_killed (L);
  }
  vm_set_look_interval (vm);
  if (lua_gethookcount (L) != vm->look_instructions)
    lua_sethook (L, vm_hook, LUA_MASKCOUNT, vm->look_instructions);
}

/* Its hook may be from a time when less memory was used. */
void
vm_enter (struct vm *vm, lua_State *co)
{
  vm->running = co;
  if (vm->killed != ALIVE)
    lua_sethook (co, vm_hook, LUA_MASKCOUNT, 1);
  else if (lua_gethookcount (co) > vm->look_instructions)
    lua_sethook (co, vm_hook, LUA_MASKCOUNT, vm->look_instructions);
}

void
vm_begin_decision (struct vm *vm, const struct vm_driver *driver,
                   uint64_t allowed_ns)
{
  vm->allowed_ns = allowed_ns;
  vm->driver = driver;
  vm->refused = false;
  vm->look_ns = vm->gone_ns = 0;
  vm->killed = ALIVE;
  vm->killed_at[0] = '\0';
}
