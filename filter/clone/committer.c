/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See committer.h. */

#include <string.h>

#include <nbdkit-filter.h>

#include "cleanup.h"
#include "clock.h"
#include "committer.h"
#include "exports.h"
#include "options.h"
#include "stats-file.h"

/* The lock guards stop. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed;
static bool stop;

/* Of who starts and stops it. */
static pthread_t thread;
static bool running;

static void
commit_all (void)
{
  struct export *export;
  struct store *store;
  uint64_t number = 0;

  while ((export = exports_after (number)) != NULL) {
    number = export->number;
    store = export->path != NULL ? exports_store (export) : NULL;
    if (store != NULL)
      store_commit (store);     /* says itself what is wrong */
    exports_leave (export);
  }
}

static void *
commit_now_and_then (void *unused)
{
  uint64_t next = clock_now_ns ();

  pthread_setname_np (pthread_self (), "nbdkit-clone");
  /* What is there may be of a server before this one. */
  stats_file_write ();
  pthread_mutex_lock (&lock);
  while (!stop) {
    next += options.commit_ns;
    while (!stop && clock_now_ns () < next)
      clock_wait_until (&changed, &lock, next);
    if (stop)
      break;
    pthread_mutex_unlock (&lock);
    commit_all ();
    stats_file_write ();
    next = clock_now_ns ();
    pthread_mutex_lock (&lock);
  }
  pthread_mutex_unlock (&lock);
  return NULL;
}

int
committer_start (void)
{
  int err;

  clock_cond_init (&changed);
  err = pthread_create (&thread, NULL, commit_now_and_then, NULL);
  running = err == 0;
  if (err == 0)
    return 0;
  nbdkit_error ("clone: pthread_create: %s", strerror (err));
  pthread_cond_destroy (&changed);
  return -1;
}

void
committer_stop (void)
{
  if (!running)
    return;
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lock);

    stop = true;
    pthread_cond_signal (&changed);
  }
  pthread_join (thread, NULL);
  pthread_cond_destroy (&changed);
  running = false;
  commit_all ();
}
