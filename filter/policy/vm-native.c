/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* What the sandbox's own code calls: sandbox.lua's table native.  A policy gets
 * none of these as they are.
 */

#include <string.h>

#include <nbdkit-filter.h>

#include "escape.h"
#include "rows.h"
#include "vm-internal.h"

/* Of a policy's warning, in bytes; the rest is not shown. */
#define WARNING_MAX 500

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

/* native.resume (co, ...): as coroutine.resume, but that a coroutine that was
 * stopped stops its caller too.
 */
static int
native_resume (lua_State *L)
{
  struct vm *vm = vm_of (L);
  lua_State *co = lua_tothread (L, 1);
  const int n = lua_gettop (L) - 1;
  int status, results;

  luaL_argexpected (L, co != NULL, 1, "coroutine");
  if (!lua_checkstack (co, n))
    return luaL_error (L, "too many arguments to resume");
  lua_xmove (L, co, n);
  vm_enter (vm, co);
  /* This returns what goes wrong, and needs no memory to say that it can't resume:
   * see vm_keep_messages.
   */
  status = lua_resume (co, L, n, &results);
  vm_enter (vm, L);
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
  vm_enter (vm, co);
#if LUA_VERSION_RELEASE_NUM >= 50406
  status = lua_closethread (co, L);
#else
  status = lua_resetthread (co);
#endif
  vm_enter (vm, L);
  if (vm->killed != ALIVE)
    return vm_raise_killed (L);
  lua_pushboolean (L, status == LUA_OK);
  if (status == LUA_OK)
    return 1;
  lua_xmove (co, L, 1);
  return 2;
}

/* native.print (string) */
static int
native_print (lua_State *L)
{
  char text[ESCAPE_TEXT_MAX];

  nbdkit_debug ("scan: policy: %s", escape (ESCAPE_TEXT, luaL_checkstring (L, 1),
                                            text, sizeof text));
  return 0;
}

/* native.warn (string).  What is said of loading it was said at start-up, when another
 * export's state is made.
 */
static int
native_warn (lua_State *L)
{
  const struct vm *vm = vm_of (L);
  char text[WARNING_MAX];

  escape (ESCAPE_TEXT, luaL_checkstring (L, 1), text, sizeof text);
  if (!vm->loading || vm->driver == NULL)
    nbdkit_error ("scan: warning: %s", text);
  return 0;
}

/* Push the text without what the lua command skips, too: the mark that some editors
 * begin UTF-8 with, and an interpreter line.  The newline stays, so that lines stay
 * numbered.
 */
static void
push_code (lua_State *L, const struct text *text)
{
  static const char mark[] = "\xef\xbb\xbf";
  const size_t mark_length = sizeof mark - 1;
  const char *p = text->data, *const end = p + text->length;

  if (text->length >= mark_length && memcmp (p, mark, mark_length) == 0)
    p += mark_length;
  if (p < end && *p == '#') {
    p = memchr (p, '\n', end - p);
    if (p == NULL)
      p = end;
  }
  lua_pushlstring (L, p, end - p);
}

int
vm_push_text (lua_State *L, const struct text *text, const char *error)
{
  if (text == NULL) {
    lua_pushnil (L);
    lua_pushstring (L, error);
    return 2;
  }
  push_code (L, text);
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

/* read_rows (offset, columns, log): upvalue is the text.  See scan.file. */
static int
file_read_rows (lua_State *L)
{
  const struct text *text = lua_touserdata (L, lua_upvalueindex (1));
  struct rows rows = { .text = text->data, .length = text->length };
  struct row row;
  enum rows_result result;

  rows.position = luaL_checkinteger (L, 1);
  result = rows_next (&rows, luaL_checkinteger (L, 2), lua_toboolean (L, 3),
                      &row);
  lua_pushinteger (L, rows.position);
  lua_pushinteger (L, rows.lines);
  if (result != ROWS_ROW)
    return 2;
  lua_pushinteger (L, row.offset);
  lua_pushinteger (L, row.count);
  if (row.has_third)
    lua_pushinteger (L, row.third);
  return 4 + row.has_third;
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
  lua_pushlightuserdata (L, (void *) text);
  lua_pushcclosure (L, file_read_rows, 1);
  return 2;
}

static const luaL_Reg native[] = {
  { "alive",       native_alive },
  { "resume",      native_resume },
  { "close",       native_close },
  { "print",       native_print },
  { "warn",        native_warn },
  { "find_module", native_find_module },
  { "find_policy", native_find_policy },
  { "open_file",   native_open_file },
  { NULL, NULL }
};

void
vm_keep_messages (lua_State *L)
{
  static const char *const messages[] = {
    "cannot resume dead coroutine", "cannot resume non-suspended coroutine",
    "C stack overflow",
  };
  size_t i;

  for (i = 0; i < sizeof messages / sizeof messages[0]; ++i) {
    lua_pushstring (L, messages[i]);
    luaL_ref (L, LUA_REGISTRYINDEX);
  }
}

void
vm_push_native (lua_State *L)
{
  luaL_newlib (L, native);
}
