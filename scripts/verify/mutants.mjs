// The mutants: each named ordering of native/core/ordering.h (and the rules beside it), weakened once, and the rungs
// that must notice. Physics decides which rungs can: an x86 machine reorders nothing but a store with a later load, so
// F1, F3, F9 and F10 cannot be seen by running there.

/**
 * @typedef {object} Mutant
 * @property {string} id
 * @property {string} weakened what it does differently from the product
 * @property {string[]} killers names of the rungs (files of rungs/) that must kill it
 */

/** @type {Mutant[]} */
export const mutants = [
  {
    id: 'F1',
    weakened: 'used.idx is published without release',
    killers: ['explorer', 'disassembly', 'tsan'],
  },
  {
    id: 'F2-event-idx',
    weakened: 'no full fence before used_event',
    killers: ['scripted', 'explorer', 'spin', 'disassembly', 'litmus'],
  },
  {
    id: 'F2-flags',
    weakened: 'no full fence before avail.flags',
    killers: ['scripted', 'explorer', 'spin', 'disassembly', 'litmus'],
  },
  { id: 'F3', weakened: 'avail.idx is loaded without acquire', killers: ['explorer', 'disassembly', 'tsan'] },
  {
    id: 'F4-event-idx',
    weakened: 'no full fence after avail_event',
    killers: ['scripted', 'explorer', 'spin', 'disassembly', 'litmus'],
  },
  {
    id: 'F4-flags',
    weakened: 'no full fence after used.flags',
    killers: ['scripted', 'explorer', 'spin', 'disassembly', 'litmus'],
  },
  {
    id: 'F5',
    weakened: 'no second look after asking for kicks',
    killers: ['scripted', 'explorer', 'spin', 'disassembly', 'litmus'],
  },
  { id: 'F9', weakened: 'cmd_head is loaded without acquire', killers: ['explorer', 'disassembly', 'tsan'] },
  {
    id: 'F10',
    weakened: 'cmd_tail is published without release',
    killers: ['explorer', 'disassembly', 'tsan'],
  },
  { id: 'F11', weakened: 'a tail is stored while somebody else rings', killers: ['scripted', 'spin'] },
  {
    id: 'F12',
    weakened: 'no full fence between the event and the last look at cmd_head',
    killers: ['explorer', 'disassembly'],
  },
  { id: 'F13-mark', weakened: 'a head is marked in flight before its counter', killers: ['spin', 'crashes'] },
  { id: 'F13-batch', weakened: 'a batch is linked after used.idx', killers: ['spin', 'crashes'] },
  { id: 'F13-clear', weakened: 'marks are cleared before used.idx', killers: ['spin', 'crashes'] },
  {
    id: 'F13-used',
    weakened: 'the region has used.idx before the marks are cleared',
    killers: ['spin', 'crashes'],
  },
  { id: 'F14', weakened: 'memory is unmapped before its last user is through', killers: ['simulate'] },
  { id: 'F15', weakened: 'JavaScript touches an index without Atomics', killers: ['litmus'] },
]
