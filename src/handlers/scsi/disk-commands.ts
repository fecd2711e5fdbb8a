import { getLbaStatus, readCapacity10, readCapacity16 } from './capacity.ts'
import { CDB_6, CDB_10, CDB_12, CDB_16 } from './cdb.ts'
import { CommandTable, command } from './command.ts'
import { compareAndWrite } from './compare-and-write.ts'
import { inquiry } from './inquiry.ts'
import { modeSelect6, modeSelect10, modeSense6, modeSense10 } from './mode-parameters.ts'
import { reportOperationCodes, reportTaskManagementFunctions } from './operation-codes.ts'
import { type Provisioning, unmap, writeSame } from './provisioning.ts'
import { prefetch, read, synchronizeCache, write } from './read-write.ts'
import { nothing, reportLuns, requestSense, startStopUnit } from './unit-commands.ts'
import { verify, writeAndVerify } from './verify.ts'

/**
 * Byte 1 of the commands that move blocks: RARC of a read and FUA_NV are hints that may be ignored, RELADR is
 * obsolete. The upper three bits are RDPROTECT or WRPROTECT and, without protection information, must be 0.
 */
const READ_HINTS = { ignoredBits: 0x07 }
const WRITE_HINTS = { ignoredBits: 0x03 }
const RELATIVE_ADDRESS = { ignoredBits: 0x01 }
/** SYNC_NV and RELADR, and the LUN. */
const CACHE_HINTS = { ignoredBits: 0xe5 }
const NONE = { ignoredBits: 0x00 }
const ACTION = { hasServiceAction: true }
const PASSES = { passesAttention: true }

const LBA_64 = 'ffffffffffffffff'

/**
 * Every command of a disk, once: what is not in this table is not supported, and REPORT SUPPORTED OPERATION CODES
 * reads it too. Bits that are 0 in a row must be 0 in a CDB.
 */
export function diskCommands({ canUnmap, unmapsToZeros }: Provisioning): CommandTable {
  // DPO, which nothing comes of here, and FUA; BYTCHK; UNMAP and NDOB.
  const sameFlags10 = unmapsToZeros ? '08' : '00'
  const sameFlags16 = unmapsToZeros ? '09' : '01'
  return new CommandTable([
    command('TEST UNIT READY', '00 00 00 00 00 00', nothing),
    command('REQUEST SENSE', '03 01 0000 ff 00', requestSense, PASSES),
    command('READ (6)', '08 1f ffff ff 00', read(CDB_6)),
    command('WRITE (6)', '0a 1f ffff ff 00', write(CDB_6)),
    command('INQUIRY', '12 01 ff ffff 00', inquiry, PASSES),
    command('MODE SELECT (6)', '15 10 0000 ff 00', modeSelect6),
    command('MODE SENSE (6)', '1a 08 ff ff ff 00', modeSense6),
    command('START STOP UNIT', '1b 01 0000 07 00', startStopUnit),
    command('SEND DIAGNOSTIC', '1d 17 00 0000 00', nothing, NONE),
    command('PREVENT ALLOW MEDIUM REMOVAL', '1e 00 0000 03 00', nothing),
    command('READ CAPACITY (10)', '25 00 00000000 0000 00 00', readCapacity10),
    command('READ (10)', '28 18 ffffffff 3f ffff 00', read(CDB_10), READ_HINTS),
    command('WRITE (10)', '2a 18 ffffffff 3f ffff 00', write(CDB_10), WRITE_HINTS),
    command('WRITE AND VERIFY (10)', '2e 16 ffffffff 3f ffff 00', writeAndVerify(CDB_10), RELATIVE_ADDRESS),
    command('VERIFY (10)', '2f 16 ffffffff 3f ffff 00', verify(CDB_10), RELATIVE_ADDRESS),
    command('PRE-FETCH (10)', '34 02 ffffffff 3f ffff 00', prefetch(CDB_10), CACHE_HINTS),
    command('SYNCHRONIZE CACHE (10)', '35 02 ffffffff 3f ffff 00', synchronizeCache(CDB_10), CACHE_HINTS),
    command('WRITE SAME (10)', `41 ${sameFlags10} ffffffff 3f ffff 00`, writeSame(CDB_10), NONE),
    ...(canUnmap ? [command('UNMAP', '42 00 00000000 3f ffff 00', unmap)] : []),
    command('MODE SELECT (10)', '55 10 0000000000 ffff 00', modeSelect10),
    command('MODE SENSE (10)', '5a 18 ff ff 000000 ffff 00', modeSense10),
    command('READ (16)', `88 18 ${LBA_64} ffffffff 3f 00`, read(CDB_16), READ_HINTS),
    command('COMPARE AND WRITE', `89 18 ${LBA_64} 000000 ff 3f 00`, compareAndWrite, WRITE_HINTS),
    command('WRITE (16)', `8a 18 ${LBA_64} ffffffff 3f 00`, write(CDB_16), WRITE_HINTS),
    command(
      'WRITE AND VERIFY (16)',
      `8e 16 ${LBA_64} ffffffff 3f 00`,
      writeAndVerify(CDB_16),
      RELATIVE_ADDRESS,
    ),
    command('VERIFY (16)', `8f 16 ${LBA_64} ffffffff 3f 00`, verify(CDB_16), RELATIVE_ADDRESS),
    command('PRE-FETCH (16)', `90 02 ${LBA_64} ffffffff 3f 00`, prefetch(CDB_16), CACHE_HINTS),
    command(
      'SYNCHRONIZE CACHE (16)',
      `91 02 ${LBA_64} ffffffff 3f 00`,
      synchronizeCache(CDB_16),
      CACHE_HINTS,
    ),
    command('WRITE SAME (16)', `93 ${sameFlags16} ${LBA_64} ffffffff 3f 00`, writeSame(CDB_16), NONE),
    command('READ CAPACITY (16)', '9e 10 0000000000000000 ffffffff 00 00', readCapacity16, ACTION),
    command('GET LBA STATUS', `9e 12 ${LBA_64} ffffffff 00 00`, getLbaStatus, ACTION),
    command('REPORT LUNS', 'a0 00 ff 000000 ffffffff 00 00', reportLuns, PASSES),
    command(
      'REPORT SUPPORTED OPERATION CODES',
      'a3 0c 87 ff ffff ffffffff 00 00',
      reportOperationCodes,
      ACTION,
    ),
    command(
      'REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS',
      'a3 0d 80 000000 ffffffff 00 00',
      reportTaskManagementFunctions,
      ACTION,
    ),
    command('READ (12)', 'a8 18 ffffffff ffffffff 3f 00', read(CDB_12), READ_HINTS),
    command('WRITE (12)', 'aa 18 ffffffff ffffffff 3f 00', write(CDB_12), WRITE_HINTS),
    command(
      'WRITE AND VERIFY (12)',
      'ae 16 ffffffff ffffffff 3f 00',
      writeAndVerify(CDB_12),
      RELATIVE_ADDRESS,
    ),
    command('VERIFY (12)', 'af 16 ffffffff ffffffff 3f 00', verify(CDB_12), RELATIVE_ADDRESS),
  ])
}
