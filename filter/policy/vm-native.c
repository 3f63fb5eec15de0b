/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* What the sandbox's own code calls: sandbox.lua's table native.  A policy gets
 * none of these as they are.
 */

#include <stdlib.h>
#include <string.h>

#include <nbdkit-filter.h>

#include "vm-internal.h"

/* How many coroutines may be in the middle of being closed.  Lua 5.4.4 begins to
 * count calls in C anew in each, so that nothing else would keep a chain of them
 * from overflowing the stack.
 */
#define CLOSING_MAX 4

/* native.alive () */
static int
native_alive (lua_State *L)
{
  struct vm *vm = vm_of (L);

  vm_look (vm, L);
  if (vm->killed != ALIVE)
    return vm_raise_killed (L);
  return 0;
}

/* A coroutine that another one resumes. */
struct resumption {
  lua_State *co, *from;
  int nr_values;                /* for it, and then from it */
  int status;
};

static int
run_coroutine (lua_State *L)
{
  struct resumption *r = lua_touserdata (L, 1);

  r->status = lua_resume (r->co, r->from, r->nr_values, &r->nr_values);
  return 0;
}

/* native.resume (co, ...): as coroutine.resume, but that a coroutine that was
 * stopped stops its caller too.
 */
static int
native_resume (lua_State *L)
{
  struct vm *vm = vm_of (L);
  lua_State *co = lua_tothread (L, 1);
  const int n = lua_gettop (L) - 1;
  struct resumption r = { .co = co, .from = L, .nr_values = n };
  int status, results;

  luaL_argexpected (L, co != NULL, 1, "coroutine");
  if (co == vm->L) {
    /* It is used below, and looks dead between decisions. */
    lua_pushboolean (L, false);
    lua_pushliteral (L, "cannot resume non-suspended coroutine");
    return 2;
  }
  if (!lua_checkstack (co, n))
    return luaL_error (L, "too many arguments to resume");
  lua_xmove (L, co, n);
  vm_enter (vm, co);

  /* lua_resume returns what goes wrong in the coroutine.  But if that is dead,
   * and there is no memory for the message, Lua jumps to a handler of the main
   * thread, and aborts if there is none.
   */
  lua_pushcfunction (vm->L, run_coroutine);
  lua_pushlightuserdata (vm->L, &r);
  status = lua_pcall (vm->L, 1, 0, 0);
  vm_enter (vm, L);
  if (status != LUA_OK) {
    lua_settop (vm->L, -2);
    return luaL_error (L, VM_OUT_OF_MEMORY);
  }
  status = r.status;
  results = r.nr_values;
  if (vm->killed != ALIVE)
    return vm_raise_killed (L);
  if (status != LUA_OK && status != LUA_YIELD)
    results = 1;                /* the error value */
  if (!lua_checkstack (L, results + 1)) {
    lua_pop (co, results);
    return luaL_error (L, "too many results to resume");
  }
  lua_xmove (co, L, results);
  lua_pushboolean (L, status == LUA_OK || status == LUA_YIELD);
  lua_insert (L, -results - 1);
  return results + 1;
}

/* native.close (co): as coroutine.close, for one that is suspended. */
static int
native_close (lua_State *L)
{
  struct vm *vm = vm_of (L);
  lua_State *co = lua_tothread (L, 1);
  int status;

  luaL_argexpected (L, co != NULL && co != L, 1, "coroutine");
  if (vm->closing == CLOSING_MAX)
    return luaL_error (L, "too many coroutines that close one another");
  vm->closing++;
  vm_enter (vm, co);
#if LUA_VERSION_RELEASE_NUM >= 50406
  status = lua_closethread (co, L);
#else
  status = lua_resetthread (co);
#endif
  vm_enter (vm, L);
  vm->closing--;
  if (vm->killed != ALIVE)
    return vm_raise_killed (L);
  lua_pushboolean (L, status == LUA_OK);
  if (status == LUA_OK)
    return 1;
  lua_xmove (co, L, 1);
  return 2;
}

