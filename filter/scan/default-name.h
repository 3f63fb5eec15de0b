/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* What the default export is called, for each client that has asked.
 *
 * A client that asks for the default export is given its real name, if it has one,
 * before .open.  nbdkit tells nobody that name without being asked, so the filter takes
 * note when a client is, for this client only: one that asks for that name right away
 * would else be treated in one way or the other by what others have asked before.
 *
 * A connection begins and goes through its handshake on one thread, which may have had
 * another connection before; that is where the name is kept.
 */

#ifndef SCAN_DEFAULT_NAME_H
#define SCAN_DEFAULT_NAME_H

#include <stdbool.h>

/* In .preconnect: a client that has not asked. */
extern void default_name_forget (void);

/* In .default_export: what the layer below has said, or NULL.  Not copied: the server
 * keeps it for as long as the connection, but for what was said before it went over to
 * TLS.  That is gone by then, and counts no more.
 */
extern void default_name_note (const char *name, bool is_tls);

/* In .open: is this what the client was told to be the default export's name, or the
 * empty one?  On a thread that is no connection's it is the empty one only.
 */
extern bool default_name_is (const char *name, bool is_tls);

#endif /* SCAN_DEFAULT_NAME_H */
