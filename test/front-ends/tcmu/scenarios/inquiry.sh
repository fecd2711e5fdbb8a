# What a device claims of itself can be read in full, and agrees with itself and with what Linux makes of it.
truncate -s 96M image
serve image

sg_turs "$disk"
sg_inq "$disk"
sg_readcap "$disk"
sg_readcap --long "$disk"
equal 'the capacity' "$(sg_readcap --brief --16 "$disk" | cut -d ' ' -f 1)" "$(printf '0x%x' $((96 * 2048)))"
equal 'the size that Linux sees' "$(blockdev --getsize64 "$disk")" $((96 * 1024 * 1024))
equal 'the block size that Linux sees' "$(blockdev --getss "$disk")" 512

# The list of pages begins with itself and is in order; each page can be read and no other.
pages=$(sg_vpd --page=0 --raw "$disk" | bytes 5-)
equal 'the first page' "$(echo "$pages" | head -n 1)" 00
equal 'the order of the pages' "$(echo "$pages" | sort)" "$pages"
for page in $pages; do
  sg_vpd --page="0x$page" "$disk"
done
for page in 80 83 b0 b1 b2; do
  echo "$pages" | grep -qx "$page" || fail "page $page is not listed"
done
ends_with $illegal_request sg_raw --request=255 "$disk" 12 01 df 00 ff 00

sg_modes --all "$disk"
sg_modes --six --all "$disk"
equal 'the write cache that Linux sees' "$(cat "/sys/block/$(block_name)/queue/write_cache")" "$(cached)"
remove
nothing_left
