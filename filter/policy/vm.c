/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See vm.h.
 *
 * Loading a policy, and the decisions.  Everything that can raise a Lua error
 * runs in a protected call; outside of those, only functions of the Lua API
 * that neither raise nor allocate are used.
 *
 * On the registry of the state: main and prefetch_range, functions that boot.lua
 * returned, and run, the policy as a function of the disk.  Each scan holds one
 * reference, to a userdata (struct box) whose user value is its coroutine.  A policy may
 * keep the disk of a scan that has ended; its functions find the box empty then.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <nbdkit-filter.h>

#include "cleanup.h"
#include "vm-internal.h"

/* How long one attempt at the policy lock is. */
#define LOCK_SLICE_MS 20

/* A slow machine that has other things to do still reads so much of a trace. */
#define LOAD_BYTES_PER_SECOND (512 * 1024)

/* -- what runs in protected calls -------------------------------------------- */

/* Searcher of the package library: our own modules, from memory. */
static int
search_module (lua_State *L)
{
  char error[LIBRARY_ERROR_MAX] = "";
  const char *name = luaL_checkstring (L, 1);
  const struct text *text = library_runtime (name);

  if (text == NULL)
    text = library_module (name, error);
  if (text == NULL || !text->builtin)
    return 0;
  lua_pushfstring (L, "@%s", text->name);
  if (luaL_loadbufferx (L, text->data, text->length, lua_tostring (L, -1), "t")
      != LUA_OK)
    return lua_error (L);
  return 1;
}

/* Is this one of the policies made of sequential.lua?  Nobody else's code is in
 * them, and a decision is one turn of a loop, with a step for each read that was
 * queued.  So they need no count hook, which makes each instruction of Lua cost
 * several times as much; with these, a quarter of the decision.
 */
bool
vm_is_stock (const struct text *policy)
{
  static const char *const names[] = { "default", "ahead", "clock", "forever" };
  size_t i;

  for (i = 0; i < sizeof names / sizeof names[0]; ++i)
    if (library_is (policy, names[i]))
      return true;
  return false;
}

/* Fill a new state: our modules, the sandbox, the policy.  Argument 1 is the
 * vm.
 */
static int
boot (lua_State *L)
{
  struct vm *vm = lua_touserdata (L, 1);
  const struct text *text;
  size_t i;

  lua_settop (L, 0);
  luaL_checkversion (L);
  luaL_openlibs (L);
  vm_keep_messages (L);

  lua_getglobal (L, "package");                 /* package */
  lua_createtable (L, 1, 0);                    /* package searchers */
  lua_pushcfunction (L, search_module);
  lua_rawseti (L, -2, 1);
  lua_setfield (L, -2, "searchers");            /* package */
  lua_settop (L, 0);

  text = library_builtin ("filter/policy/boot.lua");
  if (luaL_loadbufferx (L, text->data, text->length, "@filter/policy/boot.lua", "t")
      != LUA_OK)
    return lua_error (L);                       /* boot */
  vm_push_native (L);                           /* boot native */
  lua_call (L, 1, 3);                           /* load main prefetch_range */
  vm->prefetch_range_ref = luaL_ref (L, LUA_REGISTRYINDEX); /* load main */
  vm->main_ref = luaL_ref (L, LUA_REGISTRYINDEX); /* load */

  vm_push_text (L, vm->config.policy, NULL);    /* load text chunk_name ours */
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
  if (scan->vm->bounded)
    lua_sethook (co, NULL, 0, 0);
  lua_setiuservalue (L, 1, 1);                  /* box */
  if (!lua_checkstack (co, LUA_MINSTACK))
    return luaL_error (L, VM_OUT_OF_MEMORY);
  lua_rawgeti (L, LUA_REGISTRYINDEX, scan->vm->main_ref);
  lua_rawgeti (L, LUA_REGISTRYINDEX, scan->vm->run_ref);
  vm_push_driver (L, 1, scan->driver);             /* box main run driver */
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

  lua_pushstring (L, vm_errno_name (answer->err));
  return 1;
}

/* -- the functions of vm.h ------------------------------------------------- */

