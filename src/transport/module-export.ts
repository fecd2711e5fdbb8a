import { isAbsolute } from 'node:path'
import { pathToFileURL } from 'node:url'
import { ERROR_CODES, HushringError, messageOf, optionRangeError, optionTypeError } from '../errors.ts'
import { type Device, isDevice } from '../handlers/device.ts'
import type { SuppressionPolicy } from '../notify/suppression.ts'
import { refuseUnknownOptions, stringOf } from '../options.ts'

/**
 * Something that a module exports, named rather than given, because a function cannot be sent to another thread. An
 * exported function is called with `options`, and what it returns, or resolves to, is what is meant.
 */
export interface ModuleExport {
  /** The module: a URL such as `new URL('./my-disk.js', import.meta.url)`, or an absolute path. */
  readonly module: URL | string
  /** The name of the export. Default `default`. */
  readonly name?: string
  /** Given to the exported function. What the structured clone algorithm copies; a SharedArrayBuffer is shared. */
  readonly options?: unknown
}

/** A {@link ModuleExport} in a form that can be sent to another thread. */
export interface ModuleAddress {
  /** A URL. */
  readonly module: string
  readonly name: string
  readonly options: unknown
}

/**
 * The URL of a module of ours: it is TypeScript in a clone and JavaScript in the package.
 *
 * @param name without the end, relative to the asking module
 * @param ownUrl `import.meta.url` of that
 */
export function siblingModule(name: string, ownUrl: string): URL {
  return new URL(`${name}${ownUrl.endsWith('.ts') ? '.ts' : '.js'}`, ownUrl)
}

/** True for what looks like a {@link ModuleExport}; {@link addressOf} checks the rest. */
export function isModuleExport(value: unknown): value is ModuleExport {
  return typeof value === 'object' && value !== null && 'module' in value
}

/**
 * Checks a module's export without loading it.
 *
 * @param optionName what the caller calls it
 * @throws TypeError or RangeError naming the option
 */
export function addressOf(optionName: string, moduleExport: ModuleExport): ModuleAddress {
  refuseUnknownOptions(moduleExport, ['module', 'name', 'options'], optionName)
  const { module, name = 'default', options } = moduleExport
  try {
    structuredClone(options)
  } catch (error) {
    throw optionTypeError(
      `${optionName}.options`,
      'something that can be copied to a thread',
      messageOf(error),
    )
  }
  return {
    module: moduleUrl(`${optionName}.module`, module),
    name: stringOf(`${optionName}.name`, name),
    options,
  }
}

function moduleUrl(optionName: string, module: URL | string): string {
  if (module instanceof URL) return module.href
  if (URL.canParse(stringOf(optionName, module))) return module
  // A relative path would be relative to this file, and a bare name would be looked up from here.
  if (!isAbsolute(module)) throw optionRangeError(optionName, 'a URL or an absolute path', module)
  return pathToFileURL(module).href
}

/** Loads a device. Throws `ERR_DEVICE_MODULE`, or the error with a code of ours with which a function refused its options. */
export async function importDevice(address: ModuleAddress): Promise<Device> {
  const device = await importExport(address)
  if (isDevice(device)) return device
  throw moduleError(address, 'is no device, such as blockDevice({ … }), and returns none')
}

/** Loads a suppression policy, which is what an exported function returns. Throws as {@link importDevice}. */
export async function importSuppression(address: ModuleAddress): Promise<SuppressionPolicy> {
  const policy = await importExport(address)
  if (typeof policy === 'function') return policy as SuppressionPolicy
  throw moduleError(address, 'returns no suppression policy, such as adaptive()')
}

async function importExport(address: ModuleAddress): Promise<unknown> {
  const { module, name, options } = address
  const exports: Readonly<Record<string, unknown>> = await import(module).catch((cause: unknown) => {
    throw new HushringError('ERR_DEVICE_MODULE', `cannot load ${module}: ${messageOf(cause)}`, { cause })
  })
  if (!Object.hasOwn(exports, name)) {
    throw new HushringError('ERR_DEVICE_MODULE', `${module} has no export \`${name}\``)
  }
  const exported = exports[name]
  if (typeof exported !== 'function') return exported
  try {
    return await exported(options)
  } catch (cause) {
    // That an option is wrong or a file cannot be opened is told as it is where the device is made without a module.
    if (((cause as NodeJS.ErrnoException | undefined)?.code ?? '') in ERROR_CODES) throw cause
    throw moduleError(address, `threw: ${messageOf(cause)}`, cause)
  }
}

function moduleError({ module, name }: ModuleAddress, what: string, cause?: unknown): HushringError {
  return new HushringError('ERR_DEVICE_MODULE', `the export \`${name}\` of ${module} ${what}`, { cause })
}
