import { type ErrorCode, optionRangeError, optionTypeError } from './errors.ts'

/**
 * Throws a `TypeError` unless `options` is an object that holds nothing but `known` names. A misspelt option would
 * otherwise be ignored in silence.
 *
 * @param options what the caller gave
 * @param known every name that is allowed
 * @param prefix where the object stands in a larger one, such as `queues`
 */
export function refuseUnknownOptions(options: unknown, known: readonly string[], prefix = ''): void {
  if (typeof options !== 'object' || options === null) {
    throw optionTypeError(prefix === '' ? 'options' : prefix, 'an object', options)
  }
  const unknown = Object.keys(options).find((name) => !known.includes(name))
  if (unknown === undefined) return
  const path = prefix === '' ? unknown : `${prefix}.${unknown}`
  throw Object.assign(new TypeError(`unknown option \`${path}\`${suggestion(unknown, known)}`), {
    code: 'ERR_OPTION_TYPE' as ErrorCode,
  })
}

/** Returns `value` when it is an integer from `min` to `max`; throws naming the option otherwise. */
export function integerIn(name: string, value: number, min: number, max: number): number {
  return numberWhere(
    name,
    value,
    `an integer from ${min} to ${max}`,
    Number.isInteger(value) && value >= min && value <= max,
  )
}

/** Returns `value` when it is a finite number from `min` to `max`; throws naming the option otherwise. */
export function numberIn(name: string, value: number, min: number, max: number): number {
  return numberWhere(name, value, `a number from ${min} to ${max}`, value >= min && value <= max)
}

function numberWhere(name: string, value: number, expectation: string, holds: boolean): number {
  if (typeof value !== 'number') throw optionTypeError(name, 'a number', value)
  if (holds) return value
  throw optionRangeError(name, expectation, value)
}

/** Returns `value` when it is a boolean; throws a `TypeError` naming the option otherwise. */
export function booleanOf(name: string, value: boolean): boolean {
  if (typeof value !== 'boolean') throw optionTypeError(name, 'true or false', value)
  return value
}

/** Returns `value` when it is a string; throws a `TypeError` naming the option otherwise. */
export function stringOf(name: string, value: string): string {
  if (typeof value !== 'string') throw optionTypeError(name, 'a string', value)
  return value
}

/** Returns `value` when it is a function; throws a `TypeError` naming the option otherwise. */
export function functionOf<F extends (...parameters: never[]) => unknown>(name: string, value: F): F {
  if (typeof value !== 'function') throw optionTypeError(name, 'a function', value)
  return value
}

/** Says which of the known names a misspelt one may stand for, and lists them all. Begins with a colon. */
export function suggestion(misspelt: string, known: readonly string[]): string {
  const [nearest] = known
    .map((name) => ({ name, distance: editDistance(misspelt.toLowerCase(), name.toLowerCase()) }))
    .sort((one, other) => one.distance - other.distance)
  const close =
    nearest !== undefined &&
    nearest.distance < misspelt.length &&
    nearest.distance <= Math.max(2, misspelt.length / 3)
  return `: ${close ? `did you mean \`${nearest.name}\`? ` : ''}expected one of ${known.join(', ')}`
}

/** Number of letters to insert, delete or replace to make one word out of the other. */
function editDistance(one: string, other: string): number {
  let above = Array.from({ length: other.length + 1 }, (_, column) => column)
  for (let row = 1; row <= one.length; row++) {
    const current = [row]
    for (let column = 1; column <= other.length; column++) {
      const replaced = above[column - 1]! + (one[row - 1] === other[column - 1] ? 0 : 1)
      current.push(Math.min(replaced, above[column]! + 1, current[column - 1]! + 1))
    }
    above = current
  }
  return above[other.length]!
}
