/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Who may use a file that is put in the place of another. */

#ifndef FILE_MODE_H
#define FILE_MODE_H

#include <stdio.h>

/* Who could read the file of this name can read the new one, and nobody else: it gets
 * that one's mode, and its owner and group if it may, else the group may do what all others
 * may.  If there is none it stays as it is.  Returns -1 with errno set if that fails.  Any
 * thread.
 */
extern int file_mode_keep (FILE *fp, const char *path);

#endif /* FILE_MODE_H */
