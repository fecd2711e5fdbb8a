// What a driver, or the kernel behind a TCMU ring, can do wrong, by number. The numbers are the contract with
// src/native.ts (RingBreak), where each has its stable code.
#pragma once

#include <cstdint>

namespace hushring {

enum class Fault : std::uint8_t {
  kNone = 0,
  kAvailIndex = 1,      // the available index is ahead by more than the size, or went back
  kHeadRange = 2,       // a head descriptor outside the table
  kHeadInFlight = 3,    // a head made available twice
  kRingAddress = 4,     // a ring part misaligned or outside memory
  kRingSize = 5,        // size 0, not a power of two, or above the maximum
  kChainNextRange = 6,  // next outside the table
  kChainLoop = 7,       // more descriptors than a chain may have
  kChainAddress = 8,    // a buffer or table not wholly in memory
  kChainTooLong = 9,    // 2^32 bytes or more, or more pieces than a batch holds
  kChainIndirect = 10,  // a malformed or not negotiated indirect descriptor
  kChainOrder = 11,     // readable after writable
  kChainFraming = 12,   // no room for header or status
  kMemoryTruncated = 13,
  kTcmuMailbox = 14,    // another version, or a ring or tail that does not lie where it may
  kTcmuHead = 15,       // a command head outside the ring, off a boundary, or in entries that were taken
  kTcmuEntry = 16,      // an entry with an impossible length
  kTcmuData = 17,       // a CDB outside its entry, data outside the data area, or more pieces than fit
  kTcmuCommandId = 18,  // a command with the id 0, or the id of one in flight
  kTcmuRemoved = 19,    // the device went away
  kRingInflight = 20,   // the in-flight region contradicts itself or the ring
};

}  // namespace hushring
