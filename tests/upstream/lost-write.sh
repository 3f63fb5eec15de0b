# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter
#
# For the scripts about cow: a write that is made while a block is being copied.
# shellcheck shell=sh disable=SC2154 # $tmp is of lib.sh, which is read before

# The plugin's disk holds zeroes, and its reads are held until $tmp/go is there.
# The script for the client is given: it begins the copying and defines copied ().
look_for_lost_write ()  # cow's parameter, Python
{
  # shellcheck disable=SC2016 # for the eval plugin
  serve --filter=cow eval "$1" thread_model='echo parallel' \
    get_size='echo 1M' \
    pread='touch "$tmp/begun"
           until [ -e "$tmp/go" ]; do sleep 0.02; done
           head -c "$3" /dev/zero'
  answer=$({ echo "$2"; cat <<'END'
import os, time
tmp = os.environ["tmp"]
BLOCK = 65536
def poll_until (condition, seconds):
    deadline = time.monotonic () + seconds
    while time.monotonic () < deadline:
        if condition ():
            return True
        h.poll (20)
    return False

copy = begin ()
assert poll_until (lambda: os.path.exists (tmp + "/begun"), 10)
# One that waits for the copying is right as well, so the time is bounded.
data = nbd.Buffer.from_bytearray (bytearray (b"w" * BLOCK))
write = h.aio_pwrite (data, 0)
poll_until (lambda: h.aio_command_completed (write), 2)
open (tmp + "/go", "w").close ()
assert poll_until (lambda: h.aio_in_flight () == 0, 10)
# The copying may have been for a write of a part, which is somewhere behind these.
print ("lost" if h.pread (512, 0) == bytes (512) else "kept")
END
  } | client 30) || unknown "the client fails"
  case $answer in
    lost) present "what is read is from before the write" ;;
    kept) mended "the write is there" ;;
    *) unknown "the client says $answer" ;;
  esac
}
