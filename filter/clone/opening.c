/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See opening.h. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "contexts.h"
#include "default-export.h"
#include "opening.h"
#include "options.h"
#include "plugin.h"

/* Of the server's; only plugins' header has it. */
extern void nbdkit_set_error (int err);

/* Does the calling thread serve a connection?  nbdkit has no function for that (1.32.5),
 * and dies of who opens a context for a connection where there is none.  But what a
 * plugin sets as its error is kept with the threads that serve, and is put into errno in
 * all others, and that can be seen.
 */
bool
opening_is_for_client (void)
{
  const int err = errno;
  bool is_kept_elsewhere;

  errno = 0;
  nbdkit_set_error (EIO);
  is_kept_elsewhere = errno == 0;
  nbdkit_set_error (0);
  errno = err;
  return is_kept_elsewhere;
}

int
opening_ask (nbdkit_next *next, struct source *source, int readonly)
{
  uint32_t preferred;
  int r;

  if (next->block_size (next, &source->minimum, &preferred,
                        &source->maximum) == -1)
    return -1;
  if (source->minimum == 0) {
    source->minimum = 1;
    source->maximum = UINT32_MAX;
  }
  r = next->can_extents (next);
  if (r == -1)
    return -1;
  source->can_extents = r == 1 && !plugin_extents_are_broken () &&
    !(options.through && plugin_extents_are_stale ());
  if (!options.through || readonly)
    return 0;

  if (next->can_write (next) == -1 ||
      (source->can_fua = next->can_fua (next)) == -1 ||
      (source->can_zero = next->can_zero (next)) == -1)
    return -1;
  r = next->can_fast_zero (next);
  if (r == -1)
    return -1;
  source->can_fast_zero = r;
  r = next->can_flush (next);
  if (r == -1)
    return -1;
  source->can_flush = r;
  return 0;
}

struct opening *
opening_new (struct export *export, nbdkit_context *context, const char *name)
{
  struct opening *opening = calloc (1, sizeof *opening);

  if (opening != NULL)
    opening->name = strdup (name);
  if (opening == NULL || opening->name == NULL) {
    nbdkit_error ("clone: malloc: %m");
    free (opening);
    return NULL;
  }
  opening->export = export;
  opening->context = context;
  opening->is_known = *name != '\0' || default_export_is_told ();
  return opening;
}

static void
close_next (nbdkit_next *next)
{
  next->finalize (next);
  nbdkit_next_context_close (next);
}

void
opening_give_up (struct opening *opening)
{
  close_next (nbdkit_context_set_next (opening->context, NULL));
}

void
opening_free (struct opening *opening)
{
  struct below *below;

  if (opening == NULL)
    return;
  below = atomic_load (&opening->below);
  if (below != NULL) {
    close_next (below->next);
    free (below);
  }
  free (opening->name);
  free (opening);
}

void
opening_tried (struct export *export, enum outage_turn turn, bool is_open)
{
  if (outage_end (&export->outage, turn, is_open))
    nbdkit_error ("clone: warning: the layer below cannot be opened, so it is served "
                  "without: what is in %s can be read, and reads of the rest fail "
                  "until it can be",
                  export->path != NULL ? export->path : "the temporary file");
}

/* Open it.  Returns NULL if that fails. */
static struct below *
open_below (struct opening *opening, bool is_for_client)
{
  struct below *below;
  int64_t size;

  below = calloc (1, sizeof *below);
  if (below == NULL)
    return NULL;
  below->next = nbdkit_next_context_open (nbdkit_context_get_backend (opening->context),
                                          1, opening->name, !is_for_client);
  if (below->next == NULL)
    goto error;
  /* What is farther down may have been prepared before one failed. */
  if (below->next->prepare (below->next) == -1 ||
      (size = below->next->get_size (below->next)) == -1 ||
      opening_ask (below->next, &below->source, 1) == -1)
    goto error;
  if (exports_check_size (opening->export, size) == -1) {
    atomic_store (&opening->is_another, true);
    goto error;
  }
  return below;

 error:
  if (below->next != NULL)
    close_next (below->next);
  free (below);
  return NULL;
}

const struct below *
opening_get (struct opening *opening)
{
  struct below *below = atomic_load (&opening->below);
  bool is_for_client;

  if (below != NULL)
    return below;
  /* In a scan's thread a plugin can't ask for the name.  No turn is taken for that, as a
   * scan comes so often that a client would hardly have one.
   */
  is_for_client = opening_is_for_client ();
  if (is_for_client ? !opening->is_known : contexts_why_not (opening->name) != NULL)
    return NULL;
  while ((below = atomic_load (&opening->below)) == NULL &&
         !atomic_load (&opening->is_another))
    switch (outage_request (&opening->export->outage)) {
    case OUTAGE_TRY:
      /* Another thread may have been here since that was looked at. */
      below = atomic_load (&opening->below);
      if (below == NULL)
        below = open_below (opening, is_for_client);
      atomic_store (&opening->below, below);
      opening_tried (opening->export, OUTAGE_TRY, below != NULL);
      return below;
    case OUTAGE_TRIED:
      break;
    case OUTAGE_NOT_NOW:
    case OUTAGE_NONE:
      return NULL;
    }
  return below;
}
