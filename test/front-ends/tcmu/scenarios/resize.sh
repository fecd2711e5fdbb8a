# A disk grows, and shrinks, while it is in use. The initiator sees it after a rescan.
truncate -s 64M image
serve image
block_of a | write_block 5

for megabytes in 96 32; do
  resize $((megabytes * 1024 * 1024))
  echo 1 >"/sys/block/$(block_name)/device/rescan"
  equal 'the size that Linux sees' "$(blockdev --getsize64 "$disk")" $((megabytes * 1024 * 1024))
  last=$((megabytes * 2048 - 1))
  block_of b | write_block $last
  equal 'the last block' "$(read_block $last | md5)" "$(block_of b | md5)"
  ends_with $lba_out_of_range sg_raw --request=512 --outfile=/dev/null "$disk" \
    28 00 $(printf '%08x' $((last + 1)) | sed 's/../& /g') 00 00 01 00
  equal 'block 5' "$(read_block 5 | md5)" "$(block_of a | md5)"
done
remove
nothing_left
