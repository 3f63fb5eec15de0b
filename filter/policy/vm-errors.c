/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* What is said when a policy fails; see vm-internal.h. */

#include <stdio.h>
#include <string.h>

#include "vm-internal.h"

/* Memory beyond the limit with which a failure is described. */
#define REPORT_BYTES (256 * 1024)

/* Of a policy's error message, in bytes; the rest is not shown. */
#define MESSAGE_MAX 2000

const char VM_OUT_OF_MEMORY[] = "out of memory";

/* What follows a place in our own modules, which is of no use to a policy's author; NULL
 * where a message does not begin with one.
 */
static const char *
after_our_place (const char *message)
{
  const char *p = library_is_ours (message) ? strstr (message, ": ") : NULL;

  return p != NULL && p < strchrnul (message, '\n') ? p + 2 : NULL;
}

/* Push what to say of an error value. */
static void
push_value (lua_State *L, int index)
{
  size_t length;
  const char *s, *rest;

  if (lua_type (L, index) == LUA_TSTRING) {
    s = lua_tolstring (L, index, &length);
    rest = after_our_place (s);
    if (rest != NULL) {
      length -= rest - s;
      s = rest;
    }
    lua_pushlstring (L, s, length < MESSAGE_MAX ? length : MESSAGE_MAX);
    if (length > MESSAGE_MAX) {
      lua_pushliteral (L, "...");
      lua_concat (L, 2);
    }
  }
  else if (lua_type (L, index) == LUA_TNUMBER)
    luaL_tolstring (L, index, NULL);
  else
    lua_pushfstring (L, "(error object is a %s value)",
                     luaL_typename (L, index));
}

/* Is a function of the user's own in the middle of something there? */
static bool
runs_user_code (lua_State *co)
{
  lua_Debug ar;
  int level;

  for (level = 0; lua_getstack (co, level, &ar); ++level) {
    lua_getinfo (co, "S", &ar);
    if (ar.what[0] != 'C' &&
        (ar.source[0] != '@' || library_builtin (ar.source + 1) == NULL))
      return true;
  }
  return false;
}

/* Push "FILE:LINE: " of where a coroutine is. */
static void
push_where (lua_State *L, lua_State *co)
{
  lua_Debug ar;

  if (vm_find_place (co, &ar))
    lua_pushfstring (L, "%s:%d: ", ar.short_src, ar.currentline);
  else
    lua_pushliteral (L, "");
}

/* Push what to say of an error value of a coroutine, with a place of the user's. */
static void
push_description (lua_State *L, int index, lua_State *co)
{
  const char *s = lua_type (L, index) == LUA_TSTRING ? lua_tostring (L, index) : NULL;

  if (s != NULL && after_our_place (s) == NULL)
    lua_pushliteral (L, "");    /* it has one, or none on purpose */
  else
    push_where (L, co);
  push_value (L, index);
  lua_concat (L, 2);
}

int
vm_add_traceback (lua_State *L)
{
  push_description (L, 1, L);
  if (runs_user_code (L))
    luaL_traceback (L, L, lua_tostring (L, -1), 1);
  return 1;
}

/* Describe why a coroutine stopped: its error value is argument 1, the
 * coroutine is argument 2, and argument 3 is a message to use instead, or
 * NULL.
 */
static int
describe_error (lua_State *L)
{
  lua_State *co = lua_tothread (L, 2);
  const char *message = lua_touserdata (L, 3);

  if (message != NULL) {
    if (vm_of (L)->killed_at[0] != '\0')
      lua_pushstring (L, vm_of (L)->killed_at);
    else
      push_where (L, co);
    lua_pushstring (L, message);
    lua_concat (L, 2);
  }
  else
    push_description (L, 1, co);
  if (!vm_of (L)->config.policy->builtin || runs_user_code (co))
    luaL_traceback (L, co, lua_tostring (L, -1), 0);
  return 1;
}

const char *
vm_limit_message (const struct vm *vm, int status, char *out, size_t size)
{
  if (vm->killed == TIMED_OUT)
    snprintf (out, size, "the policy took longer than %.4g seconds over one "
              "decision; see scan-policy-timeout",
              (double) vm->allowed_ns / NS_PER_SECOND);
  else if (status == LUA_ERRMEM && vm->refused)
    snprintf (out, size, "the policy needs more than %zu bytes of memory; "
              "see scan-policy-memory", vm->config.memory_bytes);
  else if (status == LUA_ERRMEM)
    snprintf (out, size, VM_OUT_OF_MEMORY);
  else
    return NULL;
  return out;
}

/* If a message begins with the end of a long path, as Lua cuts it ("...b/c.lua:2:
 * x"), return what follows the path.
 */
static const char *
after_cut_path (const char *message, const char *path)
{
  const char *colon = strchr (message, ':');
  size_t length;

  if (strncmp (message, "...", 3) != 0 || colon == NULL)
    return NULL;
  length = colon - (message + 3);
  if (length == 0 || length > strlen (path) ||
      strncmp (message + 3, path + strlen (path) - length, length) != 0)
    return NULL;
  return colon;
}

/* Make sure that a message names the policy: errors need not have a place, and
 * that of a tail call is not known.  Returns NULL if there is no memory; the
 * caller frees it.
 */
static char *
with_name (const struct vm *vm, const char *message)
{
  const char *name = vm->config.policy->name;
  const char *end = strchrnul (message, '\n'), *p = after_our_place (message);
  char *result;

  if (p != NULL)
    message = p;
  p = after_cut_path (message, name);
  if (p != NULL)
    return asprintf (&result, "%s%s", name, p) == -1 ? NULL : result;
  p = strstr (message, name);
  if (p != NULL && p < end)
    return strdup (message);
  return asprintf (&result, "%s: %s", name, message) == -1
    ? NULL : result;
}

void
vm_fail (struct vm *vm, const char *message)
{
  vm->error = message ? with_name (vm, message) : NULL;
  if (vm->error == NULL)
    vm->error = (char *) VM_OUT_OF_MEMORY;
  if (vm->L)
    lua_close (vm->L);
  vm->L = NULL;
  atomic_store (&vm->failed, true);
}

/* True if Lua's own message for want of memory is on top: a policy may have
 * caught the error and raised its text.
 */
static bool
is_memory_error (lua_State *co)
{
  const char *message =
    lua_type (co, -1) == LUA_TSTRING ? lua_tostring (co, -1) : "";

  return strcmp (message, "not enough memory") == 0;
}

void
vm_fail_scan (struct vm_scan *scan, int status, const char *message)
{
  struct vm *vm = scan->vm;
  lua_State *L = vm->L, *co = scan->co;
  char text[256];

  if (message == NULL)
    message = vm_limit_message (vm, lua_gettop (co) > 0 && is_memory_error (co)
                             ? LUA_ERRMEM : status, text, sizeof text);

  /* Describing it is not the policy's doing. */
  vm->limit_bytes += REPORT_BYTES;
  lua_sethook (L, NULL, 0, 0);
  lua_settop (L, 0);
  if (lua_checkstack (L, 5)) {
    lua_pushcfunction (L, describe_error);
    if (lua_gettop (co) > 0)
      lua_xmove (co, L, 1);
    else
      lua_pushnil (L);
    lua_rawgeti (L, LUA_REGISTRYINDEX, scan->ref);
    lua_getiuservalue (L, -1, 1);
    lua_remove (L, -2);
    lua_pushlightuserdata (L, (void *) message);
    if (lua_pcall (L, 3, 1, 0) == LUA_OK)
      message = lua_tostring (L, -1);
  }
  vm_fail (vm, message);
}
