# The command line tool under test, in a copy of the package that does not change while the guest runs.

hushring=$package/dist/cli/main.js
# What it says of itself.
output=$work/hushring.err

# Starts the command line that `serve` made, and takes the paths from its ready line.
start_hushring() {
  # One word an option is wanted.
  # shellcheck disable=SC2086
  "$node" "$hushring" serve tcmu --create disk0 $store --stats "$work/stats.json" $options \
    >"$work/hushring.out" 2>"$output" &
  process=$!
  eventually 30 eval 'ready || [ ! -e "/proc/$process/exe" ]'
  ready || { cat "$output" && fail 'hushring did not get ready'; }
  read -r _ _ uio disk <<READY
$(grep '^ready tcmu ' "$work/hushring.out")
READY
  uio=$(basename "$uio")
}
ready() {
  grep -q '^ready tcmu /dev/uio[0-9]* /dev/sd' "$work/hushring.out"
}

# The image `--memory SIZE` or `--null SIZE` is a store without a file.
serve() {
  image=$1
  case $image in
    -*) store=$(echo "$1" | tr = ' ') ;;
    *) store="--file $(realpath "$image")" ;;
  esac
  shift
  options=$*
  start_hushring
}

remove() {
  kill "$process"
  status=0
  wait "$process" || status=$?
  cat "$output"
  equal 'the exit status of hushring' "$status" 0
}

crash() {
  kill -9 "$process"
  wait "$process" || true
}

recover() {
  start_hushring
}

resize() {
  truncate -s "$1" "$image"
  kill -HUP "$process"
  eventually 10 has_size "$1"
}
# The size that the server gave the device.
has_size() {
  grep -qx "$1" "$core"/user_*/disk0/attrib/dev_size
}

second_server() {
  "$node" "$hushring" serve tcmu --uio "/dev/$uio" --memory 64MiB
}
