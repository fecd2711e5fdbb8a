export { type VhostUserEvents, type VhostUserOptions, VhostUserServer, vhostUser } from './server.ts'
