/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
 */

/* See recorder.h. */

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <pthread.h>

#include <nbdkit-filter.h>

#include "cleanup.h"
#include "escape.h"
#include "journal.h"
#include "recorder.h"

struct recorder {
  const char *key, *path;       /* immutable */
  pthread_t thread;             /* immutable while it runs */
  bool running;

  atomic_bool on;               /* reads are wanted */

  /* Leaf lock: nothing is called while it is held. */
  pthread_mutex_t lock;
  pthread_cond_t cond;          /* the first read has come, or stopping */

  /* Protected by lock. */
  char *export_name;            /* NULL until it is claimed */
  bool warned_of_export;
  bool begun, stopping;
  unsigned lost;                /* reads that there was no room for */
  size_t nr_reads;
  struct range reads[RECORDER_READS_MAX];

  /* The thread only (and whoever comes before and after it). */
  struct journal *journal;
  struct range batch[RECORDER_READS_MAX];
  uint64_t first_ns, newest_ns, written_ns; /* of the first and the last new read */
  bool dirty;                   /* there is more than in the file */
  bool warned;                  /* that the file can't be written */
};

/* -- start and end --------------------------------------------------------- */

static void
warn_of_other (const struct recorder *r, const char *what)
{
  nbdkit_error ("scan: warning: %s=%s: %s; this server leaves it alone", r->key,
                r->path, what);
}

/* Open the file anew, as who we are now.  Returns -1 after saying what is wrong; it is not an
 * error if another server records in it, and then nothing is recorded.
 */
static int
open_journal (struct recorder *r, const char *as_whom)
{
  char error[JOURNAL_ERROR_MAX];
  bool busy = false;

  journal_free (r->journal);
  r->journal = NULL;
  if (journal_probe (r->path, error) == 0)
    r->journal = journal_open (r->path, &busy, error);
  atomic_store (&r->on, r->journal != NULL);
  if (busy)
    warn_of_other (r, "another server records in it");
  else if (r->journal == NULL) {
    nbdkit_error ("%s=%s: %s%s", r->key, r->path, error, as_whom);
    return -1;
  }
  return 0;
}

struct recorder *
recorder_new (const char *key, const char *path)
{
  struct recorder *r = calloc (1, sizeof *r);

  if (r == NULL) {
    nbdkit_error ("scan: malloc: %m");
    return NULL;
  }
  r->key = key;
  r->path = path;
  if (open_journal (r, "") == -1) {
    free (r);
    return NULL;
  }
  pthread_mutex_init (&r->lock, NULL);
  clock_cond_init (&r->cond);
  return r;
}

static void *
run (void *vp)
{
  struct recorder *r = vp;
  bool stopping;

  pthread_setname_np (pthread_self (), "nbdkit-record");
  do {
    const uint64_t next_ns = clock_now_ns () + RECORDER_LOOK_NS;

    {
      ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&r->lock);

      while (!r->begun && !r->stopping)
        pthread_cond_wait (&r->cond, &r->lock);
      while (!r->stopping &&
             clock_wait_until (&r->cond, &r->lock, next_ns) == 0)
        ;
      stopping = r->stopping;
    }
    recorder_step (r, clock_now_ns ());
  } while (!stopping && recorder_is_on (r));
  return NULL;
}

int
recorder_start (struct recorder *r)
{
  int err;

  if (!recorder_is_on (r))
    return 0;
  /* The process that runs the command of --run has what was open before the fork, and so
   * would keep the lock of a server that is killed.
   */
  if (open_journal (r, " (as the user that nbdkit has become)") == -1)
    return -1;
  if (!recorder_is_on (r))
    return 0;
  err = pthread_create (&r->thread, NULL, run, r);
  if (err != 0) {
    nbdkit_error ("%s=%s: could not start a thread: %s", r->key, r->path,
                  strerror (err));
    atomic_store (&r->on, false);
    return -1;
  }
  r->running = true;
  return 0;
}

/* -- the thread ------------------------------------------------------------ */

static void
write_file (struct recorder *r)
{
  if (!r->dirty || !journal_counts (r->journal))
    return;
  if (journal_write (r->journal) == 0)
    r->dirty = false;
  else if (errno == EEXIST) {
    warn_of_other (r, "somebody else has put a file there");
    atomic_store (&r->on, false);
  }
  else if (!r->warned) {
    nbdkit_error ("scan: warning: %s=%s can't be written: %m", r->key, r->path);
    r->warned = true;
  }
}

