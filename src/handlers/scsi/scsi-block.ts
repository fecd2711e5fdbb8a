import type { BlockDevice, ScsiDevice } from '../device.ts'
import { scsiDevice } from '../scsi-device.ts'
import { diskCommands } from './disk-commands.ts'
import { DiskUnit } from './disk-unit.ts'
import { provisioningOf } from './provisioning.ts'
import { RangeLock } from './range-lock.ts'

/**
 * A disk as SCSI direct access block device (SPC-4, SBC-3). It checks what an initiator asks before the disk sees
 * it, in the order that conformance tests expect: operation code, reserved bits, block address, length, write
 * protection. What is wrong in a command fails that command alone, with sense data that points at the field.
 *
 * What the disk can do decides what is offered: without `flush` there is no write cache, without `discard` no
 * UNMAP, and only with `writeZeroes` as well do unmapped blocks read as zeros. The size is looked up with each
 * command; whoever resizes the disk raises the unit attention.
 *
 * COMPARE AND WRITE is indivisible for the commands of every logical unit of this device, not for what reaches the
 * same disk on another way.
 */
export function scsiBlock(disk: BlockDevice): ScsiDevice {
  const commands = diskCommands(provisioningOf(disk.abilities))
  const ranges = new RangeLock()
  return scsiDevice({
    name: 'scsi-block',
    connect: (identity) => {
      const unit = new DiskUnit(disk, identity, commands, ranges)
      return (request) => unit.answer(request)
    },
    close: () => disk.close(),
  })
}
