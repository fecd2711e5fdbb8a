import assert from 'node:assert/strict'
import type { ExecutionContext } from 'ava'
import type { HushringError } from '../../src/errors.ts'
import type { Device } from '../../src/handlers/device.ts'
import { type ScsiResult, TcmuKernel, type TcmuKernelOptions } from '../../src/testing/index.ts'
import type { Abort, TcmuBackstore } from '../../src/transport/tcmu/backstore.ts'
import { type ServePortOptions, serve } from '../../src/transport/tcmu/serve.ts'

/** A device served to the kernel simulator. */
export interface TcmuBench {
  readonly kernel: TcmuKernel
  readonly backstore: TcmuBackstore
  readonly degraded: HushringError[]
  readonly aborts: Abort[]
}

/** Serves a device until the end of the test. The safety check must have found nothing then. */
export function serveOn(
  t: ExecutionContext,
  device: Device,
  options: Partial<ServePortOptions> = {},
  kernelOptions: TcmuKernelOptions = {},
): TcmuBench {
  const kernel = new TcmuKernel(kernelOptions)
  const backstore = serve({ port: kernel.openPort(), device, control: kernel.control, ...options })
  const bench: TcmuBench = { kernel, backstore, degraded: [], aborts: [] }
  backstore.on('degraded', (error) => bench.degraded.push(error))
  backstore.aborts.subscribe((abort) => bench.aborts.push(abort))
  t.teardown(async () => {
    await backstore.close()
    kernel.close()
    assert.equal(backstore.statsSnapshot().lostNotifications, 0, 'a wake-up was lost')
  })
  return bench
}

/** READ (10) and WRITE (10) of blocks of 512 bytes. */
export function transferCdb(operationCode: 0x28 | 0x2a, lba: number, blockCount: number): Buffer {
  const cdb = Buffer.alloc(10)
  cdb[0] = operationCode
  cdb.writeUInt32BE(lba, 2)
  cdb.writeUInt16BE(blockCount, 7)
  return cdb
}

export function read(kernel: TcmuKernel, lba: number, blockCount: number, tag?: number): Promise<ScsiResult> {
  return kernel.submit({
    cdb: transferCdb(0x28, lba, blockCount),
    dataInBytes: blockCount * 512,
    ...(tag !== undefined && { tag }),
  })
}

export function write(kernel: TcmuKernel, lba: number, data: Uint8Array, tag?: number): Promise<ScsiResult> {
  return kernel.submit({
    cdb: transferCdb(0x2a, lba, data.length / 512),
    dataOut: data,
    ...(tag !== undefined && { tag }),
  })
}

export const TEST_UNIT_READY = Buffer.alloc(6)

/** Sense key, code and qualifier of a result, as `5/24/00`; `GOOD`, or the status in hexadecimal. */
export function statusOf({ status, sense }: ScsiResult): string {
  const hex = (byte: number): string => byte.toString(16).toUpperCase().padStart(2, '0')
  if (status === 0) return 'GOOD'
  if (status !== 2) return hex(status)
  return `${(sense[2]! & 0xf).toString(16).toUpperCase()}/${hex(sense[12]!)}/${hex(sense[13]!)}`
}
