/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* A client for the benchmark: does requests one after the other on each of its
 * connections, and prints how long they took as a line of JSON.
 *
 *   client URI NAME=VALUE...
 *
 *   mode=sequential   upwards through the disk (each connection all of it; the
 *                     n-th of m starts n/m of the disk from the start)
 *   mode=random       anywhere
 *   mode=mixed        as sequential, and after every fourth read a write of 64K
 *                     somewhere in the first half of the disk
 *   mode=trace        the reads of file=FILE, lines of "offset count"
 *   mode=replay       those of lines of "offset count think after": each begins
 *                     think microseconds after the end of the read of the line
 *                     number `after`, or after the start if that is 0 (and all
 *                     of them are from 1 byte to 32M)
 *   count=BYTES       of a read (262144)
 *   reads=N           most reads of a connection (all of the disk or file)
 *   think=MS          pause after each read (0)
 *   connections=N     each in a thread of its own (1)
 *   seed=N            for random and mixed (1)
 *
 * Latencies are of reads alone.  A write keeps what is on the disk of the same
 * kind (random bytes), so that runs on one image are alike.
 */

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <pthread.h>

#include <libnbd.h>

#define READ_MAX (32 * 1024 * 1024)     /* as much as servers take */
#define WRITE_BYTES 65536
#define READS_A_WRITE 4

enum mode { SEQUENTIAL, RANDOM, MIXED, TRACE, REPLAY };

struct range {
  uint64_t offset;
  uint32_t count;

  /* For replay. */
  uint64_t think_ns;
  size_t after;                 /* number of a read, from 1 on, or 0 */
};

static struct {
  const char *uri;
  enum mode mode;
  uint32_t count;
  size_t reads;                 /* SIZE_MAX: all */
  uint64_t think_ns;
  unsigned connections;
  uint64_t seed;
  struct range *trace;
  size_t trace_length;
} config = {
  .count = 262144, .reads = SIZE_MAX, .connections = 1, .seed = 1,
};

struct connection {
  unsigned number;
  pthread_t thread;
  struct nbd_handle *nbd;
  uint64_t size;
  uint64_t random;
  char *buf;
  uint64_t *latency_ns;         /* of each of nr_reads reads */
  size_t nr_reads;
  uint64_t bytes;
};

static void
fail (const char *what)
{
  const char *why = nbd_get_error ();

  fprintf (stderr, "client: %s: %s\n", what, why ? why : strerror (errno));
  exit (EXIT_FAILURE);
}

static uint64_t
now_ns (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return ts.tv_sec * UINT64_C (1000000000) + ts.tv_nsec;
}

static void
sleep_ns (uint64_t ns)
{
  struct timespec ts = { ns / 1000000000, ns % 1000000000 };

  while (nanosleep (&ts, &ts) == -1 && errno == EINTR)
    ;
}

