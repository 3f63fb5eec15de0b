/* See vm.h.
 *
 * Three things keep a policy within its limits: the allocator counts bytes
 * (alloc), the count hook looks at the clock (hook), and everything that can
 * raise a Lua error runs in a protected call.  Outside of those, only functions
 * of the Lua API that neither raise nor allocate are used.
 *
 * On the registry of the state: MAIN, the function that boot.lua returned, and
 * RUN, the policy as a function of the disk.  Each scan holds one reference, to
 * a userdata (struct box) whose user value is its coroutine.  A policy may keep
 * the disk of a scan that has ended; its functions find the box empty then.
 */

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <pthread.h>

#include <lua.h>
#include <lauxlib.h>
#include <lualib.h>

#include <nbdkit-filter.h>

#include "clock.h"
#include "library.h"
#include "vm.h"

#if LUA_VERSION_NUM != 504
#error "this filter needs Lua 5.4"
#endif

/* Lua instructions between two looks at the clock, at most: 50 to 200 us if
 * they are ordinary ones.  But one instruction can compare, copy or collect all
 * that the policy keeps in memory, so that there are fewer of them the more that
 * is: this many bytes times instructions are at most a few tenths of a second.
 */
#define LOOK_INSTRUCTIONS_MAX 8192
#define LOOK_BYTES_INSTRUCTIONS (UINT64_C (512) * 1024 * 1024)

/* Once its client has gone, a decision may take this much longer, and a scan
 * waits this long for its last turn.
 */
#define GONE_GRACE_NS (NS_PER_SECOND / 10)

/* How long one attempt at the policy lock is. */
#define LOCK_SLICE_MS 20

/* Memory beyond the limit with which a failure is described. */
#define REPORT_BYTES (256 * 1024)

/* How many coroutines may be in the middle of being closed.  Lua 5.4.4 begins to
 * count calls in C anew in each, so that nothing else would keep a chain of them
 * from overflowing the stack.
 */
#define CLOSING_MAX 4

/* Of a policy's error message, in bytes; the rest is not shown. */
#define MESSAGE_MAX 2000

enum kill_reason { ALIVE, TIMED_OUT, CLIENT_GONE };

struct vm {
  /* Immutable. */
  struct vm_config config;

  /* The policy lock, taken before a read queue's lock and after no other. */
  pthread_mutex_t lock;

  /* Protected by lock. */
  lua_State *L;                 /* NULL before loading and after a failure */
  size_t used_bytes, limit_bytes;
  int main_ref, run_ref;
  const char *policy_name;      /* as messages have it; the library's */
  bool loaded;
  char *error;                  /* set once */
  /* The decision in progress. */
  const struct vm_driver *driver;
  lua_State *running;           /* the innermost coroutine, or NULL */
  unsigned closing;             /* native_close calls in progress */
  int look_instructions;        /* between two looks at the clock */
  size_t look_bytes;            /* look at once when more memory is used */
  bool refused;                 /* for the limit's sake, in this decision */
  uint64_t started_ns, gone_ns; /* 0: not looked at yet */
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
  const struct range *reads;    /* what an iterator walks over */
  size_t nr_reads, next_read;
  const struct vm_failure *failures;
  size_t nr_failures, next_failure;

  atomic_bool has_ended;        /* driver may not be used any more */
  struct vm_scan *next_ended;   /* belongs to whoever holds the list */
};

static const char OUT_OF_MEMORY[] = "out of memory";

/* -- limits ---------------------------------------------------------------- */

static void hook (lua_State *L, lua_Debug *ar);

/* How often to look at the clock depends on how much memory is used. */
static void
set_look_interval (struct vm *vm)
{
  int n = LOOK_INSTRUCTIONS_MAX;

  while (n > 1 && (uint64_t) n * vm->used_bytes > LOOK_BYTES_INSTRUCTIONS)
    n /= 2;
  vm->look_instructions = n;
  vm->look_bytes = 2 * vm->used_bytes;
}

static void *
alloc (void *opaque, void *ptr, size_t old_size, size_t new_size)
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
    set_look_interval (vm);
    lua_sethook (vm->running, hook, LUA_MASKCOUNT, 1); /* may be called anywhere */
  }
  return p;
}

static struct vm *
vm_of (lua_State *L)
{
  /* Copied by Lua from the main thread to every coroutine. */
  return *(struct vm **) lua_getextraspace (L);
}

