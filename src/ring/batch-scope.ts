/**
 * What is put off to the end of a batch, so that it is done once for all of its requests. There is one event loop in an
 * environment, and so one scope: batches of several queues that are answered within each other end together.
 */
let depth = 0
const atEnd: (() => void)[] = []
const afterEnd: (() => void)[] = []
/** Of those that run after a scope, how many come after the one that runs. */
let waitingCount = 0

/**
 * Begins the answering of a batch, or the settling of many answers; {@link leaveBatchScope} must follow. Two functions and no
 * callback, because a closure a batch would be garbage.
 */
export function enterBatchScope(): void {
  depth++
}

/**
 * Ends a scope. With the outermost one what was put off runs: first all of {@link atBatchEnd}, which may answer more, then
 * all of {@link afterBatch}.
 */
export function leaveBatchScope(): void {
  if (depth > 1 || (atEnd.length === 0 && afterEnd.length === 0)) depth--
  else endOutermost()
}

function endOutermost(): void {
  // What runs here may put off more. By index, and one array for all batches.
  for (let index = 0; index < atEnd.length; index++) atEnd[index]!()
  atEnd.length = 0
  depth--
  const publishes = afterEnd.splice(0)
  for (let index = 0; index < publishes.length; index++) {
    waitingCount = publishes.length - 1 - index
    publishes[index]!()
  }
}

/** Whether answers of another queue are ready and go out when the one that publishes now returns: it should not take its time. */
export function othersWait(): boolean {
  return waitingCount > 0
}

/** Runs something in a scope of its own. @returns what it returns */
export function inBatchScope<Value>(work: () => Value): Value {
  enterBatchScope()
  try {
    return work()
  } finally {
    leaveBatchScope()
  }
}

/**
 * Calls a store back when the batch ends whose requests it is handed now, so that they go to the kernel together; outside of
 * a batch before the event loop goes on. The callback must not throw.
 */
export function atBatchEnd(submit: () => void): void {
  if (depth > 0) atEnd.push(submit)
  else queueMicrotask(() => inBatchScope(submit))
}

/** Calls back after the scope, when everything that it answers is answered; false outside of one, and nothing is done. */
export function afterBatch(publish: () => void): boolean {
  if (depth === 0) return false
  afterEnd.push(publish)
  return true
}
