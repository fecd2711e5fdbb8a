import { type Observable, VirtualTimeScheduler } from 'rxjs'
import type { Handler } from '../../src/handlers/handler.ts'
import { adaptive, anticipate, coalesce, immediate, type SuppressionPolicy } from '../../src/index.ts'
import type { ServableQueue, ServeOptions } from '../../src/notify/pipeline.ts'
import type { RingRequest } from '../../src/ring/request.ts'
import { randomFrom } from '../../src/testing/random.ts'
import type { PipelineRun } from '../../src/transport/pipeline-run.ts'

/** What came of one seed. */
export interface Outcome {
  readonly seed: number
  /** What happened, a line for each thing, with its virtual time in ms. The same for the same seed. */
  readonly story: readonly string[]
  /** How often each kind of fault and each way of a handler came up. */
  readonly counts: Readonly<Record<string, number>>
  /** What must not be; empty if all is well. */
  readonly violations: readonly string[]
}

/** Longest that a simulation may run, in virtual ms: nothing in it waits for nearly as long. */
const LIMIT_MS = 60_000
/** Most steps without time in between. */
const STEP_COUNT_MAX = 2000

/**
 * What all simulations have: chance that one seed decides, a virtual clock, a story, and what is wrong.
 *
 * A simulation builds its world in the constructor, plays it in {@link run}, and lets go of it in {@link close}.
 */
export abstract class Simulation implements Outcome {
  readonly seed: number
  readonly story: string[] = []
  readonly counts: Record<string, number> = {}
  readonly violations: string[] = []
  protected readonly clock = new VirtualTimeScheduler()
  /** From then on everybody does what is right, so that what is left must come to its end. */
  protected faultsAreOver = false
  readonly #random: () => number

  constructor(seed: number) {
    this.seed = seed
    this.#random = randomFrom(seed)
  }

  protected abstract run(): Promise<void>
  protected abstract close(): void

  /** Plays the simulation to its end. Nothing is left of it then but its outcome. */
  async play(): Promise<Outcome> {
    const unhandled = (reason: unknown): void => this.violate(`a rejection that nobody handles: ${reason}`)
    process.on('unhandledRejection', unhandled)
    try {
      await this.run()
    } finally {
      process.off('unhandledRejection', unhandled)
      this.close()
    }
    return this
  }

  // ---- Chance ---------------------------------------------------------------------------------------------

  protected integer(min: number, max: number): number {
    return min + Math.floor(this.#random() * (max - min + 1))
  }
  protected pick<Value>(values: readonly Value[]): Value {
    return values[this.integer(0, values.length - 1)]!
  }
  protected chance(probability: number): boolean {
    return this.#random() < probability
  }

  // ---- Story ----------------------------------------------------------------------------------------------

  protected tell(what: string): void {
    this.story.push(`${this.clock.now().toFixed(2)} ${what}`)
  }
  protected count(what: string): void {
    this.counts[what] = (this.counts[what] ?? 0) + 1
    this.tell(what)
  }
  protected violate(what: string): void {
    this.violations.push(what)
    this.tell(`WRONG: ${what}`)
  }

  // ---- Time -----------------------------------------------------------------------------------------------

  protected after(delayMs: number, work: () => void): void {
    this.clock.schedule(work, delayMs)
  }

  /** Called before each step of the clock, at its time. */
  protected beforeStep(): void | Promise<void> {}
  /** Called after each step of the clock and what it set off. */
  protected afterStep(): void | Promise<void> {}

  /** Runs the clock until nothing is planned any more, and the microtasks between two steps of it. */
  protected async playOut(): Promise<void> {
    const { actions } = this.clock
    let stepCount = 0
    await microtasks()
    for (let next = actions[0]; next !== undefined; next = actions[0]) {
      if (next.delay > LIMIT_MS) return this.violate('something waits for ever')
      stepCount = next.delay > this.clock.frame ? 0 : stepCount + 1
      if (stepCount > STEP_COUNT_MAX) return this.violate('something runs for ever, and no time goes by')
      actions.shift()
      this.clock.frame = next.delay
      await this.beforeStep()
      next.execute(next.state, next.delay)
      await microtasks()
      await this.afterStep()
    }
  }

  /** Starts the product's pipeline, with a budget that chance decides. */
  protected startPipeline<Io extends RingRequest>(
    run: PipelineRun<Io>,
    queue: ServableQueue<Io>,
    kicks: Observable<unknown>,
    handler: Handler<Io>,
    options: Omit<ServeOptions<Io>, 'budgetCountMax' | 'giveUp'>,
  ): void {
    run.start(
      queue,
      kicks,
      handler,
      { ...options, budgetCountMax: this.integer(1, 8) },
      {
        onBroken: (error) => this.violate(`the queue is broken: ${error.message}`),
        onStopped: () => this.tell('the queue is drained'),
      },
    )
  }

  // ---- Faults ---------------------------------------------------------------------------------------------

  /** Brings a wake-up about, some time later, once or twice. @returns when the last one comes */
  protected deliver(late: string, twice: string, event: () => void): void {
    const isLate = !this.faultsAreOver && this.chance(0.2)
    if (isLate) this.count(late)
    this.after(isLate ? this.integer(1, 40) : 0, event)
    if (this.faultsAreOver || !this.chance(0.1)) return
    this.count(twice)
    this.after(this.integer(0, 40), event)
  }

  /** Plans up to `countMax` of the faults within `untilMs`. */
  protected planFaults(
    faults: Readonly<Record<string, () => void>>,
    countMax: number,
    untilMs: number,
  ): void {
    for (let count = this.integer(0, countMax); count > 0; count--) {
      const [what, fault] = this.pick(Object.entries(faults))
      this.after(this.integer(0, untilMs), () => {
        this.count(what)
        fault()
      })
    }
  }

  /** A policy, made anew for each run, and how long it may hold answers. */
  protected somePolicy(): { readonly make: () => SuppressionPolicy; readonly holdMsMax: number } {
    const holdMicrosMax = this.integer(1, 5000)
    const countMax = this.integer(1, 16)
    return this.pick([
      { make: immediate, holdMsMax: 0 },
      { make: adaptive, holdMsMax: 0 },
      { make: () => coalesce({ countMax, holdMicrosMax }), holdMsMax: holdMicrosMax / 1000 },
      { make: () => anticipate({ countMax, holdMicrosMax }), holdMsMax: holdMicrosMax / 1000 },
    ])
  }
}

/**
 * Lets every promise settle that can without the clock, and what waits for that go on. Not a turn of the event loop, which would
 * read eventfds that the simulation looks at.
 */
export async function microtasks(): Promise<void> {
  // A tick that is asked for by a microtask comes when no microtask is left. A drain needs one a batch.
  for (let count = 0; count < 20; count++) await new Promise<void>((resolve) => process.nextTick(resolve))
}
