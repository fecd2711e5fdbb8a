# A device of a few lines over the library's API, which can stall: stalling.mjs. `serve [deaf]`
. "$guest/servers/hushring.sh"

serve() {
  "$node" "$guest/servers/stalling.mjs" "$package/dist/index.js" "$@" >"$output" 2>&1 &
  process=$!
  eventually 30 eval 'grep -q "^ready " "$output" || [ ! -e "/proc/$process/exe" ]'
  grep -q '^ready ' "$output" || { cat "$output" && fail 'the device did not get ready'; }
  disk=$(sed -n 's/^ready //p' "$output")
}
