/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* What the layer below calls its default export, so that a clone of that can be had as
 * such also without the layer below.
 *
 * It may have a different one for a server that is read-only, and for clients with TLS,
 * so names are kept apart by *asker*: a bit for each kind of them.
 *
 * Any thread may call these functions.
 */

#ifndef CLONE_DEFAULT_EXPORT_H
#define CLONE_DEFAULT_EXPORT_H

#include <stdbool.h>

/* The bit of who asks. */
extern unsigned default_export_asker (int readonly, int is_tls);

/* This asker was told this name. */
extern void default_export_note (unsigned asker, const char *name);

/* The askers whose default export this was when one of them asked last. */
extern unsigned default_export_askers (const char *name);

/* Of the client whose handshake this thread does: whether the layer below has told it
 * the default export's name.  It has not when it begins.  nbdkit asks for that name when
 * something is opened without a name, and ends the server if it has to while the client
 * is being served.  Where a filter in between answers by itself, those below it have not
 * been asked, so that counts for nothing.
 */
extern void default_export_note_parameter (const char *key); /* at start-up */
extern void default_export_set_told (bool is_told);
extern bool default_export_is_told (void);

/* At unload. */
extern void default_export_free (void);

#endif /* CLONE_DEFAULT_EXPORT_H */
