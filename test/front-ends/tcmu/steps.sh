# The vocabulary of the scenarios. Beside it a scenario has that of its device server (servers/):
#
#   serve IMAGE [OPTION…]   starts the server and waits until the disk is there; sets
#                             $uio     the name of the UIO device, such as uio0
#                             $disk    the path of the SCSI disk, such as /dev/sda
#                             $process the id of the server
#                           options of both servers: --cmd-timeout SECONDS
#   remove                  takes the disk away and ends the server, in good order
#   crash                   kills the server; the disk stays and waits for it
#   recover                 starts the server anew on what a crash left
#   resize BYTES            changes the size of image and device; the initiator does not know yet
#   second_server           tries to serve the same device once more

core=/sys/kernel/config/target/core
loopback=/sys/kernel/config/target/loopback
tracing=/sys/kernel/tracing
# Where Node and the package under test are.
node=$(cat /run/share/node)
package=/run/package

# Ends the scenario.
fail() {
  echo "failed: $*" >&2
  exit 1
}

# equal WHAT ACTUAL EXPECTED
equal() {
  [ "$2" = "$3" ] || fail "$1 is '$2' and not '$3'"
}

# ends_with STATUS COMMAND…: the command must fail, and in that way.
ends_with() {
  expected=$1
  shift
  status=0
  "$@" || status=$?
  equal "the status of $*" "$status" "$expected"
}
# Statuses of sg3-utils.
illegal_request=5
invalid_opcode=9
miscompare=14
lba_out_of_range=22

# eventually SECONDS COMMAND…: waits until the command succeeds.
eventually() {
  deadline=$(($(milliseconds) + $1 * 1000))
  until (shift && "$@") >/dev/null 2>&1; do
    [ "$(milliseconds)" -lt "$deadline" ] || fail "not within so many seconds: $*"
    sleep 0.1
  done
}

# figure NAME VALUE UNIT: a number for the report.
figure() {
  echo "figure $1 $2 $3"
}

milliseconds() {
  date +%s%3N
}

md5() {
  md5sum | cut -d ' ' -f 1
}

# bytes FIRST-[LAST]: some of the bytes on stdin, counted from 1, in hexadecimal and one a line.
bytes() {
  od -A n -v -t x1 -w1 | tr -d ' ' | sed -n "$(echo "$1" | sed 's/-$/-$/; s/-/,/')p"
}

# What the caching mode page says, in the words of Linux. Its byte 2 follows a header of 8 bytes.
cached() {
  if [ $((0x$(sg_modes --page=8 --dbd --raw "$disk" | bytes 11-11) & 4)) = 4 ]; then
    echo 'write back'
  else
    echo 'write through'
  fi
}

# The name of the directory in /sys/block.
block_name() {
  basename "$disk"
}

# read_block LBA [OPTION…] and write_block LBA <DATA move one block of 512 bytes past the page cache.
read_block() {
  dd if="$disk" bs=512 skip="$1" count=1 iflag=direct status=none
}
write_block() {
  dd of="$disk" bs=512 seek="$1" count=1 oflag=direct iflag=fullblock status=none
}

# A block that is filled with one character.
block_of() {
  head -c 512 /dev/zero | tr '\0' "$1"
}

# --- What the kernel and the server say to each other, counted by probes on the kernel's functions.

counted='queue_cmd_ring tcmu_irqcontrol uio_read tcmu_handle_completions'
# Starts at 0.
count_calls() {
  echo >"$tracing/kprobe_events"
  for function in $counted; do
    echo "p:$function $function" >>"$tracing/kprobe_events"
  done
  # Only the number of hits is wanted, not a record of each. Names of tasks are recorded by a probe of the scheduler, whose
  # switching on and off hangs an emulated machine of two CPUs now and then (QEMU 7.2).
  echo 0 >"$tracing/tracing_on"
  echo 0 >"$tracing/options/record-cmd"
  echo 1 >"$tracing/events/kprobes/enable"
}
# calls FUNCTION
calls() {
  awk -v name="$1" '$1 == name { print $2 }' "$tracing/kprobe_profile"
}
# Prints what was counted and stops counting.
tell_calls() {
  figure commands "$(calls queue_cmd_ring)" ''
  figure doorbells "$(calls tcmu_irqcontrol)" ''
  figure uio-reads "$(calls uio_read)" ''
  figure drains "$(calls tcmu_handle_completions)" ''
  end_count
}
end_count() {
  echo 0 >"$tracing/events/kprobes/enable"
  echo >"$tracing/kprobe_events"
}

# --- The control plane.

# Succeeds when no device, no export and no file of them is left in the guest.
nothing_left() {
  for pattern in "$core/user_*" "$loopback/naa.*" "/sys/class/uio/*" "/dev/uio*" "/sys/block/sd*" "/dev/sd*"; do
    # The pattern is to be expanded.
    # shellcheck disable=SC2086
    set -- $pattern
    if [ -e "$1" ]; then
      echo "left behind: $*"
      return 1
    fi
  done
}
