// Latencies as JavaScript gets them: LatencyRow of src/native.ts.
#pragma once

#include <napi.h>

#include <cstddef>
#include <vector>

#include "os/latency_histogram.h"

namespace hushring {

// Numbers of 53 bits are enough: 2^53 ns are 104 days.
inline Napi::Float64Array rows_of(Napi::Env env, const std::vector<os::LatencyCount>& latencies) {
  Napi::Float64Array rows = Napi::Float64Array::New(env, 2 * latencies.size());
  double* word = rows.Data();
  for (const os::LatencyCount& latency : latencies) {
    *word++ = static_cast<double>(latency.value);
    *word++ = static_cast<double>(latency.count);
  }
  return rows;
}

}  // namespace hushring
