/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* The values of parameters.
 *
 * What a value means is for nbdkit's parsers to say.  But all that they say
 * of a bad one is the value, and nothing can keep them from it.  So that there
 * is one message, and it names the parameter, what they are known to refuse is
 * not handed to them.
 *
 * For start-up, when there is one thread.
 */

#ifndef VALUES_H
#define VALUES_H

#include <stdbool.h>
#include <stdint.h>

/* Report with nbdkit_error that a parameter's value is not what is allowed,
 * which is what comes behind "it should be".  Returns -1.
 */
extern int value_is_bad (const char *key, const char *value,
                         const char *allowed);

/* Convert a boolean as nbdkit spells them.  Returns false, after no message,
 * if it is none.
 */
extern bool value_to_bool (const char *value, bool *result);

/* Convert a size in bytes, below 2^63: digits, perhaps with one of nbdkit's
 * units after them.  Returns false, after no message, if it is none.
 */
extern bool value_to_size (const char *value, uint64_t *result);

/* Convert a number from 1 to max.  Returns -1 after nbdkit_error if it is none, which
 * allowed says in words.
 */
extern int value_parse_number (const char *key, const char *value, unsigned max,
                               const char *allowed, unsigned *result);

/* Convert seconds, perhaps with a fraction, to nanoseconds.  Returns -1 after
 * nbdkit_error if they are not from min to max, which allowed says in words.
 */
extern int value_parse_seconds (const char *key, const char *value,
                                double min, double max, const char *allowed,
                                uint64_t *result_ns);

/* Make a path absolute, since the server may change its directory.  Returns
 * what the caller has to free, or NULL after nbdkit_error.
 */
extern char *value_parse_path (const char *key, const char *value);

#endif /* VALUES_H */
