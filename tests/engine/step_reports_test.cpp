// Every wait of a step says which step: in groups of layers as between pipeline stages and between the hosts that share
// the chosen tokens. Two processes of one rank, of which the first one stops after step 1.
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/log.h"
#include "engine/engine_setup.h"
#include "engine/rank_team.h"
#include "model/model_facts.h"
#include "tests/comm/processes.h"
#include "tests/model/random_checkpoint.h"

namespace plait::testing {
namespace {

using namespace std::chrono_literals;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int64_t kPromptTokens = 4;

std::unique_ptr<RankTeam> make_team(const ParallelConfig& parallel, std::shared_ptr<comm::World> world) {
  const ModelConfig config = tiny_config();
  const TensorSet weights = random_checkpoint(config, {.name = "tiny"}, 7);
  TeamOptions options{.parallel = parallel,
                      .model = {kernels::Implementation::kFast, kernels::Activation::kFloat32, {}},
                      .threads = 1,
                      .own_threads = true,
                      .world = world};
  ModelOptions own = options.model;
  own.shard = shard_of(Topology(parallel), model_facts(config), world->this_node());
  std::vector<std::unique_ptr<Model>> models;
  models.push_back(make_model(config, own).value());
  auto team = RankTeam::create(config, options, std::move(models)).value();
  if (weights.load(team->weight_requests()).has_error() || team->finish_loading().has_error()) std::abort();
  team->allocate_kv(/*pages=*/8, /*page_tokens=*/4, /*sequences=*/2);
  return team;
}

// The prompt, then the token that it chose.
Step step_of(int number) {
  const std::vector<int32_t> prompt(kPromptTokens, 3), pages{0, 1};
  const int32_t chosen = future_token(0);
  StepBuilder builder(static_cast<uint64_t>(number));
  if (number == 1)
    builder.add(prompt, 0, pages, kPromptTokens, 1);
  else
    builder.add({&chosen, 1}, kPromptTokens, pages, kPromptTokens, 1);
  return std::move(builder).build();
}

Status run_step(RankTeam& team, int number) {
  const Step step = step_of(number);
  const Step* const of_dp_ranks[] = {&step};
  team.launch(of_dp_ranks, [](int, ThreadPool&, Rows, const RankTeam::Chosen& chosen) { chosen.now[0] = 5; });
  return team.collect();
}

// What the second process says of step 2, in which it is alone.
std::string report_of_step_2(const ParallelConfig& parallel) {
  const int port = comm::testing::free_port();
  comm::testing::Processes processes(2, [&](int node, const comm::testing::Processes::Say& say) {
    log::initialise(log::Level::kOff, "");
    const std::shared_ptr<comm::World> world =
        comm::World::join(comm::testing::options_for(port, 2, node, /*ranks=*/1)).value();
    const auto team = make_team(parallel, world);
    if (const Status first = run_step(*team, 1); first.has_error()) return say("step 1: " + first.error().message);
    world->set_deadline(300ms);
    if (node == 1) return say("step 2: " + run_step(*team, 2).error().message);
    while (!world->failure()) std::this_thread::sleep_for(1ms);
  });
  return processes.listen(1, 30s);
}

TEST(StepReports, AWaitForThePipelineStageBefore) {
  EXPECT_THAT(report_of_step_2({.tp_size = 1, .pp_size = 2}),
              AllOf(HasSubstr("step 2: rank 1 (node 1, 127.0.0.1) waited"), HasSubstr("for rank 0 (node 0, 127.0.0.1)"),
                    HasSubstr("(group 'pipeline from rank 0', step 2)")));
}

TEST(StepReports, AWaitForTokensThatAnotherHostChose) {
  EXPECT_THAT(report_of_step_2({.tp_size = 2}),
              AllOf(HasSubstr("step 2: rank 1 (node 1, 127.0.0.1) waited"), HasSubstr("for rank 0 (node 0, 127.0.0.1)"),
                    HasSubstr("in broadcast 'chosen tokens'"),
                    HasSubstr("of group 'attention ranks of data-parallel rank 0', step 2)")));
}

}  // namespace
}  // namespace plait::testing
