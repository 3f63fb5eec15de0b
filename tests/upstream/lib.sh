# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
#
# What the scripts in this directory share.  Each looks for one fault of nbdkit's own
# layers in the nbdkit that is installed; docs/upstream.md says what it is about.
#
# A script ends with present, mended or unknown, each with a reason; its status is 0
# for the first two and 77 where it could not tell.  nbdkit's own filters are used,
# also where ours has taken the place of its scan filter.
# shellcheck shell=sh

set -eu

present () { echo "present: $*"; exit 0; }
mended ()  { echo "mended: $*"; exit 0; }
unknown () { echo "unknown: $*"; exit 77; }

for tool in nbdkit nbdcopy timeout; do
  command -v $tool > /dev/null || unknown "there is no $tool"
done

# The first python3 may be one that has no libnbd.
for python in python3 /usr/bin/python3 ''; do
  ! $python -c 'import nbd' 2> /dev/null || break
done
[ -n "$python" ] || unknown "there is no libnbd for Python"

# Scripts of the eval plugin see it too.
tmp=$(mktemp -d)
export tmp

# A server that hangs ends in no other way.
end_server ()
{
  if [ -s "$tmp/pid" ] && ! [ -e "$tmp/status" ]; then
    kill -KILL "$(cat "$tmp/pid")" 2> /dev/null || true
    wait
  fi
  rm -f "$tmp/pid" "$tmp/status"
}
trap 'end_server; rm -rf "$tmp"' EXIT

# Is something true within so many seconds?
within ()   # seconds command...
{
  looks_left=$(($1 * 10))
  shift
  until "$@"; do
    looks_left=$((looks_left - 1))
    [ $looks_left -gt 0 ] || return 1
    sleep 0.1
  done
}

# Its scan filter, wherever that is, or the one to look at.
stock_scan ()
{
  scan=${STOCK_FILTER:-}
  [ -z "$scan" ] || return 0
  scan=$(nbdkit --dump-config | sed -n 's/^filterdir=//p')/nbdkit-scan-filter.so
  [ ! -e "$scan.distrib" ] || scan=$scan.distrib
  [ -e "$scan" ] || unknown "this nbdkit has no scan filter"
}

# Start an nbdkit, at $uri; what it says is in $tmp/log, and when it has ended, its
# status in $tmp/status.
serve ()    # filters, plugin and parameters
{
  end_server
  rm -f "$tmp/sock"
  (
    status=0
    nbdkit -f -U "$tmp/sock" -P "$tmp/pid" "$@" > "$tmp/log" 2>&1 || status=$?
    echo $status > "$tmp/ending"
    mv "$tmp/ending" "$tmp/status"      # never there and empty
  ) 2> /dev/null &
  within 60 test -s "$tmp/pid" -o -e "$tmp/status" || unknown "nbdkit does not start"
  [ -s "$tmp/pid" ] || unknown "nbdkit says: $(grep -m 1 error: "$tmp/log")"
}
uri="nbd+unix:///?socket=$tmp/sock"

# Run Python with a handle h that is connected to the server, for so many seconds at
# most; the status is timeout's.
client ()   # seconds; the program is standard input
{
  timeout -s KILL "$1" "$python" -m nbd -u "$uri" -c -
}
