import { setTimeout as sleep } from 'node:timers/promises'
import { getSystemErrorName } from 'node:util'
import type { NativeTcmuPort } from '../../src/native.ts'
import { TcmuKernel, type TcmuKernelOptions } from '../../src/testing/index.ts'
import { KiB, MiB } from '../../src/units.ts'
import type { Command, Machine, MachineOptions, Result } from '../front-ends/tcmu/agreement/script.mjs'

const BUSY = 0x08
const TASK_SET_FULL = 0x28
const TASK_ABORTED = 0x40
/** As much of the sense data as the target core's tracepoint tells. */
const SENSE_BYTES = 18
/** What the driver logs of rings and kept buffers. */
const TOLD = /ring (is )?broken|free_kept_buf/

/** The machine of test/front-ends/tcmu/agreement/script.mjs with the simulated kernel, and an initiator like Linux. */
export class SimulatedMachine implements Machine {
  port: NativeTcmuPort
  /** Nothing here takes time. */
  readonly limitMs = 3000
  readonly #kernel: TcmuKernel
  /** Commands in the kernel. What is to be sent again is not among them. */
  #inFlightCount = 0
  /** Fulfilled when nothing is in flight. */
  #idle: Promise<void> | undefined
  #closed = false

  /** @param differences options of the kernel that the real one does not have so */
  constructor(options: MachineOptions, differences: TcmuKernelOptions = {}) {
    const blockBytes = options.pagesPerBlock * 4 * KiB
    this.#kernel = new TcmuKernel({
      ringBytes: MiB,
      // The real area may end in part of a block, which is never used.
      dataAreaBytes: Math.floor((options.dataAreaMegabytes * MiB) / blockBytes) * blockBytes,
      blockBytes,
      commandTimeoutMs: options.commandTimeoutSeconds * 1000,
      queueFullTimeoutMs:
        options.queueFullTimeoutSeconds === -1 ? -1 : options.queueFullTimeoutSeconds * 1000,
      ...differences,
    })
    this.#kernel.notifyOfTaskManagement(options.taskManagement)
    this.port = this.#kernel.openPort()
  }

  get log(): readonly string[] {
    return this.#kernel.log.filter((line) => TOLD.test(line))
  }

  async send(command: Command): Promise<Result> {
    const statuses: number[] = []
    for (;;) {
      this.#inFlightCount++
      const { status, sense, dataIn, residualBytes } = await this.#kernel.submit(command)
      this.#inFlightCount--
      // The kernel tells nothing to the initiator of an aborted command.
      if (status === TASK_ABORTED) return { statuses: [], sense, dataIn, residualBytes }
      if (statuses.at(-1) !== status) statuses.push(status)
      if (status !== BUSY && status !== TASK_SET_FULL) {
        return { statuses, sense: sense.subarray(0, SENSE_BYTES), dataIn, residualBytes }
      }
      this.#idle ??= this.#whenIdle()
      await this.#idle
      if (this.#closed) return await new Promise(() => {})
    }
  }

  async #whenIdle(): Promise<void> {
    do await sleep(1)
    while (this.#inFlightCount > 0 && !this.#closed)
    this.#idle = undefined
  }

  async sendAndAbort(command: Command): Promise<void> {
    const ended = this.#kernel.submit(command)
    // The server must have taken it, and what was sent after it.
    await this.settle()
    await this.#kernel.abortTask(command.tag)
    await ended
  }

  async lunReset(): Promise<void> {
    await this.#kernel.lunReset()
  }

  openTwice(): string {
    try {
      this.#kernel.openPort().close()
      return 'ok'
    } catch (error) {
      return (error as NodeJS.ErrnoException).code ?? 'error'
    }
  }

  reopen(): NativeTcmuPort {
    this.port.close()
    this.port = this.#kernel.openPort()
    return this.port
  }

  configure(file: string, value: string): string {
    switch (file) {
      case 'action/reset_ring':
        if (value !== '1' && value !== '2') return 'EINVAL'
        this.#kernel.resetRing(Number(value))
        return 'ok'
      case 'action/block_dev':
        if (value !== '0' && value !== '1') return 'EINVAL'
        if (value === '1') this.#kernel.block()
        else this.#kernel.unblock()
        return 'ok'
      case 'attrib/tmr_notification':
        if (value !== '0' && value !== '1') return 'EINVAL'
        this.#kernel.notifyOfTaskManagement(value === '1')
        return 'ok'
      case 'action/free_kept_buf': {
        const errno = /^\d+$/.test(value) ? this.#kernel.freeKeptBuffer(Number(value)) : 22
        return errno === 0 ? 'ok' : getSystemErrorName(-errno)
      }
      default:
        throw new Error(`no file ${file}`)
    }
  }

  async elapse(ms: number): Promise<void> {
    this.#kernel.advance(ms)
  }

  async settle(): Promise<void> {
    await sleep(20)
  }

  close(): void {
    this.#closed = true
    this.port.close()
    this.#kernel.close()
  }
}
