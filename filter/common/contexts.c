/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See contexts.h. */

#include <stdio.h>
#include <string.h>

#include "contexts.h"
#include "plugin.h"

/* What a plugin does with the name of its export. */
enum naming {
  ONE_DISK,                     /* it does without, whatever the name */
  EMPTY_ONLY,                   /* it takes NULL for the empty name */
  ASKS,                         /* it asks, and may die of NULL */
  NEW_DISK,                     /* each time it is opened */
};

/* Plugins of which it must be known; key is a parameter (or the beginning of
 * some) with which they ASK, default_key one with which their default export may have
 * a name, "" if that can't be told from parameters.  Tried with nbdkit 1.32.5; see
 * docs/compatibility.md.
 */
static const struct known {
  const char *plugin;
  enum naming naming;
  const char *key, *default_key;
} known[] = {
  { "cc",      ASKS,       NULL, NULL },    /* what it compiles may */
  { "eval",    EMPTY_ONLY, NULL, "default_export" },
  { "file",    ONE_DISK,   "dir", NULL },
  { "nbd",     ONE_DISK,   "dynamic-export", NULL },
  { "sh",      EMPTY_ONLY, NULL, "" },
  { "tmpdisk", NEW_DISK,   NULL, NULL },
};
#define NR_KNOWN (sizeof known / sizeof *known)

/* Written at start-up only. */
static bool key_seen[NR_KNOWN], default_key_seen[NR_KNOWN];
static bool default_has_name;
static enum naming naming = ASKS;
static char why_not[256];

void
contexts_note (const char *key)
{
  size_t i;

  for (i = 0; i < NR_KNOWN; ++i) {
    if (known[i].key != NULL &&
        strncmp (key, known[i].key, strlen (known[i].key)) == 0)
      key_seen[i] = true;
    if (known[i].default_key != NULL && strcmp (key, known[i].default_key) == 0)
      default_key_seen[i] = true;
  }
}

void
contexts_init (void)
{
  size_t i;

  for (i = 0; i < NR_KNOWN; ++i)
    if (strcmp (known[i].plugin, plugin_name ()) == 0)
      break;
  if (i < NR_KNOWN) {
    naming = key_seen[i] ? ASKS : known[i].naming;
    default_has_name = default_key_seen[i] ||
      (known[i].default_key != NULL && *known[i].default_key == '\0');
  }
  else
    naming = plugin_may_use ("nbdkit_export_name") ? ASKS : ONE_DISK;

  if (naming == NEW_DISK)
    snprintf (why_not, sizeof why_not, "the %s plugin makes another disk each "
              "time it is opened", plugin_name ());
  else
    snprintf (why_not, sizeof why_not, "the %s plugin may ask for the export's "
              "name%s%s, and nbdkit has none to tell when a scan opens it",
              plugin_name (), i < NR_KNOWN && key_seen[i] ? " with " : "",
              i < NR_KNOWN && key_seen[i] ? known[i].key : "");
}

bool
contexts_one_disk (void)
{
  return naming == ONE_DISK;
}

bool
contexts_default_has_name (void)
{
  return default_has_name;
}

const char *
contexts_why_not (const char *export_name)
{
  if (naming == ONE_DISK || (naming == EMPTY_ONLY && *export_name == '\0'))
    return NULL;
  return why_not;
}