/* Fill in source and line of the innermost function that is the policy's own,
 * or else of the innermost in Lua.  Returns false if there is none.
 */
static bool
find_place (lua_State *co, lua_Debug *ar)
{
  int level, ours = -1;

  for (level = 0; lua_getstack (co, level, ar); ++level) {
    lua_getinfo (co, "Sl", ar);
    if (ar->currentline > 0) {
      if (strncmp (ar->source, "@lua/scan/", strlen ("@lua/scan/")) != 0)
        return true;
      if (ours == -1)
        ours = level;
    }
  }
  return ours >= 0 && lua_getstack (co, ours, ar) &&
    lua_getinfo (co, "Sl", ar);
}

/* Look at the clock, and whether the client is still there. */
static void
look (struct vm *vm, lua_State *L)
{
  const uint64_t now = clock_now_ns ();
  lua_Debug ar;

  if (vm->killed != ALIVE)
    return;
  if (vm->started_ns == 0)
    vm->started_ns = now;
  if (vm->gone_ns == 0 && vm->driver != NULL &&
      vm->driver->gone (vm->driver->opaque))
    vm->gone_ns = now;

  if (now - vm->started_ns > vm->config.timeout_ns)
    vm->killed = TIMED_OUT;
  else if (vm->gone_ns != 0 && now - vm->gone_ns > GONE_GRACE_NS)
    vm->killed = CLIENT_GONE;
  if (vm->killed != ALIVE && find_place (L, &ar))
    snprintf (vm->killed_at, sizeof vm->killed_at, "%s:%d: ", ar.short_src,
              ar.currentline);
}

static int
raise_killed (lua_State *L)
{
  return luaL_error (L, "the policy was stopped");
}

/* Runs after every look_instructions.  A policy may catch the error, so once it
 * is over the hook runs after every instruction.
 */
static void
hook (lua_State *L, lua_Debug *ar)
{
  struct vm *vm = vm_of (L);

  (void) ar;
  look (vm, L);
  if (vm->killed != ALIVE) {
    lua_sethook (L, hook, LUA_MASKCOUNT, 1);
    raise_killed (L);
  }
  set_look_interval (vm);
  if (lua_gethookcount (L) != vm->look_instructions)
    lua_sethook (L, hook, LUA_MASKCOUNT, vm->look_instructions);
}

/* This coroutine runs from now on.  Its hook may be from a time when less
 * memory was used.
 */
static void
enter (struct vm *vm, lua_State *co)
{
  vm->running = co;
  if (vm->killed != ALIVE)
    lua_sethook (co, hook, LUA_MASKCOUNT, 1);
  else if (lua_gethookcount (co) > vm->look_instructions)
    lua_sethook (co, hook, LUA_MASKCOUNT, vm->look_instructions);
}

/* Begin a decision.  driver is NULL while a policy is loaded at start-up. */
static void
begin_decision (struct vm *vm, const struct vm_driver *driver)
{
  vm->driver = driver;
  vm->refused = false;
  vm->closing = 0;
  vm->started_ns = vm->gone_ns = 0;
  vm->killed = ALIVE;
  vm->killed_at[0] = '\0';
}

/* -- what Lua may call: sandbox.lua's native ------------------------------- */

