// What does not compile. Seed of the type: SGLang's fused all-reduce + norm once summed rows of which no sum was owed
// (PR 19918, scattered dense layers), because who owes a sum was a flag. Here both halves of that mistake are type
// errors.
#include <gtest/gtest.h>

#include "layout/plan_walk.h"
#include "tests/layout/simulator.h"

namespace plait::test {
namespace {

using Rows = Simulator::Rows;
using Done = Complete<Rows>;
using Owing = PartialSum<Rows>;

template <typename Backend, typename Delta>
concept CanNorm = requires(Backend backend, Delta delta, std::optional<Done> residual, StageStep step) {
  backend.add_norm(std::move(delta), residual, step, 0);
};
template <typename Backend, typename Delta>
concept CanFuse = requires(Backend backend, Delta delta, Done residual, FusedAllReduceAddNorm fused) {
  backend.all_reduce_add_norm(std::move(delta), residual, fused, 0);
};
template <typename Backend, typename Delta>
concept CanReduce = requires(Backend backend, Delta delta, Collective collective) {
  backend.all_reduce(std::move(delta), collective);
  backend.reduce_scatter(std::move(delta), collective);
};
template <typename Backend, typename Delta>
concept CanGather =
    requires(Backend backend, Delta delta, Collective collective) { backend.all_gather(std::move(delta), collective); };
template <typename Backend, typename Delta>
concept CanCompute = requires(Backend backend, Delta delta, StageStep step) {
  backend.anchored(std::move(delta), step, 0);
  backend.rowwise(std::move(delta), step, 0);
  backend.send_receive(std::move(delta));
};

// A norm, a projection, an expert or another stage never sees a value that lacks a sum.
static_assert(CanNorm<Simulator, Done> && !CanNorm<Simulator, Owing>);
static_assert(CanCompute<Simulator, Done> && !CanCompute<Simulator, Owing>);
static_assert(CanGather<Simulator, Done> && !CanGather<Simulator, Owing>);
// A sum is made of summands only: scattered rows, which owe none, cannot be reduced, fused or not.
static_assert(CanReduce<Simulator, Owing> && !CanReduce<Simulator, Done>);
static_assert(CanFuse<Simulator, Owing> && !CanFuse<Simulator, Done>);
// The two do not turn into each other by themselves.
static_assert(!std::is_convertible_v<Owing, Done> && !std::is_constructible_v<Done, Owing>);
static_assert(!std::is_convertible_v<Done, Owing> && !std::is_constructible_v<Owing, Done>);

TEST(Typing, OwesExactlyIfAxesAreOwed) {
  const Activation<int> complete = activation(1, Placement{});
  const Activation<int> owing = activation(1, Placement{{}, AxisSet::axis(0)});
  EXPECT_TRUE(std::holds_alternative<Complete<int>>(complete));
  EXPECT_TRUE(std::holds_alternative<PartialSum<int>>(owing));
  EXPECT_EQ(placement_of(owing).owed, AxisSet::axis(0));
}

TEST(TypingDeathTest, NoSumOverAxesThatShardTheRows) {
  EXPECT_DEATH(PartialSum<int>(1, Layout{AxisSet::axis(0)}, AxisSet::axis(0)), "owed over axes");
  EXPECT_DEATH(PartialSum<int>(1, Layout{}, AxisSet{}), "owed over axes");
}

}  // namespace
}  // namespace plait::test
