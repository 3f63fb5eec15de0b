/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* The one clock of these filters: monotonic nanoseconds, and a condition
 * variable that waits by it.  And how long a thread has been on a processor.
 */

#ifndef CLOCK_H
#define CLOCK_H

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <time.h>

#define NS_PER_SECOND UINT64_C (1000000000)

/* A deadline that never comes. */
#define CLOCK_NEVER UINT64_MAX

static inline uint64_t
clock_now_ns (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return (uint64_t) ts.tv_sec * NS_PER_SECOND + ts.tv_nsec;
}

/* The time that the calling thread has been running for.  A system call. */
static inline uint64_t
clock_thread_ns (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_THREAD_CPUTIME_ID, &ts);
  return (uint64_t) ts.tv_sec * NS_PER_SECOND + ts.tv_nsec;
}

/* Initialise a condition variable for clock_wait_until. */
static inline void
clock_cond_init (pthread_cond_t *cond)
{
  pthread_condattr_t attr;

  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (cond, &attr);
  pthread_condattr_destroy (&attr);
}

/* Wait for a signal or until deadline_ns, by the monotonic clock.  Returns 0
 * or ETIMEDOUT.
 */
static inline int
clock_wait_until (pthread_cond_t *cond, pthread_mutex_t *lock,
                  uint64_t deadline_ns)
{
  struct timespec ts;

  if (deadline_ns == CLOCK_NEVER)
    return pthread_cond_wait (cond, lock);
  ts.tv_sec = deadline_ns / NS_PER_SECOND;
  ts.tv_nsec = deadline_ns % NS_PER_SECOND;
  return pthread_cond_timedwait (cond, lock, &ts);
}

/* Sleep until this time, which may be past. */
static inline void
clock_sleep_until (uint64_t until_ns)
{
  struct timespec ts;

  ts.tv_sec = until_ns / NS_PER_SECOND;
  ts.tv_nsec = until_ns % NS_PER_SECOND;
  while (clock_nanosleep (CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) == EINTR)
    ;
}

#endif /* CLOCK_H */
