# A device that is taken away leaves nothing behind, and can come back.
nothing_left
truncate -s 64M image
for round in 1 2; do
  serve image
  if nothing_left; then fail 'no trace of a device: the search for traces is no good'; fi
  block_of a | write_block $round
  remove
  nothing_left
done
equal 'what is in the image' "$(dd if=image bs=512 skip=1 count=2 status=none | md5)" \
  "$({ block_of a && block_of a; } | md5)"
