export type { ModuleExport } from '../module-export.ts'
export { type VhostUserEvents, type VhostUserOptions, VhostUserServer, vhostUser } from './server.ts'
