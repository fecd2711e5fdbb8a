#!/bin/sh
# Installs what the tests with real front-ends need and this machine lacks: QEMU, qemu-storage-daemon, a Linux kernel for
# the guests, the parts of their root file systems, tcmu-runner, and libblkio. Does nothing when all of it is there.
set -eu

directory=$(dirname "$(realpath "$0")")
PATH=$PATH:/usr/sbin:/sbin
export PATH

packages=
while read -r program package; do
  command -v "$program" >/dev/null || packages="$packages $package"
done <<'PROGRAMS'
qemu-system-x86_64 qemu-system-x86
qemu-storage-daemon qemu-system-common
busybox busybox-static
cpio cpio
xz xz-utils
modprobe kmod
mke2fs e2fsprogs
debugfs e2fsprogs
fio fio
sg_inq sg3-utils
tcmu-runner tcmu-runner
fstrim util-linux
cc gcc
PROGRAMS
[ -e /usr/include/stdio.h ] || packages="$packages libc6-dev"

# Guests are x86-64 machines only.
set -- /boot/vmlinuz-*
[ -e "$1" ] || [ "$(dpkg --print-architecture)" != amd64 ] || packages="$packages linux-image-amd64"

as_root=
[ "$(id -u)" = 0 ] || as_root='sudo -n'

if [ -n "$packages" ] || ! "$directory/libblkio.sh" where >/dev/null; then
  $as_root apt-get -qq update
fi
if [ -n "$packages" ]; then
  # One word a package is wanted.
  # shellcheck disable=SC2086
  $as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends $packages
fi
"$directory/libblkio.sh"
