/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See contexts.h. */

#include <dlfcn.h>
#include <link.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "contexts.h"

/* What a plugin does with the name of its export. */
enum naming {
  ONE_DISK,                     /* it does without, whatever the name */
  EMPTY_ONLY,                   /* it takes NULL for the empty name */
  ASKS,                         /* it asks, and may die of NULL */
  NEW_DISK,                     /* each time it is opened */
};

/* Plugins of which it must be known; key is a parameter (or the beginning of
 * some) with which they ASK.  Tried with nbdkit 1.32.5; see
 * docs/compatibility.md.
 */
static const struct known {
  const char *plugin;
  enum naming naming;
  const char *key;
} known[] = {
  { "cc",      ASKS,       NULL },    /* what it compiles may */
  { "eval",    EMPTY_ONLY, NULL },
  { "file",    ONE_DISK,   "dir" },
  { "nbd",     ONE_DISK,   "dynamic-export" },
  { "sh",      EMPTY_ONLY, NULL },
  { "tmpdisk", NEW_DISK,   NULL },
};
#define NR_KNOWN (sizeof known / sizeof *known)

/* Written at start-up only. */
static bool key_seen[NR_KNOWN];
static enum naming naming = ASKS;
static char why_not[256];

/* The plugin's, as in nbdkit-NAME-plugin.so. */
static char plugin_name[64];

void
contexts_note (const char *key)
{
  size_t i;

  for (i = 0; i < NR_KNOWN; ++i)
    if (known[i].key != NULL &&
        strncmp (key, known[i].key, strlen (known[i].key)) == 0)
      key_seen[i] = true;
}

/* What the dynamic section of a loaded object points to with this tag, or 0. */
static ElfW(Addr)
dynamic (const struct link_map *object, ElfW(Sxword) tag)
{
  const ElfW(Dyn) *entry;

  for (entry = object->l_ld; entry->d_tag != DT_NULL; ++entry)
    if (entry->d_tag == tag)
      /* Most architectures' loaders have made an address of it. */
      return entry->d_un.d_ptr < object->l_addr
        ? object->l_addr + entry->d_un.d_ptr : entry->d_un.d_ptr;
  return 0;
}

/* How many of its symbols, from the first on, hold all that it needs of other
 * objects; 0 if that can't be told.
 */
static uint32_t
symbols_to_search (const struct link_map *object)
{
  const uint32_t *gnu_hash = (const uint32_t *) dynamic (object, DT_GNU_HASH);
  const uint32_t *hash = (const uint32_t *) dynamic (object, DT_HASH);

  /* Those are left out of the GNU table, and stand before those in it. */
  return gnu_hash != NULL ? gnu_hash[1] : hash != NULL ? hash[1] : 0;
}

/* May this object use a function of this name?  True if in doubt. */
static bool
may_use (const struct link_map *object, const char *function)
{
  const ElfW(Sym) *symbols = (const ElfW(Sym) *) dynamic (object, DT_SYMTAB);
  const char *strings = (const char *) dynamic (object, DT_STRTAB);
  const uint32_t nr = symbols_to_search (object);
  uint32_t i;

  if (symbols == NULL || strings == NULL || nr == 0)
    return true;
  for (i = 0; i < nr; ++i)
    if (strcmp (strings + symbols[i].st_name, function) == 0)
      return true;
  return false;
}

/* Find the plugin, and its name.  It is the one object with this function, and
 * nbdkit makes its symbols global.  Returns NULL if there is none.
 */
static const struct link_map *
find_plugin (void)
{
  const void *init = dlsym (RTLD_DEFAULT, "plugin_init");
  struct link_map *object;
  const char *file, *rest;
  Dl_info info;
  size_t length;

  if (init == NULL ||
      dladdr1 (init, &info, (void **) &object, RTLD_DL_LINKMAP) == 0)
    return NULL;
  file = basename (info.dli_fname);
  if (strncmp (file, "nbdkit-", 7) == 0)
    file += 7;
  rest = strstr (file, "-plugin.");
  length = rest != NULL ? (size_t) (rest - file) : strlen (file);
  if (length >= sizeof plugin_name)
    length = sizeof plugin_name - 1;
  memcpy (plugin_name, file, length);
  plugin_name[length] = '\0';
  return object;
}

void
contexts_init (void)
{
  const struct link_map *plugin = find_plugin ();
  size_t i;

  for (i = 0; i < NR_KNOWN; ++i)
    if (strcmp (known[i].plugin, plugin_name) == 0)
      break;
  if (i < NR_KNOWN)
    naming = key_seen[i] ? ASKS : known[i].naming;
  else
    naming = plugin == NULL || may_use (plugin, "nbdkit_export_name")
      ? ASKS : ONE_DISK;

  if (naming == NEW_DISK)
    snprintf (why_not, sizeof why_not, "the %s plugin makes another disk each "
              "time it is opened", plugin_name);
  else
    snprintf (why_not, sizeof why_not, "the %s plugin may ask for the export's "
              "name%s%s, and nbdkit has none to tell when a scan opens it",
              plugin_name, i < NR_KNOWN && key_seen[i] ? " with " : "",
              i < NR_KNOWN && key_seen[i] ? known[i].key : "");
}

const char *
contexts_plugin_name (void)
{
  return plugin_name;
}

const char *
contexts_why_not (const char *export_name)
{
  if (naming == ONE_DISK || (naming == EMPTY_ONLY && *export_name == '\0'))
    return NULL;
  return why_not;
}
