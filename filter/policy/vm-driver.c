/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* How a policy asks about its scan: host.lua's table driver. */

#include <errno.h>

#include "vm-internal.h"

static struct vm_scan *
check_scan (lua_State *L)
{
  struct box *box = lua_touserdata (L, lua_upvalueindex (1));

  if (box->scan == NULL)
    luaL_error (L, "this disk belongs to a scan that has ended");
  /* Another scan may end at any moment, and what its driver needs with it. */
  if (box->scan->driver != vm_of (L)->driver)
    luaL_error (L, "this disk belongs to another scan");
  return box->scan;
}

static const char *const met_names[] = {
  [MET_MISS] = "miss", [MET_LATE] = "late", [MET_HIT] = "hit",
};

/* The iterator that driver.reads () returns: upvalues are the box and the names
 * of what a read can meet.
 */
static int
next_read (lua_State *L)
{
  struct vm_scan *scan = check_scan (L);
  const struct met_read *read;

  if (scan->next_read == scan->nr_reads)
    return 0;
  read = &scan->reads[scan->next_read++];
  lua_pushinteger (L, read->range.offset);
  lua_pushinteger (L, read->range.count);
  lua_pushvalue (L, lua_upvalueindex (2 + read->met));
  return 3;
}

/* driver.reads (): upvalues are the box and the iterator. */
static int
driver_reads (lua_State *L)
{
  struct vm_scan *scan = check_scan (L);

  scan->nr_reads = scan->driver->reads (scan->driver->opaque, &scan->reads);
  scan->next_read = 0;
  lua_pushvalue (L, lua_upvalueindex (2));
  return 1;
}

const char *
vm_errno_name (int err)
{
  switch (err) {
  case VM_SKIPPED: return "EBUSY";
  case EINVAL:    return "EINVAL";
  case EIO:       return "EIO";
  case ENOMEM:    return "ENOMEM";
  case ENOSPC:    return "ENOSPC";
  case ENOTSUP:   return "ENOTSUP";
  case EOVERFLOW: return "EOVERFLOW";
  case EPERM:     return "EPERM";
  case ESHUTDOWN: return "ESHUTDOWN";
  case ETIMEDOUT: return "ETIMEDOUT";
  default:        return "EIO";  /* as NBD itself does for what it can't name */
  }
}

/* The iterator that driver.failures () returns. */
static int
next_failure (lua_State *L)
{
  struct vm_scan *scan = check_scan (L);
  const struct vm_failure *failure;

  if (scan->next_failure == scan->nr_failures)
    return 0;
  failure = &scan->failures[scan->next_failure++];
  lua_pushinteger (L, failure->range.offset);
  lua_pushinteger (L, failure->range.count);
  lua_pushstring (L, vm_errno_name (failure->err));
  return 3;
}

/* driver.failures (): upvalues are the box and the iterator. */
static int
driver_failures (lua_State *L)
{
  struct vm_scan *scan = check_scan (L);

  scan->nr_failures =
    scan->driver->failures (scan->driver->opaque, &scan->failures);
  scan->next_failure = 0;
  lua_pushvalue (L, lua_upvalueindex (2));
  return 1;
}

/* The iterator that driver.results () returns. */
static int
next_result (lua_State *L)
{
  struct vm_scan *scan = check_scan (L);
  const struct vm_result *result;

  if (scan->next_result == scan->nr_results)
    return 0;
  result = &scan->results[scan->next_result++];
  lua_pushinteger (L, result->range.offset);
  lua_pushinteger (L, result->range.count);
  lua_pushnumber (L, (lua_Number) result->ns / NS_PER_SECOND);
  if (result->err == 0)
    return 3;
  lua_pushstring (L, vm_errno_name (result->err));
  return 4;
}

/* driver.results (): upvalues are the box and the iterator. */
static int
driver_results (lua_State *L)
{
  struct vm_scan *scan = check_scan (L);

  scan->nr_results =
    scan->driver->results (scan->driver->opaque, &scan->results);
  scan->next_result = 0;
  lua_pushvalue (L, lua_upvalueindex (2));
  return 1;
}

/* driver.missing (disk, from, to) */
static int
driver_missing (lua_State *L)
{
  struct vm_scan *scan = check_scan (L);
  const lua_Integer size = scan->driver->size;
  lua_Integer from = luaL_checkinteger (L, 2), to = luaL_optinteger (L, 3, size);
  struct range missing;

  if (from < 0)
    from = 0;
  if (to > size)
    to = size;
  if (from >= to || !scan->driver->missing (scan->driver->opaque, from, to,
                                            &missing))
    return 0;
  lua_pushinteger (L, missing.offset);
  lua_pushinteger (L, missing.count);
  return 2;
}

/* driver.room () */
static int
driver_room (lua_State *L)
{
  struct vm_scan *scan = check_scan (L);

  lua_pushinteger (L, scan->driver->room (scan->driver->opaque));
  return 1;
}

/* driver.reads_in_flight () */
static int
driver_reads_in_flight (lua_State *L)
{
  struct vm_scan *scan = check_scan (L);

  lua_pushinteger (L, scan->driver->reads_in_flight (scan->driver->opaque));
  return 1;
}

/* driver.idle () */
static int
driver_idle (lua_State *L)
{
  struct vm_scan *scan = check_scan (L);

  lua_pushnumber (L, (lua_Number) scan->driver->idle_ns (scan->driver->opaque)
                  / NS_PER_SECOND);
  return 1;
}

