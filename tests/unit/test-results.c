/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* results: the newest are kept, in order, and each is given once. */

#include "check.h"
#include "results.h"

static struct results results;
static struct vm_result batch[RESULTS_MAX];

static void
add (uint64_t from, uint64_t to)
{
  for (; from < to; ++from)
    results_add (&results, (struct vm_result) { .range = { from, 1 } });
}

int
main (void)
{
  results_init (&results);
  check (results_take (&results, batch) == 0,
         "there are none at first");
  add (0, 3);
  check (results_take (&results, batch) == 3 &&
         batch[0].range.offset == 0 && batch[2].range.offset == 2,
         "oldest first");
  check (results_take (&results, batch) == 0, "each is given once");
  add (3, 3 + RESULTS_MAX);
  check (results_take (&results, batch) == RESULTS_MAX &&
         batch[0].range.offset == 3, "as many as have room");
  add (0, 2 * RESULTS_MAX + 7);
  check (results_take (&results, batch) == RESULTS_MAX &&
         batch[0].range.offset == RESULTS_MAX + 7 &&
         batch[RESULTS_MAX-1].range.offset == 2 * RESULTS_MAX + 6,
         "of more the newest");
  check (results_take (&results, batch) == 0,
         "told once");
  results_destroy (&results);
  return done ();
}
