import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { HushringError } from '../../errors.ts'
import { booleanOf, functionOf, refuseUnknownOptions } from '../../options.ts'
import { errnoOf, type KernelPaths, kernelFiles } from './kernel-files.ts'

/** Options of {@link checkAvailability}. */
export interface AvailabilityOptions {
  /** Whether devices will be exported through tcm_loop. Default true. */
  readonly loopback?: boolean
  /** Loads the modules first (modprobe), which changes the machine. Default false. */
  readonly loadModules?: boolean
  /** Loads kernel modules by name, all or none. Default: runs `modprobe -a`. */
  readonly modprobe?: (modules: readonly string[]) => Promise<void>
}

const modprobeByProgram = async (modules: readonly string[]): Promise<void> => {
  await promisify(execFile)('modprobe', ['-a', '--', ...modules])
}

/**
 * Rejects with `ERR_TCMU_UNAVAILABLE` unless TCMU devices can be made here. The message says everything that is
 * missing and the command that helps. Throws a `TypeError` naming a wrong option.
 */
export async function checkAvailability(
  paths: KernelPaths,
  options: AvailabilityOptions = {},
): Promise<void> {
  refuseUnknownOptions(options, ['loopback', 'loadModules', 'modprobe'])
  const loopback = booleanOf('loopback', options.loopback ?? true)
  const modprobe = functionOf('modprobe', options.modprobe ?? modprobeByProgram)
  if (booleanOf('loadModules', options.loadModules ?? false)) {
    // sd_mod makes disks of what tcm_loop exports.
    await load(modprobe, ['target_core_user', ...(loopback ? ['tcm_loop', 'sd_mod'] : [])])
  }
  const missing = await missingParts(paths, loopback)
  if (missing.length > 0) throw new HushringError('ERR_TCMU_UNAVAILABLE', `no TCMU: ${missing.join('; ')}`)
}

async function load(
  modprobe: (modules: readonly string[]) => Promise<void>,
  modules: readonly string[],
): Promise<void> {
  try {
    await modprobe(modules)
  } catch (cause) {
    const { stderr, message } = cause as Error & { stderr?: string }
    throw new HushringError(
      'ERR_TCMU_UNAVAILABLE',
      `no TCMU: cannot load the modules ${modules.join(', ')}: ${stderr?.trim() || message}`,
      { cause },
    )
  }
}

/** A sentence for each thing that is missing. */
async function missingParts(paths: KernelPaths, loopback: boolean): Promise<readonly string[]> {
  const files = kernelFiles(paths)
  const exists = (path: string): Promise<boolean> =>
    files.inode(path).then(
      () => true,
      (error: unknown) => {
        // What may not be looked at may be there; what is said of writing to it tells then.
        const errno = errnoOf(error) ?? ''
        if (['ENOENT', 'ENOTDIR', 'EACCES'].includes(errno)) return errno === 'EACCES'
        throw error
      },
    )
  const core = `${paths.configfs}/target/core`
  const missing: string[] = []
  const hasModule = await exists(`${paths.sysfs}/module/target_core_user`)
  if (!hasModule) missing.push('target_core_user is not loaded: run `modprobe target_core_user` as root')
  if (!(await exists(core))) {
    // Modules are all there is to see without configfs: with them loaded, the mount is what lacks.
    if (hasModule || !(await exists(paths.configfs))) {
      missing.push(
        `configfs is not mounted: run \`mount -t configfs none ${paths.configfs}\` as root (modprobe configfs)`,
      )
    }
  } else {
    const errno = await files.expectWritable(core).then(() => undefined, errnoOf)
    if (errno !== undefined) missing.push(`${core} cannot be written (${errno}): run this as root`)
  }
  const hasLoopback =
    !loopback ||
    (await exists(`${paths.sysfs}/module/tcm_loop`)) ||
    // Built into the kernel it has no folder among the modules.
    (await exists(`${paths.configfs}/target/loopback`))
  if (!hasLoopback) missing.push('tcm_loop is not loaded: run `modprobe tcm_loop` as root')
  return missing
}