/* driver.closed () */
static int
driver_closed (lua_State *L)
{
  struct box *box = lua_touserdata (L, lua_upvalueindex (1));
  struct vm_scan *scan = box->scan;

  lua_pushboolean (L, scan == NULL ? true
                   : scan->driver == vm_of (L)->driver
                   ? scan->driver->closed (scan->driver->opaque)
                   : atomic_load (&scan->has_ended));
  return 1;
}

/* Take what was given to disk:prefetch as it is, if it is plainly right: a disk at 1,
 * an offset at 2, and perhaps a count at 3.
 */
static bool
is_plain_range (lua_State *L, const struct vm_driver *driver,
                struct range *range)
{
  lua_Integer offset, count = driver->block;

  if (!lua_istable (L, 1) || !lua_isinteger (L, 2))
    return false;
  offset = lua_tointeger (L, 2);
  if (!lua_isnoneornil (L, 3)) {
    if (!lua_isinteger (L, 3))
      return false;
    count = lua_tointeger (L, 3);
  }
  if (offset < 0 || (uint64_t) offset >= driver->size || count < 1)
    return false;
  range->offset = offset;
  range->count = driver->size - offset;
  if ((uint64_t) count < range->count)
    range->count = count;
  return true;
}

/* disk:prefetch (offset [, count]): upvalues are the box, "prefetch", and what
 * host.lua has to say of arguments that are not plainly right.  Here because it is
 * called for every block: in Lua it costs as much as all the rest of a usual
 * decision.
 */
static int
driver_prefetch (lua_State *L)
{
  struct vm_scan *scan = check_scan (L);
  struct range range;

  if (!is_plain_range (L, scan->driver, &range)) {
    lua_settop (L, 3);          /* what is not there is nil */
    lua_pushvalue (L, lua_upvalueindex (3));
    lua_pushinteger (L, scan->driver->size);
    lua_pushinteger (L, scan->driver->block);
    lua_rotate (L, 1, 3);       /* prefetch_range size block disk offset count */
    lua_call (L, 5, 2);         /* offset count, or nil message */
    if (lua_isnil (L, -2))
      return luaL_error (L, "%s", lua_tostring (L, -1));
    range.offset = lua_tointeger (L, -2);
    range.count = lua_tointeger (L, -1);
  }
  if (L == scan->co && lua_isyieldable (L)) {
    /* Straight to who decides. */
    scan->asked = true;
    scan->asked_range = range;
    return lua_yield (L, 0);
  }
  /* In a coroutine of the policy's own: to who resumed that. */
  lua_pushvalue (L, lua_upvalueindex (2));      /* "prefetch" */
  lua_pushinteger (L, range.offset);
  lua_pushinteger (L, range.count);
  return lua_yield (L, 3);
}

/* driver.now () */
static int
driver_now (lua_State *L)
{
  lua_pushnumber (L, (lua_Number) clock_now_ns () / NS_PER_SECOND);
  return 1;
}

/* Set a field of the table at the top to a function whose upvalue is the box. */
static void
set_function (lua_State *L, int box, const char *name, lua_CFunction function)
{
  lua_pushvalue (L, box);
  lua_pushcclosure (L, function, 1);
  lua_setfield (L, -2, name);
}

/* The same of a function that returns an iterator, which are its upvalues. */
static void
set_list (lua_State *L, int box, const char *name, lua_CFunction function,
          lua_CFunction iterator)
{
  lua_pushvalue (L, box);
  lua_pushvalue (L, box);
  lua_pushcclosure (L, iterator, 1);
  lua_pushcclosure (L, function, 2);
  lua_setfield (L, -2, name);
}

void
vm_push_driver (lua_State *L, int box, const struct vm_driver *driver)
{
  enum met met;

  lua_createtable (L, 0, 13);                   /* driver */
  lua_pushinteger (L, driver->size);
  lua_setfield (L, -2, "size");
  lua_pushinteger (L, driver->block);
  lua_setfield (L, -2, "block");
  lua_pushstring (L, driver->export);
  lua_setfield (L, -2, "export");

  lua_pushvalue (L, box);                       /* driver box */
  lua_pushvalue (L, box);
  for (met = MET_MISS; met <= MET_HIT; ++met)
    lua_pushstring (L, met_names[met]);
  lua_pushcclosure (L, next_read, 1 + MET_HIT + 1); /* driver box next_read */
  lua_pushcclosure (L, driver_reads, 2);
  lua_setfield (L, -2, "reads");
  set_list (L, box, "failures", driver_failures, next_failure);
  set_list (L, box, "results", driver_results, next_result);
  set_function (L, box, "missing", driver_missing);
  set_function (L, box, "room", driver_room);
  set_function (L, box, "reads_in_flight", driver_reads_in_flight);
  set_function (L, box, "idle", driver_idle);
  set_function (L, box, "closed", driver_closed);
  lua_pushcfunction (L, driver_now);
  lua_setfield (L, -2, "now");

  lua_pushvalue (L, box);
  lua_pushliteral (L, "prefetch");
  lua_rawgeti (L, LUA_REGISTRYINDEX, vm_of (L)->prefetch_range_ref);
  lua_pushcclosure (L, driver_prefetch, 3);
  lua_setfield (L, -2, "prefetch");             /* driver */
}
