# The disk that the kernel itself emulates: no TCMU, but nearly all SCSI commands. It shows that the scenarios about
# commands ask for no more than the standards do. Options are parameters of the module, such as fake_rw=1.

serve() {
  image=$1
  shift
  modprobe scsi_debug dev_size_mb=$(($(stat -c %s "$image") >> 20)) lbpu=1 lbpws=1 lbpws10=1 lbprz=1 delay=0 "$@"
  eventually 10 sh -c 'ls /sys/bus/pseudo/drivers/scsi_debug/adapter0/host*/target*/*/block'
  disk=/dev/$(ls /sys/bus/pseudo/drivers/scsi_debug/adapter0/host*/target*/*/block)
  eventually 10 test -b "$disk"
}

remove() {
  eventually 10 modprobe -r scsi_debug
}
