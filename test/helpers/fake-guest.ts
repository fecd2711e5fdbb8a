export {
  VhostUserGuest as FakeGuest,
  type VhostUserGuestOptions as FakeGuestOptions,
} from '../../src/testing/index.ts'
