import { optionTypeError } from '../../errors.ts'
import { suggestion } from '../../options.ts'
import { parseSizeBytes } from '../../units.ts'
import { BLOCK_VERBS } from '../block/block-request.ts'
import type { Layer } from '../handler.ts'
import { type CacheOptions, cache } from './cache.ts'
import { type FaultOptions, fault } from './fault.ts'
import { type RateLimitOptions, rateLimit } from './rate-limit.ts'
import { readonly } from './readonly.ts'
import { type RetryOptions, retry } from './retry.ts'
import { type TimeoutOptions, timeout } from './timeout.ts'
import { type TraceOptions, trace } from './trace.ts'

/** How the text of an option is read: `4`, `0.5`, `64MiB`, `disk0`, `read+write`. */
export type LayerOptionType = 'integer' | 'number' | 'size' | 'text' | 'verbs'

/** One option of a layer, for people. */
export interface NamedLayerOption {
  readonly type: LayerOptionType
  /** A few words: meaning, unit, default. */
  readonly help: string
}

/** A layer that can be made from text, as on a command line. */
export interface NamedLayer {
  readonly name: string
  /** One line. */
  readonly help: string
  readonly options: Readonly<Record<string, NamedLayerOption>>
  /** Makes the layer; the options are those of the factory of the same name. Throws naming the option. */
  make(options: Readonly<Record<string, unknown>>): Layer
}

/** Every layer that can be made from text. `mirror` is none: it needs a second disk. */
export const LAYERS: readonly NamedLayer[] = [
  {
    name: 'trace',
    help: 'tells each request with its result and its time on stderr',
    options: { name: { type: 'text', help: 'first word of each line (trace)' } },
    make: (options) => trace(options as TraceOptions),
  },
  {
    name: 'rateLimit',
    help: 'delays requests so that no more pass than the rates allow',
    options: {
      iopsMax: { type: 'number', help: 'requests a second' },
      bytesPerSecondMax: { type: 'size', help: 'bytes read and written a second' },
      burstMs: { type: 'number', help: 'quiet time that may be made up for at once, in ms (100)' },
    },
    make: (options) => rateLimit(options as RateLimitOptions),
  },
  {
    name: 'retry',
    help: 'asks again when the store failed',
    options: {
      count: { type: 'integer', help: 'further attempts' },
      delayMs: { type: 'number', help: 'wait before each of them, in ms (0)' },
    },
    make: (options) => retry(options as unknown as RetryOptions),
  },
  {
    name: 'timeout',
    help: 'fails requests that are not answered in time',
    options: { ms: { type: 'number', help: 'longest wait for an answer, in ms' } },
    make: (options) => timeout(options as unknown as TimeoutOptions),
  },
  {
    name: 'cache',
    help: 'keeps what was read and written last in memory',
    options: {
      sizeBytes: { type: 'size', help: 'most data to keep' },
      blockBytes: { type: 'size', help: 'unit of caching (4KiB)' },
    },
    make: (options) => cache(options as unknown as CacheOptions),
  },
  {
    name: 'readonly',
    help: 'fails everything that would change the disk',
    options: {},
    make: () => readonly(),
  },
  {
    name: 'fault',
    help: 'delays requests and fails some of them',
    options: {
      delayMs: { type: 'number', help: 'delay of each request, in ms (0)' },
      errorPercent: { type: 'number', help: 'share of requests that fail, in percent (0)' },
      seed: { type: 'integer', help: 'seed of the choice (random)' },
      verbs: { type: 'verbs', help: `requests to disturb, joined by + (${BLOCK_VERBS.join('+')})` },
    },
    make: (options) => fault(options as FaultOptions),
  },
]

/**
 * Makes a layer from `NAME` or `NAME:KEY=VALUE,KEY=VALUE`, such as `cache:sizeBytes=64MiB`. Keys are the option names
 * of the factory.
 *
 * @throws TypeError or RangeError; for a name that does not exist, with the nearest one and all there are
 */
export function layerFromText(text: string): Layer {
  const [name = '', rest = ''] = splitAtFirst(text, ':')
  const layer = LAYERS.find((candidate) => candidate.name === name)
  if (layer === undefined) {
    throw unknownName(
      `unknown layer \`${name}\``,
      name,
      LAYERS.map((candidate) => candidate.name),
    )
  }
  const options: Record<string, unknown> = {}
  for (const pair of rest === '' ? [] : rest.split(',')) {
    const [key = '', value] = splitAtFirst(pair, '=')
    const option = Object.hasOwn(layer.options, key) ? layer.options[key] : undefined
    if (option === undefined) {
      throw unknownName(`the layer ${name} has no option \`${key}\``, key, Object.keys(layer.options))
    }
    if (Object.hasOwn(options, key)) throw optionTypeError(`${name}:${key}`, 'given once', rest)
    if (value === undefined) throw optionTypeError(`${name}:${key}`, 'followed by = and a value', pair)
    options[key] = VALUE_READERS[option.type](`${name}:${key}`, value)
  }
  return layer.make(options)
}

function unknownName(problem: string, name: string, known: readonly string[]): TypeError {
  const hint = known.length === 0 ? ': it has no options' : suggestion(name, known)
  return Object.assign(new TypeError(problem + hint), { code: 'ERR_OPTION_TYPE' as const })
}

function splitAtFirst(text: string, separator: string): [string, string?] {
  const at = text.indexOf(separator)
  return at === -1 ? [text] : [text.slice(0, at), text.slice(at + separator.length)]
}

const VALUE_READERS: Readonly<Record<LayerOptionType, (name: string, text: string) => unknown>> = {
  integer: (name, text) => readNumber(name, text, /^\d+$/, 'a whole number'),
  number: (name, text) => readNumber(name, text, /^\d+(\.\d+)?$/, 'a number'),
  size: readSize,
  text: (_name, text) => text,
  verbs: (_name, text) => text.split('+'),
}

function readNumber(name: string, text: string, pattern: RegExp, expectation: string): number {
  if (!pattern.test(text)) throw optionTypeError(name, expectation, text)
  return Number(text)
}

function readSize(name: string, text: string): number {
  const sizeBytes = parseSizeBytes(text)
  if (sizeBytes === undefined) throw optionTypeError(name, 'a size such as 512, 64KiB or 1GiB', text)
  return sizeBytes
}
