/* Preloaded into nbdkit, keeps filters and plugins loaded until it exits, so that
 * a sanitizer can name their functions in a report of a leak.
 *
 * Not for ordinary runs: memory that a variable of the filter still points to
 * then isn't taken as leaked.
 */

int dlclose (void *handle);

int
dlclose (void *handle)
{
  (void) handle;
  return 0;
}
