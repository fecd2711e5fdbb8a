import type { Observable } from 'rxjs'
import { attach } from './attach.ts'
import { type AvailabilityOptions, checkAvailability } from './availability.ts'
import { create } from './create.ts'
import {
  type DeviceChange,
  type DiscoveredDevice,
  type DiscoverOptions,
  discover,
  type WatchDevicesOptions,
  watchDevices,
} from './discovery.ts'
import { KERNEL_PATHS } from './kernel-files.ts'
import { listenNetlink, type NetlinkEvent, type NetlinkOptions } from './netlink.ts'
import { serve } from './serve.ts'

export type { AttachOptions } from './attach.ts'
export type { AvailabilityOptions } from './availability.ts'
export type { Abort, AbortedCommand, TcmuBackstore, TcmuControl, TcmuEvents, TcmuStats } from './backstore.ts'
export type { CreateOptions } from './create.ts'
export type {
  DeviceChange,
  DiscoveredDevice,
  DiscoverOptions,
  TcmuName,
  WatchDevicesOptions,
} from './discovery.ts'
export type { KernelFile, KernelFiles, KernelPaths } from './kernel-files.ts'
export type { DeviceEvent, NetlinkEvent, NetlinkOptions, OverrunEvent } from './netlink.ts'
export type { TcmuServeOptions } from './options.ts'
export type { ServePortOptions } from './serve.ts'

/** Serves devices as logical units of the kernel's SCSI target (target_core_user); see docs/tcmu.md. */
export const tcmu: {
  /**
   * Makes a TCMU device, serves it and exports it.
   *
   * @param options the name, the device and how it is served
   * @returns once initiators can use it
   */
  create: typeof create
  /**
   * Serves a TCMU device that exists.
   *
   * @param options the UIO device, the device and how it is served
   * @returns once the ring was looked at
   */
  attach: typeof attach
  /**
   * Serves a port that is open, such as that of the kernel simulator.
   *
   * @param options the port, the device and how it is served
   */
  serve: typeof serve
  /** The TCMU devices of this machine whose subtype is ours, or another. */
  discover(options?: DiscoverOptions): Promise<readonly DiscoveredDevice[]>
  /** The same as they come and go, those that are there already first. */
  watchDevices(options?: WatchDevicesOptions): Observable<DeviceChange>
  /** The kernel's own events about TCMU devices, for a program that answers them; an opt-in (docs/tcmu.md, Netlink). */
  listenNetlink(options?: NetlinkOptions): Observable<NetlinkEvent>
  /** Rejects with `ERR_TCMU_UNAVAILABLE`, and a sentence for each thing that is missing, unless devices can be made here. */
  checkAvailability(options?: AvailabilityOptions): Promise<void>
} = {
  create,
  attach,
  serve,
  discover: (options) => discover(KERNEL_PATHS, options),
  watchDevices: (options) => watchDevices(KERNEL_PATHS, options),
  listenNetlink: (options) => listenNetlink(KERNEL_PATHS, options),
  checkAvailability: (options) => checkAvailability(KERNEL_PATHS, options),
}
