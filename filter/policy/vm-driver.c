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

/* The iterator that driver.reads () returns. */
static int
next_read (lua_State *L)
{
  struct vm_scan *scan = check_scan (L);

  if (scan->next_read == scan->nr_reads)
    return 0;
  lua_pushinteger (L, scan->reads[scan->next_read].offset);
  lua_pushinteger (L, scan->reads[scan->next_read].count);
  scan->next_read++;
  return 2;
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

/* disk:prefetch (offset [, count]), as Disk.prefetch in host.lua, which says
 * what it does.  Here again because it is called for every block: in Lua it
 * costs as much as all the rest of a usual decision.
 */
static int
driver_prefetch (lua_State *L)
{
  struct vm_scan *scan = check_scan (L);
  const lua_Integer size = scan->driver->size;
  lua_Integer offset, count;
  int ok;

  offset = lua_tointegerx (L, 2, &ok);
  if (!ok || lua_type (L, 2) != LUA_TNUMBER) {
    lua_settop (L, 2);          /* one that is not there is nil */
    return luaL_error (L, "disk:prefetch: offset should be a whole number of "
                       "bytes, got %s", luaL_tolstring (L, 2, NULL));
  }
  if (offset < 0 || offset >= size)
    return luaL_error (L, "disk:prefetch: offset %I is outside the disk "
                       "(size %I)", (LUAI_UACINT) offset, (LUAI_UACINT) size);
  if (lua_isnoneornil (L, 3))
    count = scan->driver->block;
  else {
    count = lua_tointegerx (L, 3, &ok);
    if (!ok || lua_type (L, 3) != LUA_TNUMBER)
      return luaL_error (L, "disk:prefetch: count should be a whole number of "
                         "bytes, got %s", luaL_tolstring (L, 3, NULL));
    if (count < 1)
      return luaL_error (L, "disk:prefetch: count should be at least 1, got "
                         "%I", (LUAI_UACINT) count);
  }
  if (count > size - offset)
    count = size - offset;
  if (L == scan->co && lua_isyieldable (L)) {
    /* Straight to who decides. */
    scan->asked = true;
    scan->asked_range = (struct range) { offset, count };
    return lua_yield (L, 0);
  }
  /* In a coroutine of the policy's own: to who resumed that. */
  lua_pushvalue (L, lua_upvalueindex (2));      /* "prefetch" */
  lua_pushinteger (L, offset);
  lua_pushinteger (L, count);
  return lua_yield (L, 3);
}

/* driver.now () */
static int
driver_now (lua_State *L)
{
  lua_pushnumber (L, (lua_Number) clock_now_ns () / NS_PER_SECOND);
  return 1;
}

/* Push the driver's table.  Raises errors. */
void
vm_push_driver (lua_State *L, int box, const struct vm_driver *driver)
{
  lua_createtable (L, 0, 10);                   /* driver */
  lua_pushinteger (L, driver->size);
  lua_setfield (L, -2, "size");
  lua_pushinteger (L, driver->block);
  lua_setfield (L, -2, "block");
  lua_pushstring (L, driver->export);
  lua_setfield (L, -2, "export");

  lua_pushvalue (L, box);                       /* driver box */
  lua_pushvalue (L, box);
  lua_pushcclosure (L, next_read, 1);           /* driver box next_read */
  lua_pushcclosure (L, driver_reads, 2);
  lua_setfield (L, -2, "reads");

  lua_pushvalue (L, box);
  lua_pushvalue (L, box);
  lua_pushcclosure (L, next_failure, 1);
  lua_pushcclosure (L, driver_failures, 2);
  lua_setfield (L, -2, "failures");

  lua_pushvalue (L, box);
  lua_pushcclosure (L, driver_reads_in_flight, 1);
  lua_setfield (L, -2, "reads_in_flight");

  lua_pushvalue (L, box);
  lua_pushcclosure (L, driver_idle, 1);
  lua_setfield (L, -2, "idle");

  lua_pushvalue (L, box);
  lua_pushcclosure (L, driver_closed, 1);
  lua_setfield (L, -2, "closed");

  lua_pushcfunction (L, driver_now);
  lua_setfield (L, -2, "now");

  lua_pushvalue (L, box);
  lua_pushliteral (L, "prefetch");
  lua_pushcclosure (L, driver_prefetch, 2);
  lua_setfield (L, -2, "prefetch");             /* driver */
}
