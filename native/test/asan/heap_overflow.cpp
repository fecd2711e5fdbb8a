// An addon with one mistake, for the control of the AVA suite under AddressSanitizer: loading it writes behind the end of
// an allocation. If that is not reported, nothing else would be.
#include <cstdlib>

#include "node_api.h"

extern "C" napi_value napi_register_module_v1(napi_env, napi_value exports) {
  auto* const bytes = static_cast<volatile char*>(std::malloc(8));
  bytes[8] = 1;
  std::free(const_cast<char*>(bytes));
  return exports;
}
