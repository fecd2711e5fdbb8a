# Plays the scripts of agreement/ on the real driver; the arguments choose some. The trace of each is a line
# `trace JSON`.
[ ! -e "$loopback" ] || rmdir "$loopback"
[ ! -e /sys/module/tcm_loop ] || modprobe -r tcm_loop
# A ring takes more commands than an initiator sends by default.
modprobe tcm_loop can_queue=4096 cmd_per_lun=4096
# Commands that are sent on one CPU arrive in order.
taskset 1 "$node" "$guest/agreement/real.mjs" "$package/dist" "$@"
nothing_left
