# A device has one server. A second one is refused, says why, and does not disturb the first.
truncate -s 64M image
serve image
block_of a | write_block 3

ends_with 1 second_server 2>refusal
cat refusal
grep -qi 'busy\|served by another' refusal || fail 'the refusal does not say why'

equal 'block 3' "$(read_block 3 | md5)" "$(block_of a | md5)"
remove
nothing_left
