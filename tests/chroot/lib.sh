# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
#
# What the tests in this directory share.  They install and remove things, so they
# only run where tests/matrix runs them: in a chroot that is thrown away.
# shellcheck shell=sh

set -eu

if [ "${MATRIX:-}" != 1 ]; then
  echo "$0: it changes the system; run tests/matrix instead" >&2
  exit 2
fi

filters=$(pkg-config --variable=filterdir nbdkit)
completions=/usr/share/bash-completion/completions

fail ()
{
  echo "$0: FAILED: $*" >&2
  exit 1
}

# Every file of the system with its checksum, but what dpkg and caches write.
snapshot ()
{
  find /etc /usr -xdev \( -path /usr/src -o -name '*.pyc' -o -name 'ld.so.cache' \) \
    -prune -o \( -type f -o -type l \) -print | sort | while read -r path; do
      if [ -L "$path" ]; then
        echo "$path -> $(readlink "$path")"
      else
        echo "$path"
      fi
    done > "$1.paths"
  find /etc /usr -xdev -type f -not -name '*.pyc' -not -name ld.so.cache -print0 |
    sort -z | xargs -0 sha256sum > "$1"
}

# The system is as it was in a snapshot, and nothing is diverted.
as_before ()
{
  snapshot /tmp/now
  if ! diff "$1" /tmp/now >&2 || ! diff "$1.paths" /tmp/now.paths >&2; then
    fail "the system is not as it was before"
  fi
  [ -z "$(dpkg-divert --list '*scan*' "$completions/nbdkit")" ] ||
    fail "a diversion is left over"
}

# --filter=scan is ours, and does what it says; so do the command and the pages.
ours_works ()
{
  # shellcheck disable=SC2016
  size=$(nbdkit -U - --filter=scan --filter=cache memory 10M scan-policy=ahead.lua \
           --run 'nbdcopy "$uri" null: && nbdinfo --size "$uri"')
  [ "$size" = 10485760 ] || fail "size $size"
  (cd / && scan-policy list) | grep -q '^ahead ' || fail "scan-policy list"
  (cd / && scan-policy check ahead >/dev/null) || fail "scan-policy check"
  # A clone that is made, gone on with, and shown.
  for _ in 1 2; do
    # shellcheck disable=SC2016
    nbdkit -U - --filter=scan --filter=clone memory 10M clone-file=/tmp/clone.img \
      --run 'nbdcopy "$uri" null:' || fail "the clone filter does not work"
  done
  scan-policy map /tmp/clone.img.map | grep -q '100 %' || fail "scan-policy map"
  rm /tmp/clone.img /tmp/clone.img.map
  for page in 1/nbdkit-scan-filter 1/nbdkit-clone-filter 1/scan-policy \
              3/nbdkit-scan-policy; do
    found=$(man -w "${page%/*}" "${page#*/}") || fail "no page $page"
    case $found in
      *.distrib*) fail "man finds $found" ;;
    esac
  done
  man 1 nbdkit-scan-filter | grep -q scan-policy || fail "the page shown is not ours"
  nbdkit -U - --filter="$filters/nbdkit-scan-filter.so.distrib" memory 1M \
    scan-ahead=false --run true || fail "the stock filter is not beside ours"
}

stock_works ()
{
  nbdkit -U - --filter=scan --filter=cache memory 10M scan-ahead=false --run true ||
    fail "the stock filter does not work"
  ! nbdkit -U - --filter=scan memory 10M scan-policy=ahead.lua --run true \
    2>/dev/null || fail "--filter=scan is still ours"
  ! [ -e "$filters/nbdkit-clone-filter.so" ] || fail "the clone filter is left"
  ! [ -e "$filters/nbdkit-scan-filter.so.distrib" ] || fail ".distrib is left"
  dpkg --verify nbdkit || fail "nbdkit's files are not as packaged"
}
