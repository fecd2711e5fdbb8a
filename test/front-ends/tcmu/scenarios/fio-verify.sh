# Random writes of mixed sizes, 32 in flight, are read back and compared by their checksums.
truncate -s 128M image
serve image "$@"
count_calls
fio --name=verify --filename="$disk" --ioengine=libaio --direct=1 --iodepth=32 --rw=randwrite --size=48M \
  --bssplit=512/20:4k/40:12k/10:64k/20:256k/10 --verify=crc32c --verify_fatal=1 --verify_backlog=512 --randseed=7 \
  --output=fio.txt || { cat fio.txt; fail 'fio'; }
tell_calls
remove
nothing_left
