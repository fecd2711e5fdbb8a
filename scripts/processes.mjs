// Running other programs, for the scripts that test and verify.
import { spawn } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { createInterface } from 'node:readline'
import { root } from './setup.mjs'

/**
 * Runs a command in the project's folder, with the project's own programs on PATH.
 *
 * @param {string[]} command
 * @param {(line: string) => void} [onLine] gets the lines of stdout; without it both outputs are collected
 * @param {NodeJS.ProcessEnv} [environment] added to this process's own
 * @returns {Promise<{ status: number | NodeJS.Signals, output: string }>}
 */
export function run([program, ...args], onLine, environment = {}) {
  const child = spawn(program, args, {
    cwd: root,
    env: {
      ...process.env,
      PATH: `${join(root, 'node_modules/.bin')}${delimiter}${process.env.PATH}`,
      ...environment,
    },
    stdio: ['ignore', 'pipe', onLine === undefined ? 'pipe' : 'inherit'],
  })
  let output = ''
  if (onLine === undefined) {
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding('utf8').on('data', (text) => {
        output += text
      })
    }
  } else {
    createInterface({ input: child.stdout }).on('line', onLine)
  }
  return new Promise((resolve, reject) => {
    child.once('error', reject)
    child.once('close', (status, signal) => resolve({ status: status ?? signal, output }))
  })
}

/** @param {string} program @returns {boolean} whether a folder of PATH has it */
export function isOnPath(program) {
  return process.env.PATH.split(delimiter).some((folder) => {
    try {
      return readdirSync(folder).includes(program)
    } catch {
      return false
    }
  })
}
