#!/bin/sh
# Record the traces in this directory anew: sh record.sh [DIRECTORY]
#
# Needs root or access to /dev/fuse, and nbdkit, libnbd-bin, nbdfuse, qemu-utils,
# e2fsprogs, fdisk, fio.  What is read is a 64 MiB disk with one ext4 partition
# that holds /usr/share/doc of nbdkit, libnbd and e2fsprogs and 24 MiB of files.

set -eu

out=$(cd "${1:-.}" && pwd)
work=$(mktemp -d)
mounted=
unmount () {
  fusermount3 -u "$work/mnt" 2>/dev/null || umount "$work/mnt"
}
finish () {
  [ -z "$mounted" ] || unmount || :
  rm -rf "$work"
}
trap finish EXIT
cd "$work"

# The disk.
mkdir tree tree/data mnt copied
cp -r /usr/share/doc/*nbd* /usr/share/doc/e2fsprogs tree/ 2>/dev/null || :
for i in 1 2 3 4 5 6; do
  head -c 4M /dev/urandom > tree/data/file$i
done
truncate -s 64M disk.img
echo 'start=2048, type=linux' | sfdisk -q --label gpt disk.img
mke2fs -q -t ext4 -d tree -E offset=1048576 disk.img 62M

# record NAME COMMAND...: COMMAND sees the URI in $uri.
record () {
  name=$1
  shift
  nbdkit -U - -r --filter=log file disk.img logfile="$out/$name.log" --run "$*"
}

# mounted NAME COMMAND...: COMMAND sees the disk as mnt/nbd, and the partition
# alone if NAME begins with part-.
mounted () {
  name=$1 filter=
  shift
  case $name in part-*) filter="--filter=partition partition=1" ;; esac
  # shellcheck disable=SC2086 # the filter is several words
  nbdfuse -r -P fuse.pid mnt/nbd [ nbdkit -r --exit-with-parent --filter=log \
      ${filter%% *} file disk.img logfile="$out/${name#part-}.log" ${filter#* } ] &
  mounted=$!
  until [ -e fuse.pid ]; do sleep 0.1; done
  "$@" || :
  unmount
  wait $mounted || :
  mounted=
  rm -f fuse.pid
}

# shellcheck disable=SC2016 # nbdkit sets $uri
record nbdcopy 'nbdcopy "$uri" null:'
# shellcheck disable=SC2016
record qemu-img-convert 'qemu-img convert -f raw -O raw "$uri" copy.img'
mounted blkid blkid -p mnt/nbd
mounted part-fsck e2fsck -fn mnt/nbd
mounted part-debugfs-rdump debugfs -R 'rdump / copied' mnt/nbd
mounted fio-random fio --name=random --filename=mnt/nbd --readonly --rw=randread \
    --bs=4k --size=63m --number_ios=400 --randseed=1 --direct=0 --fadvise_hint=random \
    --output=/dev/null

# What is read is what matters; the rest would only be long.
for log in "$out"/*.log; do
  grep -E ' (Connect|Read|\.\.\.Read|Disconnect) ' "$log" > "$log.new"
  mv "$log.new" "$log"
done
