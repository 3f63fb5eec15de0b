/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* The Lua state of one export: runs a policy within limits and hands out what
 * it asks for, one request at a time.  The only unit that knows lua.h.
 *
 * A vm has one lock, the policy lock.  It is taken inside vm_load and
 * vm_resume, for as long as Lua runs, and by nobody else; so a client read
 * never waits for it.  While it is held, the driver's functions are called;
 * the order of locks is in docs/design.md.
 *
 * Any thread may call any function here.  vm_resume is for one thread at a time
 * per scan.
 */

#ifndef SCAN_VM_H
#define SCAN_VM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "library.h"
#include "met.h"

/* Most bytes that one VM_PREAD asks for; the same number is in host.lua. */
#define VM_PREAD_MAX_BYTES (1024 * 1024)

struct vm;
struct vm_scan;

struct vm_arg {
  const char *name;
  const char *value;
};

/* What a state may use, and the policy to run.  Everything pointed to must
 * outlive the vm.
 */
struct vm_config {
  const struct text *policy;
  const struct vm_arg *args;    /* nr_args of them */
  size_t nr_args;
  size_t memory_bytes;
  uint64_t timeout_ns;          /* for one decision */
  bool timed;                   /* keep vm_totals.lua_ns; costs a little */
};

/* A read of the source that was left out, for a client was writing there.  In
 * the place of an errno, and none that a source can give.
 */
#define VM_SKIPPED (-1)

/* A range whose prefetch failed. */
struct vm_failure {
  struct range range;
  int err;                      /* errno, or VM_SKIPPED */
};

/* What became of a prefetch. */
struct vm_result {
  struct range range;
  uint64_t ns;                  /* how long it took; 0 if it was left out */
  int err;                      /* errno, 0 if it went well */
};

/* How a policy's questions about its scan are answered, without waiting.  The
 * functions get opaque, and are called with the policy lock held, by the thread
 * that called vm_resume.
 */
struct vm_driver {
  void *opaque;
  uint64_t size;                /* bytes */
  uint32_t block;               /* bytes */
  const char *export;
  /* The reads since the last call: stores a pointer to them in *out, valid
   * until the next call.  Returns how many.
   */
  size_t (*reads) (void *opaque, const struct met_read **out);
  size_t (*failures) (void *opaque, const struct vm_failure **out);
  /* The same of prefetches that ended. */
  size_t (*results) (void *opaque, const struct vm_result **out);
  /* The first range in from .. to-1, which are inside the disk, that was neither
   * read nor fetched and is not in flight, or the beginning of it.  Returns false
   * if there is none.
   */
  bool (*missing) (void *opaque, uint64_t from, uint64_t to,
                   struct range *missing);
  /* Bytes that the next prefetch may have in one piece; 1 to block. */
  uint32_t (*room) (void *opaque);
  unsigned (*reads_in_flight) (void *opaque);
  uint64_t (*idle_ns) (void *opaque);
  /* What the policy is told in this turn: the client has gone. */
  bool (*closed) (void *opaque);
  /* The client has gone, as of now: decisions are cut short. */
  bool (*gone) (void *opaque);
};

/* What the policy wants next. */
enum vm_request_type {
  VM_PREFETCH,                  /* range, which is inside the disk */
  VM_WAIT,                      /* until_ns, see clock.h */
  VM_SETTLE,
  VM_NEXT_DATA,                 /* range.offset, which is inside the disk */
  VM_PREAD,                     /* range, which is inside the disk */
  VM_FINISHED,                  /* the policy has returned */
  VM_FAILED,                    /* vm_error says why; this is the first to know */
  VM_GONE,                      /* nothing more will come, and no fault is new */
};

struct vm_request {
  enum vm_request_type type;
  struct range range;
  uint64_t until_ns;
};

/* The answer to the last request. */
struct vm_answer {
  enum { VM_NOTHING, VM_OFFSET, VM_BYTES, VM_ERRNO } type;
  uint64_t offset;              /* VM_OFFSET */
  bool more;                    /* VM_OFFSET: nobody has looked further */
  const char *bytes;            /* VM_BYTES; the vm copies them */
  size_t length;
  int err;                      /* VM_ERRNO; see vm_failure */
};

/* Is this default, ahead, clock or forever, which do what the stock filter
 * does?  Any thread.
 */
extern bool vm_is_stock (const struct text *policy);

/* Totals since the vm was made. */
struct vm_totals {
  uint64_t decisions;
  uint64_t lua_ns;              /* time spent in Lua, 0 unless timed */
};

/* Make a vm; its policy is loaded by vm_load or by the first vm_resume.
 * Returns NULL with errno set if memory runs out.
 */
extern struct vm *vm_new (const struct vm_config *config);

/* NULL is allowed.  No scan of this vm may be left. */
extern void vm_free (struct vm *vm);

/* Load the policy.  Returns -1 if it can't be; vm_error says why. */
extern int vm_load (struct vm *vm);

/* One message, perhaps of several lines with a traceback; valid until vm_free.
 * Only after vm_load or vm_resume said that the vm has failed.
 */
extern const char *vm_error (struct vm *vm);

/* True once the policy has failed; no scan of this vm goes on then. */
extern bool vm_has_failed (struct vm *vm);

extern void vm_get_totals (struct vm *vm, struct vm_totals *totals);

/* A scan of this vm.  The driver is kept, not copied.  Runs no Lua.  Returns
 * NULL with errno set if memory runs out.
 */
extern struct vm_scan *vm_scan_new (struct vm *vm,
                                    const struct vm_driver *driver);

/* NULL is allowed.  Doesn't wait for another scan's decision. */
extern void vm_scan_free (struct vm_scan *scan);

/* Let the policy decide: start it, or go on with the answer to its last
 * request.  May wait for another scan's decision; once the driver says that
 * the client has gone, for a short time only (then VM_GONE).
 */
extern struct vm_request vm_resume (struct vm_scan *scan,
                                    const struct vm_answer *answer);

#endif /* SCAN_VM_H */
