export { type AnswerOptions, type AnswerRecorder, answer } from './answer.ts'
export { BusyPoll } from './busy-poll.ts'
export { doorbell, tcmuEvents } from './doorbell.ts'
export { creditsReturned, type DrainableQueue, type DrainOptions, drain } from './drain.ts'
export { type GatherOptions, gather } from './gather.ts'
export { type ServableQueue, type ServeOptions, serveQueue } from './pipeline.ts'
export { microScheduler, turnScheduler } from './schedulers.ts'
export {
  type AdaptiveOptions,
  type AnticipateOptions,
  adaptive,
  anticipate,
  type CoalesceOptions,
  coalesce,
  type Hold,
  immediate,
  type Load,
  type SuppressionPolicy,
  soonest,
} from './suppression.ts'