/* native.find (string, text, init): where the text is, first and last byte, or
 * nil.  string.find takes a time that grows with the product of both lengths.
 */
static int
native_find (lua_State *L)
{
  size_t length, text_length, start;
  const char *string = luaL_checklstring (L, 1, &length);
  const char *text = luaL_checklstring (L, 2, &text_length);
  const char *found = NULL;
  lua_Integer init = luaL_optinteger (L, 3, 1);

  if (init < 0 && (lua_Unsigned) -(init + 1) < length)
    init += length + 1;
  else if (init < 1)
    init = 1;
  start = init - 1;
  if (start <= length)
    found = memmem (string + start, length - start, text, text_length);
  if (found == NULL) {
    luaL_pushfail (L);
    return 1;
  }
  lua_pushinteger (L, found - string + 1);
  lua_pushinteger (L, found - string + text_length);
  return 2;
}

/* native.print (string) */
static int
native_print (lua_State *L)
{
  nbdkit_debug ("scan: policy: %s", luaL_checkstring (L, 1));
  return 0;
}

/* Text, chunk name and whether it is ours; or nil and an error. */
int
vm_push_text (lua_State *L, const struct text *text, const char *error)
{
  if (text == NULL) {
    lua_pushnil (L);
    lua_pushstring (L, error);
    return 2;
  }
  if (text->length > 0 && text->data[0] == '#') {
    /* An interpreter line; keep the newline, so that lines stay numbered. */
    const char *newline = memchr (text->data, '\n', text->length);

    lua_pushlstring (L, newline ? newline : "",
                     newline ? text->data + text->length - newline : 0);
  }
  else
    lua_pushlstring (L, text->data, text->length);
  lua_pushfstring (L, "@%s", text->name);
  lua_pushboolean (L, text->builtin);
  return 3;
}

/* native.find_module (name) */
static int
native_find_module (lua_State *L)
{
  char error[LIBRARY_ERROR_MAX] = "";

  return vm_push_text (L, library_module (luaL_checkstring (L, 1), error), error);
}

/* native.find_policy (name): a path only if the operator wrote it, as an
 * argument of the policy.
 */
static int
native_find_policy (lua_State *L)
{
  const struct vm_config *config = &vm_of (L)->config;
  const char *name = luaL_checkstring (L, 1);
  char error[LIBRARY_ERROR_MAX] = "";
  bool given = false;
  size_t i;

  for (i = 0; i < config->nr_args; ++i)
    given = given || strcmp (config->args[i].value, name) == 0;
  return vm_push_text (L, library_neighbour (name, given, error), error);
}

/* read_at (offset, count): upvalue is the text. */
static int
file_read_at (lua_State *L)
{
  const struct text *text = lua_touserdata (L, lua_upvalueindex (1));
  const lua_Integer offset = luaL_checkinteger (L, 1);
  const lua_Integer count = luaL_checkinteger (L, 2);
  size_t left;

  if (offset < 0 || count < 0 || (lua_Unsigned) offset >= text->length) {
    lua_pushliteral (L, "");
    return 1;
  }
  left = text->length - offset;
  lua_pushlstring (L, text->data + offset,
                   (lua_Unsigned) count < left ? (size_t) count : left);
  return 1;
}

/* native.open_file (name) */
static int
native_open_file (lua_State *L)
{
  const struct text *text = library_file (luaL_checkstring (L, 1));

  if (text == NULL)
    return 0;
  lua_pushlightuserdata (L, (void *) text);
  lua_pushcclosure (L, file_read_at, 1);
  return 1;
}

static const luaL_Reg native[] = {
  { "alive",       native_alive },
  { "resume",      native_resume },
  { "close",       native_close },
  { "find",        native_find },
  { "print",       native_print },
  { "find_module", native_find_module },
  { "find_policy", native_find_policy },
  { "open_file",   native_open_file },
  { NULL, NULL }
};

void
vm_push_native (lua_State *L)
{
  luaL_newlib (L, native);
}
