/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See plugin.h. */

#include <dlfcn.h>
#include <link.h>
#include <stdint.h>
#include <string.h>

#include <pthread.h>

#include "plugin.h"

/* Written once, before whoever asks has an answer. */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static const struct link_map *plugin;   /* NULL: not found */
static char name[64];

/* Find the plugin, and its name.  It is the one object with this function, and
 * nbdkit makes its symbols global.
 */
static void
find (void)
{
  const void *init = dlsym (RTLD_DEFAULT, "plugin_init");
  struct link_map *object;
  const char *file, *rest;
  Dl_info info;
  size_t length;

  if (init == NULL ||
      dladdr1 (init, &info, (void **) &object, RTLD_DL_LINKMAP) == 0)
    return;
  plugin = object;
  file = basename (info.dli_fname);
  if (strncmp (file, "nbdkit-", 7) == 0)
    file += 7;
  rest = strstr (file, "-plugin.");
  length = rest != NULL ? (size_t) (rest - file) : strlen (file);
  if (length >= sizeof name)
    length = sizeof name - 1;
  memcpy (name, file, length);
}

const char *
plugin_name (void)
{
  pthread_once (&once, find);
  return name;
}

/* For dl_iterate_phdr: does the name of its file begin like this? */
static int
is_file (struct dl_phdr_info *info, size_t size, void *start)
{
  return strncmp (basename (info->dlpi_name), start, strlen (start)) == 0;
}

bool
plugin_extents_are_broken (void)
{
  return strcmp (plugin_name (), "split") == 0 ||
    dl_iterate_phdr (is_file, "nbdkit-ext2-filter.") != 0;
}

bool
plugin_extents_are_stale (void)
{
  return dl_iterate_phdr (is_file, "nbdkit-cache-filter.") != 0;
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

bool
plugin_may_use (const char *function)
{
  const ElfW(Sym) *symbols;
  const char *strings;
  uint32_t nr, i;

  pthread_once (&once, find);
  if (plugin == NULL)
    return true;
  symbols = (const ElfW(Sym) *) dynamic (plugin, DT_SYMTAB);
  strings = (const char *) dynamic (plugin, DT_STRTAB);
  nr = symbols_to_search (plugin);
  if (symbols == NULL || strings == NULL || nr == 0)
    return true;
  for (i = 0; i < nr; ++i)
    if (strcmp (strings + symbols[i].st_name, function) == 0)
      return true;
  return false;
}
