/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* What is undone at the end of a scope, however it is left. */

#ifndef COMMON_CLEANUP_H
#define COMMON_CLEANUP_H

#include <stdlib.h>

#include <pthread.h>

/* A name that no other line of the file has. */
#define CLEANUP_PASTE_(a, b) a##b
#define CLEANUP_PASTE(a, b) CLEANUP_PASTE_ (a, b)

/* Free what a variable, set where it is declared, points to by then. */
#define CLEANUP_FREE __attribute__ ((cleanup (cleanup_free)))

/* Take a lock, and give it back at the end of the scope. */
#define ACQUIRE_LOCK_FOR_CURRENT_SCOPE(lock)                            \
  __attribute__ ((cleanup (cleanup_unlock)))                            \
  pthread_mutex_t *CLEANUP_PASTE (scope_lock_, __LINE__) =              \
    cleanup_lock (lock)

/* Private: what the macros call. */

static inline void
cleanup_free (void *ptr)
{
  free (*(void **) ptr);
}

static inline pthread_mutex_t *
cleanup_lock (pthread_mutex_t *lock)
{
  pthread_mutex_lock (lock);
  return lock;
}

static inline void
cleanup_unlock (pthread_mutex_t **lock)
{
  pthread_mutex_unlock (*lock);
}

#endif /* COMMON_CLEANUP_H */
