/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* What every unit test is written with: it prints one TAP line a check, and its
 * exit status says whether all were ok.
 */

#ifndef CHECK_H
#define CHECK_H

#include <stdbool.h>
#include <stdio.h>

static unsigned nr_checks, nr_failed;

/* One check; the format and what follows say what should be true. */
#define check(condition, ...) do {                                      \
    const bool ok_ = (condition);                                       \
    printf ("%s %u - ", ok_ ? "ok" : "not ok", ++nr_checks);            \
    printf (__VA_ARGS__);                                               \
    printf ("\n");                                                      \
    if (!ok_) {                                                         \
      nr_failed++;                                                      \
      printf ("# %s:%d: %s\n", __FILE__, __LINE__, #condition);         \
    }                                                                   \
    fflush (stdout);                                                    \
  } while (0)

/* At the end of main. */
#define done() (printf ("1..%u\n", nr_checks), nr_failed == 0 ? 0 : 1)

#endif /* CHECK_H */
