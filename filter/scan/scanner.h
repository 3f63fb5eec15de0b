/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* A scan: its threads, and the loop that asks the policy and prefetches.
 *
 * One thread at a time is the decider: it asks the policy, answers what the
 * policy asks, and waits when the policy waits.  With an offset in hand it
 * passes that role on and prefetches.  Threads are started as they are needed,
 * up to the number allowed.
 */

#ifndef SCAN_SCANNER_H
#define SCAN_SCANNER_H

#include <stdbool.h>
#include <stdint.h>

#include <nbdkit-filter.h>

#include "budget.h"
#include "line.h"
#include "map.h"
#include "recorder.h"
#include "reads.h"
#include "source.h"
#include "stats.h"
#include "vm.h"

struct scanner;

/* Everything pointed to must outlive the scan. */
struct scanner_config {
  struct vm *vm;
  const char *export_name;
  uint32_t block;               /* bytes; the most that one call prefetches */
  unsigned threads;             /* most prefetches in flight */
  enum source_method method;
  struct budget *budget;        /* shared by all scans */
  struct line *line;            /* so is this; NULL if scans are not paced */
  struct stats *stats;          /* the export's */
  struct map *map;              /* of this disk at this size */
  struct recorder *recorder;    /* of the reads of this disk, or NULL */
  bool background;              /* for no connection: info is not known yet */
  bool waits_for_name;          /* open nothing before scanner_set_name */

  /* Either the connection's context and what is known of it, or a backend to
   * open a context for each thread.
   */
  nbdkit_next *next;
  struct source_info info;
  nbdkit_backend *backend;
};

/* Start a scan.  Returns NULL after a warning if there are no means for it;
 * never waits for Lua.
 */
extern struct scanner *scanner_start (const struct scanner_config *config);

/* The client has gone (or the server ends): let the policy have its last turn,
 * wait for the prefetches in flight, end the threads.  Those that are opening
 * the layer below are not waited for; they end as soon as they have.  Any
 * thread, and more than once.
 */
extern void scanner_stop (struct scanner *scanner);

/* The same without waiting for anything. */
extern void scanner_tell_stop (struct scanner *scanner);

/* The same, and wait for all threads. */
extern void scanner_join (struct scanner *scanner);

/* The layer below has just been opened, by a client or by one of the workers: those that
 * wait for that try now.  Any thread.
 */
extern void scanner_try_now (struct scanner *scanner);

/* A scan in the background: a client was told that the default export has this name.
 * Unless the scan has opened what is below under another, that is what it opens.
 */
extern void scanner_set_name (struct scanner *scanner, const char *name);

/* Does a scan in the background scan what is the default export under this name, or has
 * it begun with one that every client that asks for that may share?
 */
extern bool scanner_is_of (struct scanner *scanner, const char *name);

/* True if no worker is left: scanner_join then waits for the looker's thread at most,
 * which is told to end there and waits for nothing that takes long.
 */
extern bool scanner_has_ended (struct scanner *scanner);

/* Join and free.  NULL is allowed. */
extern void scanner_free (struct scanner *scanner);

/* Where client reads are noted; valid until scanner_free. */
extern struct reads *scanner_get_reads (struct scanner *scanner);

/* A read that was noted there, and has not ended, has failed: what it was of counts as
 * read no more.  Any thread; only short locks are taken.
 */
extern void scanner_read_failed (struct scanner *scanner, uint64_t offset,
                                 uint32_t count);

#endif /* SCAN_SCANNER_H */