/* splitmix64 */
static uint64_t
next_random (struct connection *c)
{
  uint64_t z = c->random += UINT64_C (0x9e3779b97f4a7c15);

  z = (z ^ (z >> 30)) * UINT64_C (0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C (0x94d049bb133111eb);
  return z ^ (z >> 31);
}

static size_t
reads_to_do (const struct connection *c)
{
  const size_t all = config.mode >= TRACE ? config.trace_length
    : (c->size + config.count - 1) / config.count;

  return config.reads < all || config.mode == RANDOM ? config.reads : all;
}

static struct range
nth_range (struct connection *c, size_t n)
{
  const uint64_t blocks = c->size / config.count;
  struct range range = { .count = config.count };

  switch (config.mode) {
  case SEQUENTIAL:
  case MIXED:
    range.offset =
      (n + blocks * c->number / config.connections) % blocks * config.count;
    break;
  case RANDOM:
    range.offset = next_random (c) % blocks * config.count;
    break;
  case TRACE:
  case REPLAY:
    range = config.trace[n];
    if (range.offset >= c->size || range.count > c->size - range.offset)
      range.offset = range.count > c->size ? 0
        : range.offset % (c->size - range.count + 1);
    break;
  }
  return range;
}

/* -- reads that depend on one another -------------------------------------- */

/* A read that has not ended. */
struct pending {
  struct replay *replay;
  size_t number;                /* from 1 on */
  uint64_t start_ns;            /* of the read, or when it is to start */
  struct pending *next;         /* in the list of those to start, or that wait */
  struct pending *waiters;      /* for this one, in the order of their numbers */
};

struct replay {
  struct connection *c;
  struct pending *to_start;     /* the first to start first */
  size_t left;
};

static void
start_after (struct replay *replay, struct pending *p, uint64_t ns)
{
  struct pending **place = &replay->to_start;

  p->start_ns = ns + config.trace[p->number - 1].think_ns;
  while (*place != NULL && (*place)->start_ns <= p->start_ns)
    place = &(*place)->next;
  p->next = *place;
  *place = p;
}

/* libnbd calls this when a read has ended. */
static int
read_ended (void *vp, int *error)
{
  struct pending *p = vp, *waiter, *next;
  struct replay *replay = p->replay;
  const uint64_t now = now_ns ();

  if (*error != 0) {
    errno = *error;
    fail ("read");
  }
  replay->c->latency_ns[p->number - 1] = now - p->start_ns;
  replay->left--;
  for (waiter = p->waiters; waiter != NULL; waiter = next) {
    next = waiter->next;
    start_after (replay, waiter, now);
  }
  return 1;                     /* nobody asks what became of it */
}

static void
start_read (struct replay *replay, struct pending *p)
{
  struct connection *c = replay->c;
  const struct range range = nth_range (c, p->number - 1);

  p->start_ns = now_ns ();
  c->bytes += range.count;
  /* All go to one buffer, for nobody looks at it. */
  if (nbd_aio_pread (c->nbd, c->buf, range.count, range.offset,
                     (nbd_completion_callback) {
                       .callback = read_ended, .user_data = p,
                     }, 0) == -1)
    fail ("read");
}

/* Wait for the server, or until some time; 0: for as long as it takes.  Thinking
 * takes less than a millisecond, which is the least that nbd_poll knows.
 */
static void
wait_for_server (struct connection *c, uint64_t until_ns)
{
  const unsigned direction = nbd_aio_get_direction (c->nbd);
  struct pollfd fd = { .fd = nbd_aio_get_fd (c->nbd) };
  const uint64_t now = now_ns ();
  const uint64_t ns = until_ns > now ? until_ns - now : 0;
  const struct timespec ts = { ns / 1000000000, ns % 1000000000 };

  if (direction & LIBNBD_AIO_DIRECTION_READ)
    fd.events |= POLLIN;
  if (direction & LIBNBD_AIO_DIRECTION_WRITE)
    fd.events |= POLLOUT;
  if (ppoll (&fd, 1, until_ns != 0 ? &ts : NULL, NULL) == -1)
    fail ("ppoll");
  if ((fd.revents & (POLLIN | POLLHUP | POLLERR)) != 0 &&
      nbd_aio_notify_read (c->nbd) == -1)
    fail ("read");
  if ((fd.revents & POLLOUT) != 0 &&
      (nbd_aio_get_direction (c->nbd) & LIBNBD_AIO_DIRECTION_WRITE) != 0 &&
      nbd_aio_notify_write (c->nbd) == -1)
    fail ("read");
}

static void
run_replay (struct connection *c, size_t n)
{
  struct replay replay = { .c = c, .left = n };
  struct pending *all = calloc (n + 1, sizeof *all), *p, *before;
  const uint64_t start = now_ns ();

  if (all == NULL)
    fail ("calloc");
  for (p = all + n; p > all; --p) {
    p->replay = &replay;
    p->number = p - all;
    before = all + config.trace[p->number - 1].after;
    if (before != all) {
      p->next = before->waiters;
      before->waiters = p;
    }
  }
  for (p = all + 1; p <= all + n; ++p)
    if (config.trace[p->number - 1].after == 0)
      start_after (&replay, p, start);

  while (replay.left > 0) {
    while ((p = replay.to_start) != NULL && p->start_ns <= now_ns ()) {
      replay.to_start = p->next;
      start_read (&replay, p);
    }
    if (replay.left > 0)
      wait_for_server (c, p != NULL ? p->start_ns : 0);
  }
  c->nr_reads = n;
  free (all);
}

static void *
run_connection (void *vp)
{
  struct connection *c = vp;
  const size_t n = reads_to_do (c);
  char out[WRITE_BYTES];
  size_t i;

  c->latency_ns = malloc (n * sizeof *c->latency_ns);
  c->buf = malloc (READ_MAX);
  if (c->latency_ns == NULL || c->buf == NULL)
    fail ("malloc");
  if (config.mode == REPLAY) {
    run_replay (c, n);
    return NULL;
  }
  for (i = 0; i < sizeof out; ++i)
    out[i] = next_random (c);

  for (i = 0; i < n; ++i) {
    const struct range range = nth_range (c, i);
    const uint64_t start = now_ns ();

    if (nbd_pread (c->nbd, c->buf, range.count, range.offset, 0) == -1)
      fail ("read");
    c->latency_ns[i] = now_ns () - start;
    c->bytes += range.count;
    if (config.mode == MIXED && i % READS_A_WRITE == READS_A_WRITE-1 &&
        nbd_pwrite (c->nbd, out, sizeof out,
                    next_random (c) % (c->size / 2 / sizeof out) * sizeof out,
                    0) == -1)
      fail ("write");
    if (config.think_ns > 0)
      sleep_ns (config.think_ns);
  }
  c->nr_reads = n;
  return NULL;
}

static void
read_trace (const char *name)
{
  FILE *fp = fopen (name, "r");
  struct range range;
  uint64_t think_us;
  char line[128];
  int n;

  if (fp == NULL)
    fail (name);
  while (fgets (line, sizeof line, fp) != NULL) {
    n = sscanf (line, "%" SCNu64 " %" SCNu32 " %" SCNu64 " %zu", &range.offset,
                &range.count, &think_us, &range.after);
    if (n < 4)
      think_us = range.after = 0;
    range.think_ns = think_us * 1000;
    if (n < 2 || range.count == 0 || range.count > READ_MAX)
      continue;
    if (range.after > config.trace_length) {
      fprintf (stderr, "client: %s: a read waits for a later one\n", name);
      exit (EXIT_FAILURE);
    }
    config.trace = realloc (config.trace,
                            (config.trace_length + 1) * sizeof range);
    if (config.trace == NULL)
      fail ("realloc");
    config.trace[config.trace_length++] = range;
  }
  fclose (fp);
}

static void
set (const char *arg)
{
  static const char *const modes[] = {
    [SEQUENTIAL] = "sequential", [RANDOM] = "random", [MIXED] = "mixed",
    [TRACE] = "trace", [REPLAY] = "replay",
  };
  const char *value = strchr (arg, '=');
  const size_t length = value ? (size_t) (value++ - arg) : 0;
  size_t i;

#define IS(name) (length == strlen (name) && strncmp (arg, name, length) == 0)
  if (IS ("mode")) {
    for (i = 0; i < sizeof modes / sizeof modes[0]; ++i)
      if (strcmp (value, modes[i]) == 0) {
        config.mode = i;
        return;
      }
  }
  else if (IS ("file")) {
    read_trace (value);
    return;
  }
  else if (value != NULL && *value >= '0' && *value <= '9') {
    const uint64_t number = strtoull (value, NULL, 10);

    if (IS ("count") && number > 0 && number <= READ_MAX) {
      config.count = number;
      return;
    }
    if (IS ("connections") && number > 0 && number <= 1000) {
      config.connections = number;
      return;
    }
    if (IS ("reads")) {
      config.reads = number;
      return;
    }
    if (IS ("think")) {
      config.think_ns = number * 1000000;
      return;
    }
    if (IS ("seed")) {
      config.seed = number;
      return;
    }
  }
#undef IS
  fprintf (stderr, "client: '%s' is not valid; see tests/bench/client.c\n", arg);
  exit (EXIT_FAILURE);
}

static int
compare (const void *a, const void *b)
{
  const uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;

  return (x > y) - (x < y);
}

static void
report (struct connection *connections, uint64_t ns)
{
  uint64_t *all = NULL, sum = 0, bytes = 0;
  size_t n = 0, i;

  for (i = 0; i < config.connections; ++i)
    n += connections[i].nr_reads;
  all = malloc ((n + 1) * sizeof *all);
  if (all == NULL)
    fail ("malloc");
  n = 0;
  for (i = 0; i < config.connections; ++i) {
    memcpy (all + n, connections[i].latency_ns,
            connections[i].nr_reads * sizeof *all);
    n += connections[i].nr_reads;
    bytes += connections[i].bytes;
  }
  qsort (all, n, sizeof *all, compare);
  for (i = 0; i < n; ++i)
    sum += all[i];
#define MS(x) (n > 0 ? (x) / 1e6 : 0.0)
  printf ("{\"seconds\": %.6f, \"reads\": %zu, \"bytes\": %" PRIu64
          ", \"mean_ms\": %.4f, \"p50_ms\": %.4f, \"p99_ms\": %.4f"
          ", \"max_ms\": %.4f}\n",
          ns / 1e9, n, bytes, MS ((double) sum / n), MS (all[n / 2]),
          MS (all[n * 99 / 100]), MS (all[n-1]));
#undef MS
  free (all);
}

int
main (int argc, char *argv[])
{
  struct connection *connections;
  uint64_t start;
  unsigned i;
  int a;

  if (argc < 2) {
    fprintf (stderr, "usage: client URI NAME=VALUE...\n");
    exit (EXIT_FAILURE);
  }
  config.uri = argv[1];
  for (a = 2; a < argc; ++a)
    set (argv[a]);
  if ((config.mode == TRACE || config.mode == REPLAY) && config.trace == NULL) {
    fprintf (stderr, "client: mode=trace and mode=replay need file=FILE with "
             "reads in it\n");
    exit (EXIT_FAILURE);
  }
  if (config.mode == RANDOM && config.reads == SIZE_MAX) {
    fprintf (stderr, "client: mode=random needs reads=N\n");
    exit (EXIT_FAILURE);
  }

  connections = calloc (config.connections, sizeof *connections);
  if (connections == NULL)
    fail ("calloc");
  start = now_ns ();
  for (i = 0; i < config.connections; ++i) {
    struct connection *c = &connections[i];
    int64_t size;

    c->number = i;
    c->random = config.seed * 1000 + i;
    c->nbd = nbd_create ();
    if (c->nbd == NULL || nbd_connect_uri (c->nbd, config.uri) == -1)
      fail (config.uri);
    size = nbd_get_size (c->nbd);
    if (size < (int64_t) config.count || size < 2 * WRITE_BYTES)
      fail ("the disk is too small");
    c->size = size;
  }
  for (i = 0; i < config.connections; ++i)
    if (pthread_create (&connections[i].thread, NULL, run_connection,
                        &connections[i]) != 0)
      fail ("pthread_create");
  for (i = 0; i < config.connections; ++i)
    pthread_join (connections[i].thread, NULL);
  report (connections, now_ns () - start);

  for (i = 0; i < config.connections; ++i) {
    nbd_close (connections[i].nbd);
    free (connections[i].latency_ns);
    free (connections[i].buf);
  }
  free (connections);
  free (config.trace);
  return 0;
}
