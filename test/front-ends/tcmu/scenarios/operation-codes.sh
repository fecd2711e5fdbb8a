# REPORT SUPPORTED OPERATION CODES tells the commands that work, and no other.
truncate -s 64M image
serve image
sg_opcodes "$disk"

# claimed OPERATION_CODE[,SERVICE_ACTION]
claimed() {
  sg_opcodes --opcode="$1" "$disk" >answer
  grep -q 'Command is supported' answer
}
for code in 0x00 0x03 0x12 0x1a 0x25 0x28 0x2a 0x2f 0x35 0x41 0x5a 0x88 0x8a 0x8f 0x91 0x93 0x9e,0x10 0x9e,0x12 0xa3,0xc; do
  claimed "$code" || { cat answer && fail "$code is not claimed"; }
done
for code in 0x02 0x48 0xc1; do
  if claimed "$code"; then cat answer && fail "$code is claimed"; fi
done

# One that a device may have or lack.
if claimed 0x42; then wanted=0; else wanted=$invalid_opcode; fi
ends_with "$wanted" sg_unmap --force --lba=0 --num=8 "$disk"
remove
nothing_left
