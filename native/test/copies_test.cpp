// Copies of a batch: their order, both directions, and rows that do not lie in their memory.
#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "core/copies.h"

namespace {

using namespace hushring;

std::span<std::byte> bytes_of(std::string& text) { return std::as_writable_bytes(std::span(text)); }

TEST_CASE("copies are done in their order, in both directions") {
  std::string window = "abcdef";
  std::string store = "------";
  const std::array windows{bytes_of(window)};
  const std::array stores{bytes_of(store)};
  const std::array rows{
      CopyRow{0, 0, 0, 2, 3, 1},
      CopyRow{0, 4, 0, 4, 2, 0},
      CopyRow{0, 4, 0, 0, 1, 1},
  };
  copy_rows(rows, windows, stores);
  CHECK(store == "c-abc-");
  CHECK(window == "abcdc-");
}

TEST_CASE("a row that does not lie in its memory is left out, and the others are done") {
  std::string window = "abcdef";
  std::string store = "------";
  const std::array windows{bytes_of(window), std::span<std::byte>{}};
  const std::array stores{bytes_of(store)};
  const std::array rows{
      CopyRow{1, 0, 0, 0, 1, 1},
      CopyRow{2, 0, 0, 0, 1, 1},
      CopyRow{0, 0, 1, 0, 1, 1},
      CopyRow{0, 4, 0, 0, 3, 1},
      CopyRow{0, 0, 0, 4, 3, 1},
      CopyRow{0, ~0U, 0, 0, ~0U, 1},
      CopyRow{0, 0, 0, ~0U, ~0U, 0},
      CopyRow{0, 0, 0, 0, 0, 0},
      CopyRow{0, 5, 0, 5, 1, 1},
  };
  copy_rows(rows, windows, stores);
  CHECK(store == "-----f");
  CHECK(window == "abcdef");
}

}  // namespace
