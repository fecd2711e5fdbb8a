# A file system is made, filled, mounted again, read and checked.
truncate -s 128M image
serve image "$@"
count_calls

head -c 16M /dev/urandom >data
written=$(md5 <data)
mkfs.ext4 -q "$disk"
mkdir mounted
mount -t ext4 "$disk" mounted
cp data mounted/data
umount mounted
mount -t ext4 "$disk" mounted
equal 'what was read after a remount' "$(md5 <mounted/data)" "$written"
fstrim mounted || echo 'no discard'
umount mounted
e2fsck -fn "$disk"
tell_calls
remove

# What the initiator wrote is in the store, and not only in a memory of the server.
e2fsck -fn image
equal 'what is in the image' "$(debugfs -R 'cat /data' image 2>/dev/null | md5)" "$written"
nothing_left