/* native.alive () */
static int
native_alive (lua_State *L)
{
  struct vm *vm = vm_of (L);

  look (vm, L);
  if (vm->killed != ALIVE)
    return raise_killed (L);
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
  enter (vm, co);
  status = lua_resume (co, L, n, &results);
  enter (vm, L);
  if (vm->killed != ALIVE)
    return raise_killed (L);
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
  enter (vm, co);
#if LUA_VERSION_RELEASE_NUM >= 50406
  status = lua_closethread (co, L);
#else
  status = lua_resetthread (co);
#endif
  enter (vm, L);
  vm->closing--;
  if (vm->killed != ALIVE)
    return raise_killed (L);
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
static int
push_text (lua_State *L, const struct text *text, const char *error)
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

  return push_text (L, library_module (luaL_checkstring (L, 1), error), error);
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
  size_t i;

  for (i = 0; i < config->nr_args; ++i)
    if (strcmp (config->args[i].value, name) == 0)
      return push_text (L, library_policy (name, error), error);
  return push_text (L, library_neighbour (name, error), error);
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

/* -- what Lua may call: host.lua's driver ---------------------------------- */

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

static const char *
errno_name (int err)
{
  switch (err) {
  case EBUSY:     return "EBUSY";
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
  lua_pushstring (L, errno_name (failure->err));
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
  const struct vm_scan *scan = check_scan (L);
  const lua_Integer size = scan->driver->size;
  lua_Integer offset, count;
  int ok;

  lua_settop (L, 3);
  offset = lua_tointegerx (L, 2, &ok);
  if (!ok || lua_type (L, 2) != LUA_TNUMBER)
    return luaL_error (L, "disk:prefetch: offset should be a whole number of "
                       "bytes, got %s", luaL_tolstring (L, 2, NULL));
  if (offset < 0 || offset >= size)
    return luaL_error (L, "disk:prefetch: offset %I is outside the disk "
                       "(size %I)", (LUAI_UACINT) offset, (LUAI_UACINT) size);
  if (lua_isnil (L, 3))
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
static void
push_driver (lua_State *L, int box, const struct vm_driver *driver)
{
  lua_createtable (L, 0, 9);                    /* driver */
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

/* -- protected calls ------------------------------------------------------- */

/* Push what to say of an error value. */
static void
push_description (lua_State *L, int index)
{
  size_t length;
  const char *s;

  if (lua_type (L, index) == LUA_TSTRING) {
    s = lua_tolstring (L, index, &length);
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

/* Message handler: adds a traceback. */
static int
add_traceback (lua_State *L)
{
  push_description (L, 1);
  luaL_traceback (L, L, lua_tostring (L, -1), 1);
  return 1;
}

/* Push "FILE:LINE: " of where a coroutine is. */
static void
push_where (lua_State *L, lua_State *co)
{
  lua_Debug ar;

  if (find_place (co, &ar))
    lua_pushfstring (L, "%s:%d: ", ar.short_src, ar.currentline);
  else
    lua_pushliteral (L, "");
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
  else if (lua_type (L, 1) == LUA_TSTRING)
    push_description (L, 1);
  else {
    push_where (L, co);
    push_description (L, 1);
    lua_concat (L, 2);
  }
  luaL_traceback (L, co, lua_tostring (L, -1), 0);
  return 1;
}

/* Searcher of the package library: our own modules, from memory. */
static int
search_module (lua_State *L)
{
  char error[LIBRARY_ERROR_MAX] = "";
  const struct text *text = library_module (luaL_checkstring (L, 1), error);

  if (text == NULL || !text->builtin)
    return 0;
  lua_pushfstring (L, "@%s", text->name);
  if (luaL_loadbufferx (L, text->data, text->length, lua_tostring (L, -1), "t")
      != LUA_OK)
    return lua_error (L);
  return 1;
}

/* Fill a new state: our modules, the sandbox, the policy.  Argument 1 is the
 * vm.
 */
static int
boot (lua_State *L)
{
  struct vm *vm = lua_touserdata (L, 1);
  const struct text *text, *policy;
  char error[LIBRARY_ERROR_MAX] = "";
  size_t i;

  lua_settop (L, 0);
  luaL_checkversion (L);
  luaL_openlibs (L);

  lua_getglobal (L, "package");                 /* package */
  lua_createtable (L, 1, 0);                    /* package searchers */
  lua_pushcfunction (L, search_module);
  lua_rawseti (L, -2, 1);
  lua_setfield (L, -2, "searchers");            /* package */
  lua_settop (L, 0);

  text = library_builtin ("filter/boot.lua");
  if (luaL_loadbufferx (L, text->data, text->length, "@filter/boot.lua", "t")
      != LUA_OK)
    return lua_error (L);                       /* boot */
  luaL_newlib (L, native);                      /* boot native */
  lua_call (L, 1, 2);                           /* load main */
  vm->main_ref = luaL_ref (L, LUA_REGISTRYINDEX); /* load */

  policy = library_policy (vm->config.policy, error);
  if (policy == NULL) {
    lua_pushfstring (L, "scan-policy: %s", error);
    return lua_error (L);
  }
  vm->policy_name = policy->name;
  push_text (L, policy, error);                 /* load text chunk_name ours */
  lua_pop (L, 1);
  lua_createtable (L, 0, vm->config.nr_args);   /* load text chunk_name args */
  for (i = 0; i < vm->config.nr_args; ++i) {
    lua_pushstring (L, vm->config.args[i].value);
    lua_setfield (L, -2, vm->config.args[i].name);
  }
  lua_call (L, 3, 1);                           /* run */
  vm->run_ref = luaL_ref (L, LUA_REGISTRYINDEX);
  return 0;
}

/* Make a scan's box, coroutine and driver, and leave main, run and driver on
 * the coroutine's stack.
 */
static int
make_scan (lua_State *L)
{
  struct vm_scan *scan = lua_touserdata (L, 1);
  struct box *box;
  lua_State *co;

  lua_settop (L, 0);
  box = lua_newuserdatauv (L, sizeof *box, 1);  /* box */
  box->scan = NULL;
  co = lua_newthread (L);                       /* box co */
  lua_setiuservalue (L, 1, 1);                  /* box */
  if (!lua_checkstack (co, LUA_MINSTACK))
    return luaL_error (L, OUT_OF_MEMORY);
  lua_rawgeti (L, LUA_REGISTRYINDEX, scan->vm->main_ref);
  lua_rawgeti (L, LUA_REGISTRYINDEX, scan->vm->run_ref);
  push_driver (L, 1, scan->driver);             /* box main run driver */
  lua_xmove (L, co, 3);                         /* box */
  scan->ref = luaL_ref (L, LUA_REGISTRYINDEX);
  box->scan = scan;
  scan->box = box;
  scan->co = co;
  return 0;
}

/* Push the bytes of an answer. */
static int
push_bytes (lua_State *L)
{
  const struct vm_answer *answer = lua_touserdata (L, 1);

  lua_pushlstring (L, answer->bytes, answer->length);
  return 1;
}

static int
push_errno (lua_State *L)
{
  const struct vm_answer *answer = lua_touserdata (L, 1);

  lua_pushstring (L, errno_name (answer->err));
  return 1;
}

/* -- failures -------------------------------------------------------------- */

static const char *
limit_message (const struct vm *vm, int status, char *out, size_t size)
{
  if (vm->killed == TIMED_OUT)
    snprintf (out, size, "the policy took longer than %g seconds over one "
              "decision; see scan-policy-timeout",
              (double) vm->config.timeout_ns / NS_PER_SECOND);
  else if (status == LUA_ERRMEM && vm->refused)
    snprintf (out, size, "the policy needs more than %zu bytes of memory; "
              "see scan-policy-memory", vm->config.memory_bytes);
  else if (status == LUA_ERRMEM)
    snprintf (out, size, OUT_OF_MEMORY);
  else
    return NULL;
  return out;
}

/* Make sure that a message names the policy: errors need not have a place, and
 * that of a tail call is not known.  A place in our own modules is of no use.
 * Returns NULL if there is no memory; the caller frees it.
 */
static char *
with_name (const struct vm *vm, const char *message)
{
  const char *end = strchrnul (message, '\n'), *p;
  char *result;

  if (strncmp (message, "lua/scan/", strlen ("lua/scan/")) == 0) {
    p = strstr (message, ": ");
    if (p != NULL && p < end)
      message = p + 2;
  }
  if (vm->policy_name == NULL)
    return strdup (message);
  p = strstr (message, vm->policy_name);
  if (p != NULL && p < end)
    return strdup (message);
  return asprintf (&result, "%s: %s", vm->policy_name, message) == -1
    ? NULL : result;
}

/* The vm has failed: keep the message and close the state.  message may point
 * into the state, and NULL means that there is no memory for one.
 */
static void
fail (struct vm *vm, const char *message)
{
  vm->error = message ? with_name (vm, message) : NULL;
  if (vm->error == NULL)
    vm->error = (char *) OUT_OF_MEMORY;
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

/* A coroutine stopped with an error value on its stack, or, if message is
 * given, yielded something that is not a request.
 */
static void
fail_scan (struct vm_scan *scan, int status, const char *message)
{
  struct vm *vm = scan->vm;
  lua_State *L = vm->L, *co = scan->co;
  char text[256];

  if (message == NULL)
    message = limit_message (vm, lua_gettop (co) > 0 && is_memory_error (co)
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
  fail (vm, message);
}

/* -- the functions of vm.h ------------------------------------------------- */

struct vm *
vm_new (const struct vm_config *config)
{
  struct vm *vm = calloc (1, sizeof *vm);

  if (vm == NULL)
    return NULL;
  vm->config = *config;
  vm->limit_bytes = config->memory_bytes;
  pthread_mutex_init (&vm->lock, NULL);
  return vm;
}

static int
panic (lua_State *L)
{
  /* Unreachable as long as the rule at the top is kept. */
  nbdkit_error ("scan: Lua error outside of a protected call: %s",
                lua_type (L, -1) == LUA_TSTRING ? lua_tostring (L, -1) : "?");
  return 0;
}

/* Make the state and load the policy.  The lock must be held. */
static int
load (struct vm *vm, const struct vm_driver *driver)
{
  lua_State *L;
  char text[256], place[sizeof text + sizeof vm->killed_at];
  const char *message;
  int status;

  vm->loaded = true;
  begin_decision (vm, driver);
  L = vm->L = lua_newstate (alloc, vm);
  if (L == NULL) {
    fail (vm, limit_message (vm, LUA_ERRMEM, text, sizeof text));
    return -1;
  }
  lua_atpanic (L, panic);
  *(struct vm **) lua_getextraspace (L) = vm;
  set_look_interval (vm);
  lua_sethook (L, hook, LUA_MASKCOUNT, vm->look_instructions);

  vm->running = L;
  lua_pushcfunction (L, add_traceback);
  lua_pushcfunction (L, boot);
  lua_pushlightuserdata (L, vm);
  status = lua_pcall (L, 1, 0, 1);
  vm->running = NULL;
  if (status == LUA_OK) {
    lua_settop (L, 0);
    return 0;
  }
  if (vm->killed == CLIENT_GONE) {
    /* Not a fault; the next client has another try. */
    lua_close (L);
    vm->L = NULL;
    vm->loaded = false;
    return -1;
  }
  message = limit_message (vm, status, text, sizeof text);
  if (message != NULL) {
    snprintf (place, sizeof place, "%s%s", vm->killed_at, message);
    message = place;
  }
  else if (lua_type (L, -1) == LUA_TSTRING)
    message = lua_tostring (L, -1);
  fail (vm, message);
  return -1;
}

int
vm_load (struct vm *vm)
{
  int r;

  pthread_mutex_lock (&vm->lock);
  r = load (vm, NULL);
  pthread_mutex_unlock (&vm->lock);
  return r;
}

const char *
vm_error (struct vm *vm)
{
  return vm->error;
}

bool
vm_has_failed (struct vm *vm)
{
  return atomic_load (&vm->failed);
}

void
vm_get_totals (struct vm *vm, struct vm_totals *totals)
{
  totals->decisions = atomic_load (&vm->decisions);
  totals->lua_ns = atomic_load (&vm->lua_ns);
}

struct vm_scan *
vm_scan_new (struct vm *vm, const struct vm_driver *driver)
{
  struct vm_scan *scan = calloc (1, sizeof *scan);

  if (scan == NULL)
    return NULL;
  scan->vm = vm;
  scan->driver = driver;
  return scan;
}

/* Give back what a scan holds in Lua.  The lock must be held. */
static void
forget_scan (struct vm_scan *scan)
{
  if (scan->box != NULL && scan->vm->L != NULL) {
    scan->box->scan = NULL;
    luaL_unref (scan->vm->L, LUA_REGISTRYINDEX, scan->ref);
  }
  free (scan);
}

static void
forget_ended_scans (struct vm *vm)
{
  struct vm_scan *scan, *next;

  if (atomic_load_explicit (&vm->ended, memory_order_relaxed) == NULL)
    return;
  for (scan = atomic_exchange (&vm->ended, NULL); scan != NULL; scan = next) {
    next = scan->next_ended;
    forget_scan (scan);
  }
}

void
vm_scan_free (struct vm_scan *scan)
{
  struct vm *vm;

  if (scan == NULL)
    return;
  vm = scan->vm;
  atomic_store (&scan->has_ended, true);
  if (pthread_mutex_trylock (&vm->lock) == 0) {
    forget_scan (scan);
    pthread_mutex_unlock (&vm->lock);
    return;
  }
  scan->next_ended = atomic_load (&vm->ended);
  while (!atomic_compare_exchange_weak (&vm->ended, &scan->next_ended, scan))
    ;
}

void
vm_free (struct vm *vm)
{
  if (vm == NULL)
    return;
  forget_ended_scans (vm);
  if (vm->L)
    lua_close (vm->L);
  if (vm->error != OUT_OF_MEMORY)
    free (vm->error);
  pthread_mutex_destroy (&vm->lock);
  free (vm);
}

/* Take the policy lock.  Returns false if the scan's client has gone and
 * another scan's decision takes too long.
 */
static bool
take_turn (struct vm_scan *scan)
{
  const struct vm_driver *driver = scan->driver;
  uint64_t gone_ns = 0;
  struct timespec ts;

  if (pthread_mutex_trylock (&scan->vm->lock) == 0)
    return true;
  for (;;) {
    /* This lock can only be waited for by the wall clock; a jump of it makes
     * one slice longer or shorter.
     */
    clock_gettime (CLOCK_REALTIME, &ts);
    ts.tv_nsec += LOCK_SLICE_MS * 1000000;
    if (ts.tv_nsec >= (long) NS_PER_SECOND) {
      ts.tv_sec++;
      ts.tv_nsec -= NS_PER_SECOND;
    }
    if (pthread_mutex_timedlock (&scan->vm->lock, &ts) == 0)
      return true;
    if (driver->gone (driver->opaque)) {
      if (gone_ns == 0)
        gone_ns = clock_now_ns ();
      else if (clock_now_ns () - gone_ns > GONE_GRACE_NS)
        return false;
    }
  }
}

/* Push the answer on the coroutine's stack.  Returns the number of values, or
 * -1 if there is no memory for them.
 */
static int
push_answer (struct vm_scan *scan, const struct vm_answer *answer)
{
  lua_State *L = scan->vm->L;

  if (answer->type == VM_NOTHING)
    return 0;
  if (!lua_checkstack (scan->co, 2) || !lua_checkstack (L, 2))
    return -1;
  switch (answer->type) {
  case VM_OFFSET:
    lua_pushinteger (scan->co, answer->offset);
    return 1;
  case VM_ERRNO:
    lua_pushnil (scan->co);
    lua_pushcfunction (L, push_errno);
    break;
  default:
    lua_pushcfunction (L, push_bytes);
  }
  lua_pushlightuserdata (L, (void *) answer);
  if (lua_pcall (L, 1, 1, 0) != LUA_OK) {
    lua_settop (L, 0);
    return -1;
  }
  lua_xmove (L, scan->co, 1);
  return answer->type == VM_ERRNO ? 2 : 1;
}

/* Take an offset that the policy yielded. */
static bool
to_offset (lua_State *co, int index, uint64_t size, uint64_t *offset)
{
  const lua_Integer n = lua_tointeger (co, index);

  if (!lua_isinteger (co, index) || n < 0 || (uint64_t) n >= size)
    return false;
  *offset = n;
  return true;
}

/* Take a range that the policy yielded, offset at this index. */
static bool
to_range (lua_State *co, int index, uint64_t size, struct range *range)
{
  const lua_Integer n = lua_tointeger (co, index + 1);

  if (!to_offset (co, index, size, &range->offset) ||
      !lua_isinteger (co, index + 1) ||
      n < 1 || (uint64_t) n > size - range->offset)
    return false;
  range->count = n;
  return true;
}

/* Take what the policy yielded: n values at the top of its stack.  Returns
 * false if it is not a request.
 */
static bool
to_request (struct vm_scan *scan, int n, struct vm_request *request)
{
  lua_State *co = scan->co;
  const uint64_t size = scan->driver->size;
  const int first = lua_gettop (co) - n + 1;
  const char *op;
  lua_Number seconds;

  if (n < 1 || lua_type (co, first) != LUA_TSTRING)
    return false;
  op = lua_tostring (co, first);
  if (n == 3 && strcmp (op, "prefetch") == 0) {
    request->type = VM_PREFETCH;
    return to_range (co, first + 1, size, &request->range);
  }
  if (n == 2 && strcmp (op, "wait") == 0) {
    request->type = VM_WAIT;
    request->until_ns = CLOCK_NEVER;
    if (lua_isnil (co, first + 1))
      return true;
    seconds = lua_tonumber (co, first + 1);
    if (lua_type (co, first + 1) != LUA_TNUMBER || !(seconds >= 0))
      return false;
    if (seconds < 1e9)
      request->until_ns = clock_now_ns () + seconds * NS_PER_SECOND;
    return true;
  }
  if (n == 1 && strcmp (op, "settle") == 0) {
    request->type = VM_SETTLE;
    return true;
  }
  if (n == 2 && strcmp (op, "next_data") == 0) {
    request->type = VM_NEXT_DATA;
    return to_offset (co, first + 1, size, &request->range.offset);
  }
  if (n == 3 && strcmp (op, "pread") == 0) {
    request->type = VM_PREAD;
    return to_range (co, first + 1, size, &request->range) &&
      request->range.count <= VM_PREAD_MAX_BYTES;
  }
  return false;
}

/* One go of a scan's coroutine. */
struct step {
  struct vm_scan *scan;
  int nr_values;                /* for it, and then from it */
  int status;
};

static int
run_step (lua_State *L)
{
  struct step *step = lua_touserdata (L, 1);

  enter (step->scan->vm, step->scan->co);
  step->status = lua_resume (step->scan->co, L, step->nr_values,
                             &step->nr_values);
  return 0;
}

/* One decision.  The lock must be held. */
static struct vm_request
decide (struct vm_scan *scan, const struct vm_answer *answer)
{
  struct vm *vm = scan->vm;
  struct vm_request request = { .type = VM_FAILED };
  struct step step = { .scan = scan };
  int n;

  begin_decision (vm, scan->driver);
  if (scan->box == NULL) {
    lua_pushcfunction (vm->L, make_scan);
    lua_pushlightuserdata (vm->L, scan);
    if (lua_pcall (vm->L, 1, 0, 0) != LUA_OK) {
      char text[256];

      fail (vm, limit_message (vm, LUA_ERRMEM, text, sizeof text));
      return request;
    }
    n = 2;                      /* main's arguments */
  }
  else {
    n = push_answer (scan, answer);
    if (n == -1) {
      fail_scan (scan, LUA_ERRMEM, NULL);
      return request;
    }
  }

  /* lua_resume reports what goes wrong inside.  It is called from a protected
   * call because it may itself fail: where a policy resumes a coroutine that
   * can't be, it needs memory for saying so.
   */
  step.nr_values = n;
  lua_pushcfunction (vm->L, run_step);
  lua_pushlightuserdata (vm->L, &step);
  n = lua_pcall (vm->L, 1, 0, 0);
  vm->running = NULL;
  if (n != LUA_OK)
    step.status = LUA_ERRMEM;

  if (vm->killed == CLIENT_GONE) {
    /* Not a fault; whatever the policy made of it, this scan is over. */
    request.type = VM_GONE;
    return request;
  }
  switch (step.status) {
  case LUA_OK:
    if (vm->killed == ALIVE)
      request.type = VM_FINISHED;
    else
      fail_scan (scan, LUA_OK, NULL);
    break;
  case LUA_YIELD:
    if (vm->killed == ALIVE && to_request (scan, step.nr_values, &request))
      lua_pop (scan->co, step.nr_values);
    else {
      request.type = VM_FAILED;
      lua_settop (scan->co, 0);
      fail_scan (scan, LUA_YIELD, vm->killed == ALIVE ?
                 "the policy yielded something that is not a request; "
                 "call disk:prefetch and its like instead" : NULL);
    }
    break;
  default:
    fail_scan (scan, step.status, NULL);
  }
  return request;
}

struct vm_request
vm_resume (struct vm_scan *scan, const struct vm_answer *answer)
{
  struct vm *vm = scan->vm;
  struct vm_request request = { .type = VM_GONE };
  uint64_t start_ns;

  if (vm_has_failed (vm) || !take_turn (scan))
    return request;
  start_ns = vm->config.timed ? clock_now_ns () : 0;
  forget_ended_scans (vm);
  if (vm->error != NULL)
    ;                           /* it failed while we waited */
  else if (!vm->loaded && load (vm, scan->driver) == -1) {
    if (vm->error != NULL)
      request.type = VM_FAILED;
  }
  else
    request = decide (scan, answer);
  atomic_fetch_add_explicit (&vm->decisions, 1, memory_order_relaxed);
  if (vm->config.timed)
    atomic_fetch_add_explicit (&vm->lua_ns, clock_now_ns () - start_ns,
                               memory_order_relaxed);
  pthread_mutex_unlock (&vm->lock);
  return request;
}
