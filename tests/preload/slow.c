/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* Preloaded into nbdkit and its client: time passes more slowly for both.
 *
 *   SLOW=N   a second takes N
 *
 * All that sleeps then sleeps N times as long, and what others do with the
 * processors, which is as it was, counts for an Nth.
 *
 * Known are the calls that nbdkit's delay and rate filters, ours and
 * tests/bench/client.c make.  What a thread has used of a processor is not time.
 */

#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include <sys/syscall.h>
#include <sys/time.h>

#define REAL(name) ((__typeof__ (&name)) dlsym (RTLD_NEXT, #name))
#define NS_PER_SECOND INT64_C (1000000000)

static int64_t
factor (void)
{
  static int64_t n;
  const char *text;

  if (n == 0) {
    text = getenv ("SLOW");
    n = text != NULL && atoi (text) > 0 ? atoi (text) : 1;
  }
  return n;
}

static struct timespec
to_timespec (int64_t ns)
{
  return (struct timespec) { ns / NS_PER_SECOND, ns % NS_PER_SECOND };
}

/* Of a time or a duration, in the kernel's terms. */
static struct timespec
slower (const struct timespec *ts)
{
  return to_timespec ((ts->tv_sec * NS_PER_SECOND + ts->tv_nsec) * factor ());
}

int
clock_gettime (clockid_t clock, struct timespec *ts)
{
  const int r = syscall (SYS_clock_gettime, clock, ts);

  if (r == 0 && (clock == CLOCK_MONOTONIC || clock == CLOCK_REALTIME))
    *ts = to_timespec ((ts->tv_sec * NS_PER_SECOND + ts->tv_nsec) / factor ());
  return r;
}

int
gettimeofday (struct timeval *restrict tv, void *restrict zone)
{
  struct timespec ts;

  (void) zone;
  clock_gettime (CLOCK_REALTIME, &ts);
  *tv = (struct timeval) { ts.tv_sec, ts.tv_nsec / 1000 };
  return 0;
}

int
clock_nanosleep (clockid_t clock, int flags, const struct timespec *ts,
                 struct timespec *left)
{
  const struct timespec kernel_ts = slower (ts);
  const int err = REAL (clock_nanosleep) (clock, flags, &kernel_ts, left);

  if (err == EINTR && left != NULL && (flags & TIMER_ABSTIME) == 0)
    *left = to_timespec ((left->tv_sec * NS_PER_SECOND + left->tv_nsec) /
                         factor ());
  return err;
}

int
nanosleep (const struct timespec *ts, struct timespec *left)
{
  errno = clock_nanosleep (CLOCK_MONOTONIC, 0, ts, left);
  return errno == 0 ? 0 : -1;
}

int
ppoll (struct pollfd *fds, nfds_t n, const struct timespec *ts,
       const sigset_t *signals)
{
  struct timespec kernel_ts;

  if (ts != NULL)
    kernel_ts = slower (ts);
  return REAL (ppoll) (fds, n, ts != NULL ? &kernel_ts : NULL, signals);
}

int
pthread_cond_timedwait (pthread_cond_t *restrict cond,
                        pthread_mutex_t *restrict lock,
                        const struct timespec *restrict ts)
{
  const struct timespec kernel_ts = slower (ts);

  return REAL (pthread_cond_timedwait) (cond, lock, &kernel_ts);
}
