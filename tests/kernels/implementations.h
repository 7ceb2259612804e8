// Both implementations under the same tests.
#pragma once

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/context.h"

namespace plait::kernels {

// A context with memory and threads of its own.
struct TestContext : Context {
  explicit TestContext(Implementation which, int threads = 1) : team(threads) {
    pool = &team;
    workspace = &memory;
    implementation = which;
  }
  ThreadPool team;
  Workspace memory;
};

class BothImplementations : public testing::TestWithParam<Implementation> {};
#define PLAIT_TEST_BOTH_IMPLEMENTATIONS(suite)                                                                    \
  using suite = BothImplementations;                                                                              \
  INSTANTIATE_TEST_SUITE_P(Kernels, suite, testing::Values(Implementation::kReference, Implementation::kFast),    \
                           [](const testing::TestParamInfo<Implementation>& info) {                               \
                             return std::string(info.param == Implementation::kReference ? "reference" : "fast"); \
                           })

// Normally distributed values; the same for the same seed on every platform that has IEEE floats.
inline std::vector<float> random_values(int64_t count, uint32_t seed, float deviation = 1) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> distribution(0, deviation);
  std::vector<float> values(count);
  for (float& value : values) value = distribution(generator);
  return values;
}

}  // namespace plait::kernels
