/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* The table of a filter's parameters.  For start-up, when there is one thread. */

#ifndef PARAMETERS_H
#define PARAMETERS_H

/* Where a name ends with this, any other text may be in its place. */
#define PARAMETER_ANY "NAME"

struct parameter {
  const char *name;
  /* Returns -1 after nbdkit_error. */
  int (*set) (const char *key, const char *value);
};

struct parameters {
  const char *filter;           /* all names begin with that and a hyphen */
  const struct parameter *first;
  unsigned number;
};

/* Take one parameter, as .config has to.  Returns 1, 0 if it is for somebody else, and -1
 * after nbdkit_error if it or its value is wrong.  No other filter, and no plugin, of nbdkit
 * has parameters that begin as ours do, and some plugins take any: so of those that are in no
 * table it is said what may have been meant.
 */
extern int parameters_set (const struct parameters *parameters,
                           const char *key, const char *value);

#endif /* PARAMETERS_H */
