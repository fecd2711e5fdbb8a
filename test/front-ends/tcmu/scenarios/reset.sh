# The initiator gives up on a command that the handler sits on. The argument tells how: `lun` by LUN RESET, `task` by
# ABORT TASK, which Linux sends when a command takes too long. The handler hears of it at once, so the command ends and the
# initiator need not wait. After ABORT TASK it sends the command again.
how=$1
shift
# More arguments go to the server. It stalls a read of the last block after a write of it.
serve "$@"
last=$((64 * 2048 - 1))
block_of a | write_block $last
# Waiting for the stalled command is what would take time.
patience=8000

case $how in
  lun) echo 60 >"/sys/block/$(block_name)/device/timeout" ;;
  task) echo 2 >"/sys/block/$(block_name)/device/timeout" ;;
esac
start=$(milliseconds)
read_block $last >answer &
reader=$!
eventually 10 grep -q '^stalled' "$output"
if [ "$how" = lun ]; then
  start=$(milliseconds)
  sg_reset --device "$disk"
  figure reset $(($(milliseconds) - start)) ms
fi
wait "$reader" || { cat "$output" && fail 'the read'; }
took=$(($(milliseconds) - start))
figure read "$took" ms
cat "$output"
[ "$took" -lt $patience ] || fail "the initiator waited $took ms"

case $how in
  # Linux 6.1 takes a read that a reset ended for done, without its data (tcm_loop_release_cmd), so they are not looked at.
  lun) grep -qx 'aborts lun-reset 1' "$output" || fail 'LUN RESET did not arrive' ;;
  task)
    grep -qx 'aborts abort-task 1' "$output" || fail 'ABORT TASK did not arrive'
    equal 'the last block' "$(md5 <answer)" "$(block_of a | md5)"
    ;;
esac
equal 'the last block, read again' "$(read_block $last | md5)" "$(block_of a | md5)"
grep -q '^aborted after ' "$output" || fail 'the handler was not aborted'
remove
nothing_left
