#!/bin/sh
# Builds what a test guest boots from, in about two seconds: OUTPUT/kernel and OUTPUT/initramfs. The file system
# holds SCRIPTS and the programs and kernel modules that SCRIPTS asks for, with all that they depend on.
#
#   guest.sh KERNEL_VERSION SCRIPTS OUTPUT
#
# KERNEL_VERSION names /boot/vmlinuz-KERNEL_VERSION. SCRIPTS is a directory with an executable named init, and two lists
# with one name a line: programs.list and modules.list. Both results are uncompressed: an emulated CPU needs seconds
# to decompress what is copied in no time.
set -eu

kernel_version=$1
scripts=$2
output=$(realpath "$3")

PATH=$PATH:/usr/sbin:/sbin
export PATH

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

# --- The kernel: the ELF file inside the bzImage, whose place its header tells (boot protocol 2.08).
image=/boot/vmlinuz-$kernel_version
header_field() {
  od -A n -j "$1" -N "$2" -t "u$2" "$image" | tr -d ' '
}
setup_sectors=$(header_field 497 1)
payload_offset=$(header_field 584 4)
payload_bytes=$(header_field 588 4)
payload() {
  tail -c "+$(((setup_sectors + 1) * 512 + payload_offset + 1))" "$image" | head -c "$payload_bytes"
}
case $(payload | od -A n -N 4 -t x1 | tr -d ' ') in
  # The size of the kernel follows the stream, which --single-stream and head leave out.
  fd377a58) payload | xz -dc --single-stream >"$output/kernel" ;;
  28b52ffd) payload | head -c -4 | zstd -dcq >"$output/kernel" ;;
  *) cp "$image" "$output/kernel" ;;
esac

# --- The root file system.
mkdir -p "$root/bin" "$root/sbin" "$root/etc" "$root/modules" "$root/dev" "$root/proc" "$root/sys" "$root/mnt"

copy_program() {
  cp -L "$(command -v "$1")" "$2"
  # Fails for a static program, which needs no libraries.
  { ldd "$(command -v "$1")" 2>/dev/null || true; } | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
  done
}
# Busybox makes links to itself in /bin. Everything else is in /sbin, so that no such link takes its place.
while read -r program; do
  case $program in
    busybox) copy_program busybox "$root/bin/" ;;
    *) copy_program "$program" "$root/sbin/" ;;
  esac
done <"$scripts/programs.list"
# mke2fs and e2fsck complain when their configuration or the list of mounts is missing.
cp /etc/mke2fs.conf "$root/etc/"
ln -s /proc/mounts "$root/etc/mtab"

# modprobe lists what a module depends on before the module. The guest's insmod cannot read compressed modules.
while read -r module; do
  modprobe --set-version "$kernel_version" --show-depends "$module"
done <"$scripts/modules.list" | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' | while read -r module; do
  name=$(basename "$module" | sed 's/\.ko.*//')
  case $module in
    *.xz) xz -dc "$module" ;;
    *.zst) zstd -dcq "$module" ;;
    *) cat "$module" ;;
  esac >"$root/modules/$name.ko"
  echo "$name" >>"$root/modules/order"
done

cp "$scripts"/* "$root/"
cd "$root"
find . | cpio --create --format=newc --owner=0:0 --quiet >"$output/initramfs"
