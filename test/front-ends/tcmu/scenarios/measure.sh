# What a device costs, in a guest whose clock counts instructions: one a nanosecond. The arguments are options of the
# server; before them may stand a store without a file, such as --memory=64MiB, if the server has one. Of each workload it
# tells
#
#   machine          instructions per I/O of the whole machine, with the client and the initiator's kernel
#   server           instructions per I/O on the account of the server, with those of its system calls
#   commands, doorbells, uio-reads   calls between kernel and server; the last two per 1,000 commands
head -c 64M /dev/zero >image
case ${1:-} in
  --memory=* | --null=*) ;;
  *) set -- image "$@" ;;
esac
serve "$@"

# workload READ_OR_WRITE BLOCK_SIZE DEPTH COUNT: prints the milliseconds that it took.
workload() {
  fio --name=load --filename="$disk" --ioengine=libaio --direct=1 --rw="$1" --bs="$2" --iodepth="$3" --number_ios="$4" \
    --norandommap --randseed=7 --minimal --output=fio.txt
  # Runtimes of reads and of writes.
  awk -F ';' '{ print $9 + $50 }' fio.txt
}
# Time on the CPU of all threads, in nanoseconds. None of them may end meanwhile.
server_nanoseconds() {
  cat "/proc/$process/task"/*/schedstat | awk '{ sum += $1 } END { printf "%.0f", sum }'
}
# measure NAME READ_OR_WRITE BLOCK_SIZE DEPTH COUNT
measure() {
  name=$1
  count=$5
  shift
  before=$(server_nanoseconds)
  milliseconds=$(workload "$@")
  after=$(server_nanoseconds)
  figure "$name.machine" $((milliseconds * 1000000 / count)) 'instructions per I/O'
  figure "$name.server" $(((after - before) / count)) 'instructions per I/O'
  # The probes cost instructions: what is counted is a run of its own.
  count_calls
  workload "$1" "$2" "$3" $((count / 4)) >/dev/null
  commands=$(calls queue_cmd_ring)
  figure "$name.commands" "$commands" ''
  figure "$name.doorbells" $(($(calls tcmu_irqcontrol) * 1000 / commands)) 'per 1,000 commands'
  figure "$name.uio-reads" $(($(calls uio_read) * 1000 / commands)) 'per 1,000 commands'
  end_count
}

# What a compiler at run time makes fast is fast before the first figure.
workload randrw 4k 32 16000 >/dev/null
workload randrw 4k 32 16000 >/dev/null
workload randrw 4k 1 16000 >/dev/null

# fio ends when it has moved as many bytes as the disk has: no count may be larger than that.
measure randread-4k-qd1 randread 4k 1 8000
measure randread-4k-qd32 randread 4k 32 16000
measure randwrite-4k-qd1 randwrite 4k 1 8000
measure randwrite-4k-qd32 randwrite 4k 32 16000
measure read-64k-qd8 read 64k 8 1000
remove
nothing_left
