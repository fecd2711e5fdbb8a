# The peer: tcmu-runner with its qcow handler on a raw image. It has no handler for plain files in all distributions.
# Everything in configfs is done here, as targetcli would.

device=$core/user_0/disk0
target=$loopback/naa.5001405000000000
port_group=$target/tpgt_1

start_runner() {
  tcmu-runner --tcmu-log-dir "$work" >"$work/runner.out" 2>&1 &
  process=$!
}
serves() {
  find "/proc/$process/fd" -lname "/dev/$uio" | grep -q .
}

serve() {
  image=$(realpath "$1")
  timeout=30
  [ "${2:-}" != --cmd-timeout ] || timeout=$3
  start_runner
  # It must be listening when the device appears.
  sleep 1
  mkdir -p "$device"
  echo "dev_config=qcow/$image,dev_size=$(stat -c %s "$image"),hw_block_size=512,max_data_area_mb=64" >"$device/control"
  # Nobody waits for an answer over netlink, which would be for ever.
  echo 'nl_reply_supported=-1' >"$device/control"
  echo disk0-serial >"$device/wwn/vpd_unit_serial"
  echo "$timeout" >"$device/attrib/cmd_time_out"
  echo 1 >"$device/enable"
  for name in /sys/class/uio/uio*/name; do
    case $(cat "$name") in
      tcm-user/0/disk0/*) uio=$(basename "$(dirname "$name")") ;;
    esac
  done
  eventually 20 serves

  mkdir -p "$port_group/lun/lun_0"
  echo naa.5001405000000010 >"$port_group/nexus"
  ln -s "$device" "$port_group/lun/lun_0/disk0"
  scsi=/sys/bus/scsi/devices/$(cat "$port_group/address"):0
  eventually 10 test -e "$scsi/block"
  disk=/dev/$(ls "$scsi/block")
  eventually 10 test -b "$disk"
}

remove() {
  rm "$port_group/lun/lun_0/disk0"
  rmdir "$port_group/lun/lun_0" "$port_group" "$target"
  kill "$process"
  # Its exit status is no matter of ours.
  wait "$process" || true
  rmdir "$device" "${device%/*}"
}

crash() {
  kill -9 "$process"
  wait "$process" || true
}

recover() {
  start_runner
  eventually 20 serves
}

resize() {
  truncate -s "$1" "$image"
  echo "$1" >"$device/attrib/dev_size"
}

# A second tcmu-runner waits for the first to end; the kernel's own refusal is what there is to see.
second_server() {
  (exec 3<>"/dev/$uio") || return 1
}
