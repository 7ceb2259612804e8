// Counters that engines keep go on when an engine is replaced.
#include "server/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace plait {
namespace {

using ::testing::HasSubstr;

TEST(Metrics, CompilesAfterReadyAreCountedOverEnginesAndReplicas) {
  Metrics metrics("m");
  const auto expect_compiles = [&](const std::vector<const SchedulerLoad*>& loads, int count) {
    EXPECT_THAT(metrics.expose(0, loads),
                HasSubstr("plait:compiles_after_ready_total{model_name=\"m\"} " + std::to_string(count) + "\n"));
  };
  SchedulerLoad first, second;
  expect_compiles({&first, &second}, 0);
  first.compiles_after_ready = 2;
  second.compiles_after_ready = 1;
  expect_compiles({&first, &second}, 3);
  expect_compiles({&first, &second}, 3);
  metrics.engine_died(first);
  expect_compiles({nullptr, &second}, 3);
  first.compiles_after_ready = 0;
  expect_compiles({&first, &second}, 3);
  first.compiles_after_ready = 1;
  expect_compiles({&first, &second}, 4);
}

}  // namespace
}  // namespace plait