struct vm *
vm_new (const struct vm_config *config)
{
  struct vm *vm = calloc (1, sizeof *vm);

  if (vm == NULL)
    return NULL;
  vm->config = *config;
  vm->bounded = vm_is_stock (config->policy);
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

/* The time to load a policy grows with the files that it is given to read. */
static uint64_t
files_ns (void)
{
  return (double) library_files_bytes () / LOAD_BYTES_PER_SECOND * NS_PER_SECOND;
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
  vm_begin_decision (vm, driver, vm->config.timeout_ns + files_ns ());
  L = vm->L = lua_newstate (vm_alloc, vm);
  if (L == NULL) {
    vm_fail (vm, vm_limit_message (vm, LUA_ERRMEM, text, sizeof text));
    return -1;
  }
  lua_atpanic (L, panic);
  *(struct vm **) lua_getextraspace (L) = vm;
  vm_set_look_interval (vm);
  lua_sethook (L, vm_hook, LUA_MASKCOUNT, vm->look_instructions);

  vm->running = L;
  lua_pushcfunction (L, vm_add_traceback);
  lua_pushcfunction (L, boot);
  lua_pushlightuserdata (L, vm);
  vm->loading = true;
  status = lua_pcall (L, 1, 0, 1);
  vm->loading = false;
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
  message = vm_limit_message (vm, status, text, sizeof text);
  if (message != NULL) {
    snprintf (place, sizeof place, "%s%s", vm->killed_at, message);
    message = place;
  }
  else if (lua_type (L, -1) == LUA_TSTRING)
    message = lua_tostring (L, -1);
  vm_fail (vm, message);
  return -1;
}

int
vm_load (struct vm *vm)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&vm->lock);

  return load (vm, NULL);
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
  if (vm->error != VM_OUT_OF_MEMORY)
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
  static const struct vm_answer no_memory = { .type = VM_ERRNO, .err = ENOMEM };
  lua_State *L = scan->vm->L;

  if (answer->type == VM_NOTHING)
    return 0;
  if (!lua_checkstack (scan->co, 2) || !lua_checkstack (L, 2))
    return -1;
  switch (answer->type) {
  case VM_OFFSET:
    lua_pushinteger (scan->co, answer->offset);
    if (!answer->more)
      return 1;
    lua_pushboolean (scan->co, true);
    return 2;
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
    /* The policy may go on with less. */
    return answer->type == VM_ERRNO ? -1 : push_answer (scan, &no_memory);
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

  if (scan->asked) {
    request->type = VM_PREFETCH;
    request->range = scan->asked_range;
    return true;
  }
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

/* One decision.  The lock must be held. */
static struct vm_request
decide (struct vm_scan *scan, const struct vm_answer *answer)
{
  struct vm *vm = scan->vm;
  struct vm_request request = { .type = VM_FAILED };
  int n, status;

  vm_begin_decision (vm, scan->driver, vm->config.timeout_ns);
  if (scan->box == NULL) {
    lua_pushcfunction (vm->L, make_scan);
    lua_pushlightuserdata (vm->L, scan);
    if (lua_pcall (vm->L, 1, 0, 0) != LUA_OK) {
      char text[256];

      vm_fail (vm, vm_limit_message (vm, LUA_ERRMEM, text, sizeof text));
      return request;
    }
    n = 2;                      /* main's arguments */
  }
  else {
    n = push_answer (scan, answer);
    if (n == -1) {
      vm_fail_scan (scan, LUA_ERRMEM, NULL);
      return request;
    }
  }

  vm_enter (vm, scan->co);
  scan->asked = false;
  status = lua_resume (scan->co, vm->L, n, &n);
  vm->running = NULL;

  if (vm->killed == CLIENT_GONE) {
    /* Not a fault; whatever the policy made of it, this scan is over. */
    request.type = VM_GONE;
    return request;
  }
  switch (status) {
  case LUA_OK:
    if (vm->killed == ALIVE)
      request.type = VM_FINISHED;
    else
      vm_fail_scan (scan, LUA_OK, NULL);
    break;
  case LUA_YIELD:
    if (vm->killed == ALIVE && to_request (scan, n, &request))
      lua_pop (scan->co, n);
    else {
      request.type = VM_FAILED;
      lua_settop (scan->co, 0);
      vm_fail_scan (scan, LUA_YIELD, vm->killed == ALIVE ?
                 "the policy yielded something that is not a request; "
                 "call disk:prefetch and its like instead" : NULL);
    }
    break;
  default:
    vm_fail_scan (scan, status, NULL);
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
