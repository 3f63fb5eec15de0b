/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* What a client's read met: how far prefetching had come when it began. */

#ifndef MET_H
#define MET_H

#include <stdbool.h>

#include "range.h"

enum met {
  MET_MISS,                     /* some of it is only at the source */
  MET_LATE,                     /* some of it is on its way, the rest is here */
  MET_HIT,                      /* all of it had been prefetched */
};

/* A client's read, or that one of before has failed. */
struct met_read {
  struct range range;
  enum met met;                 /* if it has not failed */
  bool failed;
};

#endif /* MET_H */
