/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Locks and memory that are given back at the end of a scope, however it is
 * left.  The same names as nbdkit uses in its own tree, which it does not
 * install.
 */

#ifndef CLEANUP_H
#define CLEANUP_H

#include <stdlib.h>

#include <pthread.h>

#define CLEANUP_JOIN_(a, b) a##b
#define CLEANUP_JOIN(a, b) CLEANUP_JOIN_ (a, b)

static inline void
cleanup_unlock (pthread_mutex_t **lock)
{
  pthread_mutex_unlock (*lock);
}

static inline pthread_mutex_t *
cleanup_lock (pthread_mutex_t *lock)
{
  pthread_mutex_lock (lock);
  return lock;
}

/* Hold this mutex from here to the end of the block. */
#define ACQUIRE_LOCK_FOR_CURRENT_SCOPE(mutex)                           \
  __attribute__ ((cleanup (cleanup_unlock), unused))                    \
  pthread_mutex_t *CLEANUP_JOIN (held_lock_, __COUNTER__) =             \
    cleanup_lock (mutex)

static inline void
cleanup_free (void *ptr)
{
  free (* (void **) ptr);
}

/* Of a pointer: free what it points to at the end of the block. */
#define CLEANUP_FREE __attribute__ ((cleanup (cleanup_free)))

#endif /* CLEANUP_H */
