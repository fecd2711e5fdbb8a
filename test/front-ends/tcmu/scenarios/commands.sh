# Commands that a file system does not send do what the standard says, and leave the medium alone when they fail. The
# arguments name the groups of commands: functions of this file.
truncate -s 64M image
serve image
last=$((64 * 2048 - 1))

# same LBA CHARACTER: what a block is filled with.
same() {
  equal "block $1" "$(read_block "$1" | md5)" "$(block_of "$2" | md5)"
}

# All or nothing.
compare_and_write() {
  block_of a | write_block 100
  { block_of a && block_of b; } >pair
  command="sg_compare_and_write --in=pair --num=1 --xferlen=1024"
  $command --lba=100 "$disk"
  same 100 b
  ends_with $miscompare $command --lba=100 "$disk"
  same 100 b
  ends_with $lba_out_of_range $command --lba=$((last + 1)) "$disk"
}

# Of the medium, and against data.
verify() {
  block_of b >block
  write_block 110 <block
  sg_verify --lba=0 --count=2048 "$disk"
  sg_verify --16 --lba=110 --count=1 "$disk"
  sg_verify --lba=110 --count=1 --ndo=512 --in=block "$disk"
  ends_with $miscompare sg_verify --lba=111 --count=1 --ndo=512 --in=block "$disk"
  { block_of b && block_of b; } >pair
  ends_with $lba_out_of_range sg_verify --lba=$last --count=2 --ndo=1024 --in=pair "$disk"
}

write_same() {
  block_of c >block
  sg_write_same --10 --in=block --lba=200 --num=16 "$disk"
  sg_write_same --16 --in=block --lba=$last --num=1 "$disk"
  same 199 '\0'
  same 200 c
  same 215 c
  same 216 '\0'
  same "$last" c
  ends_with $lba_out_of_range sg_write_same --16 --in=block --lba=$last --num=2 "$disk"
}

synchronize_cache() {
  sg_sync "$disk"
  sg_sync --16 "$disk"
}

# Linux turns the cache off and on with MODE SELECT, and believes what the page says then.
write_cache() {
  cache_type=$(echo "/sys/block/$(block_name)/device/scsi_disk"/*/cache_type)
  for wanted in 'write through' 'write back'; do
    echo "$wanted" >"$cache_type"
    equal 'the mode page' "$(cached)" "$wanted"
    equal 'the cache that Linux sees' "$(cat "/sys/block/$(block_name)/queue/write_cache")" "$wanted"
    block_of d | write_block 250
    same 250 d
  done
}

# What is claimed works, and what is not claimed is refused.
unmap() {
  for lba in 300 301; do block_of e | write_block $lba; done
  if sg_vpd --page=lbpv "$disk" | grep -q '(LBPU): 1'; then
    echo 'UNMAP is claimed'
    sg_unmap --force --lba=300 --num=1 "$disk"
    if sg_readcap --long "$disk" | grep -q 'lbprz=1'; then same 300 '\0'; fi
    ends_with $lba_out_of_range sg_unmap --force --lba=$last --num=2 "$disk"
  else
    echo 'UNMAP is not claimed'
    ends_with $invalid_opcode sg_unmap --force --lba=300 --num=1 "$disk"
    same 300 e
  fi
  same 301 e
}

# That blocks can be unmapped is said twice, and by the limits of the commands.
provisioning() {
  ways=$(sg_vpd --page=lbpv "$disk" | grep -c '(LBP\(U\|WS\|WS10\)): 1') || true
  case $(sg_readcap --long "$disk" | grep -o 'lbpme=.') in
    lbpme=1) [ "$ways" -gt 0 ] || fail 'READ CAPACITY claims what page B2h denies' ;;
    *) equal 'the number of ways to unmap' "$ways" 0 ;;
  esac
}

# The first descriptor begins where it was asked for.
get_lba_status() {
  sg_get_lba_status --lba=208 --brief "$disk" | tee status
  grep -q '^0x0*d0 ' status || fail 'no descriptor for block 208'
  ends_with $lba_out_of_range sg_get_lba_status --lba=$((last + 1)) "$disk"
}

# At the end, and past the end.
read_range() {
  read="sg_raw --request=512 --outfile=/dev/null $disk"
  $read 88 00 00 00 00 00 00 01 ff ff 00 00 00 01 00 00
  ends_with $lba_out_of_range $read 28 00 00 02 00 00 00 00 01 00
}

# Where the sum of block and length is 2^64.
read_wrapping() {
  ends_with $lba_out_of_range sg_raw --request=512 --outfile=/dev/null "$disk" \
    88 00 ff ff ff ff ff ff ff ff 00 00 00 01 00 00
}

# A vendor's code that nobody has.
unknown_code() {
  ends_with $invalid_opcode sg_raw "$disk" c1 00 00 00 00 00 00 00 00 00
}

[ $# -gt 0 ] || fail 'no group of commands is named'
for group; do
  echo "--- $group"
  $group
done
remove
nothing_left