/* To the log, as scan-progress does: it is no error. */
static void
say (const struct recorder *r, unsigned lost, const char *why)
{
  const size_t blocks = journal_length (r->journal);

  if (r->dirty && !journal_counts (r->journal))
    fprintf (stderr, "scan: %s: left as it was: %zu blocks were read, next to "
             "nothing of what runs before this one read\n", r->path, blocks);
  else if (!r->dirty && blocks > 0) {
    fprintf (stderr, "scan: %s: learnt %zu blocks of 4K: %s", r->path, blocks, why);
    if (lost > 0)
      fprintf (stderr, " (%u reads came too fast and are not in it)", lost);
    fprintf (stderr, "\n");
  }
  fflush (stderr);
}

static void
end (struct recorder *r, const char *why)
{
  unsigned lost;

  atomic_store (&r->on, false);
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&r->lock);

    lost = r->lost;
  }
  write_file (r);
  say (r, lost, why);
  /* Others may record in the file from now on. */
  journal_free (r->journal);
  r->journal = NULL;
}

/* Why the recording is over, or NULL. */
static const char *
is_over (const struct recorder *r, uint64_t now_ns)
{
  if (journal_is_full (r->journal))
    return "there is no room for more";
  if (journal_length (r->journal) < RECORDER_LEAST_BLOCKS)
    return NULL;
  if (now_ns - r->newest_ns >= RECORDER_IDLE_NS)
    return "nothing new was read for 10 seconds";
  if (now_ns - r->first_ns >= RECORDER_MOST_NS)
    return "10 minutes have passed";
  return NULL;
}

static void
note_down (struct recorder *r, uint64_t now_ns)
{
  size_t n, i, added = 0;

  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&r->lock);

    n = r->nr_reads;
    memcpy (r->batch, r->reads, n * sizeof *r->batch);
    r->nr_reads = 0;
  }
  if (n > 0 && r->first_ns == 0)
    r->first_ns = r->newest_ns = r->written_ns = now_ns;
  for (i = 0; i < n; ++i)
    added += journal_add (r->journal, r->batch[i]);
  if (added > 0) {
    r->newest_ns = now_ns;
    r->dirty = true;
  }
}

void
recorder_step (struct recorder *r, uint64_t now_ns)
{
  const char *why;

  if (!recorder_is_on (r))
    return;
  note_down (r, now_ns);
  why = is_over (r, now_ns);
  if (why != NULL)
    end (r, why);
  else if (r->dirty && now_ns - r->written_ns >= RECORDER_WRITE_NS) {
    write_file (r);
    r->written_ns = now_ns;
  }
}

void
recorder_stop (struct recorder *r)
{
  if (r == NULL)
    return;
  if (r->running) {
    {
      ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&r->lock);

      r->stopping = true;
      pthread_cond_signal (&r->cond);
    }
    pthread_join (r->thread, NULL);
    r->running = false;
  }
  if (recorder_is_on (r))
    end (r, "the server ends");
}

void
recorder_free (struct recorder *r)
{
  if (r == NULL)
    return;
  recorder_stop (r);
  journal_free (r->journal);
  pthread_cond_destroy (&r->cond);
  pthread_mutex_destroy (&r->lock);
  free (r->export_name);
  free (r);
}

/* -- for the scans --------------------------------------------------------- */

bool
recorder_claim (struct recorder *r, const char *export_name)
{
  char ours[ESCAPE_NAME_MAX], other[ESCAPE_NAME_MAX];
  char *copy = strdup (export_name);
  bool is_ours, first_other;

  if (copy == NULL)
    return false;
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&r->lock);

    if (r->export_name == NULL) {
      r->export_name = copy;
      copy = NULL;
    }
    is_ours = strcmp (r->export_name, export_name) == 0;
    first_other = !is_ours && !r->warned_of_export;
    r->warned_of_export |= !is_ours;
  }
  free (copy);
  /* The name does not change any more. */
  if (first_other)
    nbdkit_error ("scan: warning: %s=%s records the export %s, not %s",
                  r->key, r->path,
                  escape (ESCAPE_NAME, r->export_name, ours, sizeof ours),
                  escape (ESCAPE_NAME, export_name, other, sizeof other));
  return is_ours;
}

bool
recorder_is_on (const struct recorder *r)
{
  return r != NULL && atomic_load_explicit (&r->on, memory_order_relaxed);
}

void
recorder_add (struct recorder *r, const struct met_read *reads, size_t n,
              unsigned lost)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&r->lock);
  const size_t room = RECORDER_READS_MAX - r->nr_reads;
  size_t i;

  if (n > room) {
    lost += n - room;
    n = room;
  }
  r->lost += lost;
  for (i = 0; i < n; ++i)
    r->reads[r->nr_reads++] = reads[i].range;
  if (!r->begun && n > 0) {
    r->begun = true;
    pthread_cond_signal (&r->cond);
  }
}
