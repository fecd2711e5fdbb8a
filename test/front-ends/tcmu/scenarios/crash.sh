# The server is killed while it has commands, and started anew: no command is lost and none fails, and the file system
# is whole. The initiator notices nothing but a pause.
truncate -s 128M image
serve image
# Without lazy initialization only fio writes in bulk.
mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 "$disk"
mkdir mounted
mount -t ext4 "$disk" mounted

# The seventh figure of the statistics of a block device: sectors written.
written_sectors() {
  awk '{ print $7 }' "/sys/block/$(block_name)/stat"
}
has_written() {
  [ "$(written_sectors)" -ge "$1" ]
}
start=$(written_sectors)
fio --name=writer --filename=mounted/data --ioengine=libaio --direct=1 --iodepth=32 --rw=randwrite --bs=4k --size=32M \
  --verify=crc32c --verify_fatal=1 --end_fsync=1 --output=fio.txt &
writer=$!
in_flight() {
  [ "$(awk '{ print $1 + $2 }' "/sys/block/$(block_name)/inflight")" -ge "$1" ]
}
# A crash while fio prepares its file would leave fio waiting for one command, and the ring would not fill.
eventually 30 has_written $((start + 2048))
eventually 30 in_flight 1
crash
# The kernel goes on filling the ring, and nobody takes.
eventually 10 in_flight 16
figure in-flight "$(awk '{ print $1 + $2 }' "/sys/block/$(block_name)/inflight")" commands
before=$disk
recover
equal 'the disk' "$disk" "$before"
wait "$writer" || { cat fio.txt && fail 'fio'; }

umount mounted
e2fsck -fn "$disk"
remove
e2fsck -fn image
nothing_left
