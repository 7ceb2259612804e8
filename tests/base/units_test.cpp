#include "base/units.h"

#include <limits>

#include <gtest/gtest.h>

namespace plait {
namespace {

TEST(Units, BytesAreBinary) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(1023), "1023 B");
  EXPECT_EQ(format_bytes(1024), "1.00 KiB");
  EXPECT_EQ(format_bytes(21'430'028), "20.4 MiB");
  EXPECT_EQ(format_bytes(uint64_t{3} << 29), "1.50 GiB");
  EXPECT_EQ(format_bytes(688'600'000'000), "641.3 GiB");
  EXPECT_EQ(format_bytes(std::numeric_limits<uint64_t>::max()), "16.0 EiB");
}

TEST(Units, SecondsChangeTheirUnit) {
  EXPECT_EQ(format_seconds(0), "0 us");
  EXPECT_EQ(format_seconds(850e-6), "850 us");
  EXPECT_EQ(format_seconds(12.34e-3), "12.3 ms");
  EXPECT_EQ(format_seconds(3.214), "3.21 s");
  EXPECT_EQ(format_seconds(250), "4 min 10 s");
}

TEST(Units, RatesAreDecimal) {
  EXPECT_EQ(format_rate(500), "0.5 KB/s");
  EXPECT_EQ(format_rate(2.5e6), "2.5 MB/s");
  EXPECT_EQ(format_rate(1.25e9), "1.25 GB/s");
}

// No value may print as a thousand of its unit where the next unit begins.
TEST(Units, BordersRoundIntoTheNextUnit) {
  EXPECT_EQ(format_bytes((uint64_t{1} << 20) - 1), "1.00 MiB");
  EXPECT_EQ(format_bytes((uint64_t{1} << 30) - 1), "1.00 GiB");
  EXPECT_EQ(format_bytes(10 * 1024 - 1), "10.0 KiB");
  EXPECT_EQ(format_seconds(0.9999999), "1.00 s");
  EXPECT_EQ(format_seconds(0.0009999), "1.0 ms");
  EXPECT_EQ(format_rate(999'999'999), "1.00 GB/s");
}

}  // namespace
}  // namespace plait
