import { access } from 'node:fs/promises'
import { resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { InvalidArgumentError } from 'commander'
import { type Device, isDevice } from '../handlers/device.ts'
import { fileError } from './failure.ts'

/** The device to serve: a disk over a store, an entropy source, or the module at a path. */
export type DeviceChoice =
  | { readonly kind: 'blk' }
  | { readonly kind: 'rng' }
  | { readonly kind: 'module'; readonly path: string }

/**
 * Reads the name of a device, or the path of a module.
 *
 * @throws InvalidArgumentError with the reason
 */
export function parseDevice(text: string): DeviceChoice {
  if (text === 'blk' || text === 'rng') return { kind: text }
  if (/[/.]/.test(text)) return { kind: 'module', path: text }
  throw new InvalidArgumentError('Use blk, rng, or the path of a module such as ./my-device.js.')
}

/**
 * Loads a device from a module: its default export, or what that returns when it is a function.
 *
 * @param path relative to the working folder
 */
export async function loadDevice(path: string): Promise<Device> {
  const file = resolve(path)
  // An import that fails does not tell whether this file is missing or one that it imports.
  await access(file).catch((error: unknown) => {
    throw fileError(`cannot load the device ${path}`, error)
  })
  const device = await importDefault(file).catch((cause: Error) => {
    throw new Error(`cannot load the device ${path}: ${cause.message}`, { cause })
  })
  if (isDevice(device)) return device
  throw new Error(
    `${path} exports no device: its default export must be a device, such as blockDevice({ … }), or return one`,
  )
}

async function importDefault(file: string): Promise<unknown> {
  const module: { default?: unknown } = await import(pathToFileURL(file).href)
  return typeof module.default === 'function' ? await module.default() : module.default
}
