/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* The parameters of the filter.  Written at start-up only. */

#ifndef SCAN_OPTIONS_H
#define SCAN_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "source.h"
#include "vm.h"

struct options {
  uint32_t size;                /* scan-size, bytes */
  const char *policy;           /* as given, or "default" */
  struct vm_arg *args;          /* for the policy; nr_args of them */
  size_t nr_args;
  unsigned threads;
  enum source_method method;
  bool background;
  const char *exports;          /* shell pattern */
  enum { PACE_BY_POLICY, PACE_ON, PACE_OFF } pace;
  uint64_t rate;                /* bytes per second, or BUDGET_NONE */
  uint64_t limit;               /* bytes, or BUDGET_NONE */
  uint64_t policy_memory;       /* bytes */
  uint64_t policy_timeout_ns;
  bool progress;
  char *stats_file;             /* absolute, or NULL */
  char *record_file;            /* absolute, or NULL */
  const char *record_key;       /* the parameter that named it */

  /* What was seen of the layers below; 0 or false if nothing was.  nbdkit doesn't
   * tell what is below, but the parameters of those layers pass by on their way
   * there; those of the layers above do not.
   */
  bool cow_below, cache_below, clone_below; /* parameters of theirs */
  uint64_t cow_block_size;      /* bytes */
  uint64_t cache_min_block_size; /* bytes */
  bool cow_on_read, cow_on_cache, cache_on_read;
};

extern struct options options;

/* Take one parameter.  Returns 1 if it is one of ours, 0 if not, and -1 after
 * nbdkit_error if its value is wrong.
 */
extern int options_set (const char *key, const char *value);

/* Check the parameters against each other.  Returns -1 after nbdkit_error. */
extern int options_complete (void);

/* At unload. */
extern void options_free (void);

/* The text of --help. */
#define OPTIONS_HELP                                                       \
  "scan-policy=NAME|FILE    What to prefetch next: a built-in or a file.\n" \
  "scan-arg-NAME=VALUE      Argument of the policy.\n"                     \
  "scan-file-NAME=FILE      File that the policy may read.\n"              \
  "scan-size=NN             Set scan block size (default 2M).\n"           \
  "scan-threads=N           Prefetches in flight (default 1).\n"           \
  "scan-trace=FILE          What was recorded, for the policy; and record on.\n" \
  "scan-record=FILE         Record what clients read.\n"                  \
  "scan-method=cache|read   How to prefetch (default cache).\n"            \
  "scan-background=true     One scan from server start to server end.\n"   \
  "scan-exports=PATTERN     Exports to scan (default the default one).\n"  \
  "scan-pace=BOOL           Leave the line to clients (default by policy).\n" \
  "scan-rate=RATE           Most bytes per second.\n"                      \
  "scan-limit=SIZE          Most bytes in all.\n"                          \
  "scan-policy-memory=SIZE  Most memory of a policy (default 64M).\n"      \
  "scan-policy-timeout=SECS Longest decision of a policy (default 5).\n"   \
  "scan-progress=true       Show progress on stderr.\n"                    \
  "scan-stats=FILE          Write counters, in Prometheus text format.\n"  \
  "Of the default policy, as in the stock filter:\n"                       \
  "scan-ahead=false         Skip ahead when client reads faster.\n"        \
  "scan-clock=false         Always start prefetching from beginning.\n"    \
  "scan-forever=true        Scan in a loop while clients connected."

#endif /* SCAN_OPTIONS_H */
