/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* The texts that policies are made of: built-in policies and modules, policy
 * files and what they require, and the files named with scan-file-NAME.
 *
 * Every file is read once and kept, so that a server that has forked, changed
 * directory and dropped its privileges still finds it, and all exports see the
 * same text.  A text that has been returned is valid until library_free.
 *
 * Any thread may call these functions, but library_add_file, which is for
 * start-up.
 */

#ifndef SCAN_LIBRARY_H
#define SCAN_LIBRARY_H

#include <stdbool.h>
#include <stddef.h>

struct text {
  const char *name;             /* as the user gave it; for messages */
  const char *data;
  size_t length;                /* bytes */
  bool builtin;                 /* compiled into the filter */
};

/* More than this is not a policy or a trace: stop before memory does. */
#define TEXT_MAX_BYTES (256 * 1024 * 1024)

/* Reads that fail put one line, without a full stop, here. */
#define LIBRARY_ERROR_MAX 512

/* The policy that the operator named: without a slash a built-in, with or without
 * ".lua", else a file.  Returns NULL and fills in error if there is none.  What
 * scan-policy names is looked for once, at start-up.
 */
extern const struct text *library_policy (const char *name,
                                          char error[LIBRARY_ERROR_MAX]);

/* Is it the built-in policy of this name?  NULL is none. */
extern bool library_is (const struct text *policy, const char *builtin);

/* The policy that another policy asks for by name, with or without ".lua": a
 * built-in, else a file beside the one that library_set_policy named.  If the
 * operator has given this name, as an argument, then also what library_policy
 * finds; else never a path.  Returns NULL and fills in error if there is none.
 */
extern const struct text *library_neighbour (const char *name, bool given,
                                             char error[LIBRARY_ERROR_MAX]);

/* The module of this name: one of ours (scan.X), else a file beside the policy
 * that library_set_policy named.  Returns NULL and fills in error.
 */
extern const struct text *library_module (const char *name,
                                          char error[LIBRARY_ERROR_MAX]);

/* The module of this name that policies are run by and may not require, or NULL. */
extern const struct text *library_runtime (const char *name);

/* True if a place in a message, "FILE:LINE: ...", is in a module of ours. */
extern bool library_is_ours (const char *place);

/* A text of our own by its path in the source tree, or NULL. */
extern const struct text *library_builtin (const char *path);

/* Say where modules are looked for: beside this policy. */
extern void library_set_policy (const struct text *policy);

/* Read a file that a policy may open under this name.  Returns -1 and fills in
 * error.
 */
extern int library_add_file (const char *name, const char *path,
                             char error[LIBRARY_ERROR_MAX]);

/* The file of this name, or NULL if none was given. */
extern const struct text *library_file (const char *name);

/* How many bytes all of these have. */
extern size_t library_files_bytes (void);

/* At unload. */
extern void library_free (void);

#endif /* SCAN_LIBRARY_H */
