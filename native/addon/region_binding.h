// How the other bindings get from a NativeRegion of src/native.ts to the mapping behind it.
#pragma once

#include <napi.h>

#include <memory>

#include "os/mapped_region.h"

namespace hushring {

// The mapping behind a value that mapRegion() returned in this environment. Null when the value is no region or
// the region is closed. Whoever keeps the pointer keeps the memory mapped.
[[nodiscard]] std::shared_ptr<os::MappedRegion> region_from(const Napi::Value& value);

// Throws why a region was refused: with code ERR_MEMORY_REGION or, when it was the kernel, with its errno's.
void throw_map_failure(Napi::Env env, const os::MapFailure& failure);

}  // namespace hushring
