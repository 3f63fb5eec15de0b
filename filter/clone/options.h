/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* The parameters of the clone filter.  Written at start-up only. */

#ifndef CLONE_OPTIONS_H
#define CLONE_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

/* clone-reserve, if it isn't given: a part of the file system. */
#define RESERVE_DEFAULT UINT64_MAX
#define RESERVE_PERCENT 5
#define RESERVE_MOST (UINT64_C (1) << 30) /* bytes */

/* clone-max-exports, if it isn't given: as many as there may be in temporary files.  Maps
 * have all their room from the beginning, 64 MB for a terabyte, so that is 16 GB then.
 */
#define MAX_EXPORTS_DEFAULT 256

/* How names end: of the clones in clone-dir, and of the map beside each clone. */
#define CLONE_SUFFIX ".img"
#define MAP_SUFFIX ".map"

struct options {
  char *file, *dir;             /* absolute; at most one is not NULL */
  uint32_t block_size;          /* bytes */
  bool block_size_given;
  uint32_t fetch_size;          /* bytes */
  uint64_t commit_ns;
  bool through;                 /* clone-write */
  uint64_t reserve;             /* bytes, or RESERVE_DEFAULT */
  const char *id;               /* or NULL */
  unsigned max_exports;         /* 0: not given */
  char *stats_file;             /* absolute, or NULL */
};

extern struct options options;

/* Take one parameter.  Returns 1 if it is one of ours, 0 if not, and -1 after
 * nbdkit_error if its value is wrong.
 */
extern int options_set (const char *key, const char *value);

/* Check the parameters against each other and against the files there are.
 * Returns -1 after nbdkit_error.
 */
extern int options_complete (void);

/* At unload. */
extern void options_free (void);

/* The text of --help. */
#define OPTIONS_HELP                                                       \
  "clone-file=FILE          Where to keep the clone (default temporary).\n" \
  "clone-dir=DIR            Where to keep the clones of several exports.\n" \
  "clone-max-exports=N      Most clones that are begun there (default 256).\n" \
  "clone-block-size=SIZE    What is fetched at least (default 4096).\n"    \
  "clone-fetch-size=SIZE    Most that one read of the plugin asks for\n"   \
  "                         (default 2M).\n"                               \
  "clone-commit=SECS        How often to make what is new durable\n"       \
  "                         (default 5).\n"                                \
  "clone-write=local|through  Write to the clone only, or to the plugin\n" \
  "                         too (default local).\n"                        \
  "clone-reserve=SIZE       Free space that fetches leave (default 5% of\n"  \
  "                         the file system, at most 1G).\n"               \
  "clone-id=NAME            Refuse a clone that was made with another.\n"  \
  "clone-stats=FILE         Write counters, in Prometheus text format."

#endif /* CLONE_OPTIONS_H */
