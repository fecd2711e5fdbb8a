# A command that the server sits on for longer than the kernel waits fails for the initiator, and for it alone. The answer
# comes after all, and does no harm: the ring goes on as before.
truncate -s 64M image
serve image --cmd-timeout 2
block_of a | write_block 7

kill -STOP "$process"
start=$(milliseconds)
ends_with 1 read_block 7 >/dev/null
took=$(($(milliseconds) - start))
figure expiry "$took" ms
[ "$took" -ge 2000 ] && [ "$took" -lt 10000 ] || fail "a command expired after $took ms"
kill -CONT "$process"

# More than the ring has in flight, so that a slot or an id that was lost or used twice would show.
equal 'block 7' "$(read_block 7 | md5)" "$(block_of a | md5)"
fio --name=after --filename="$disk" --ioengine=libaio --direct=1 --iodepth=32 --rw=randwrite --bs=4k --size=2M \
  --verify=crc32c --verify_fatal=1 --output=fio.txt || { cat fio.txt && fail 'fio'; }
remove
nothing_left
