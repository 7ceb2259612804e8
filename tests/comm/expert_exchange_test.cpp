// Dispatch and combine against one rank computing everything, bit by bit.
#include "comm/expert_exchange.h"

#include <random>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/log.h"
#include "comm/expert_reference.h"
#include "tests/comm/battery.h"
#include "tests/comm/processes.h"

namespace plait::comm {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::Report;

enum class Routing { kRandom, kDuplicates, kAllToOne, kSomeWithout };

// What one rank brings to one layer.
struct Batch {
  std::vector<float> tokens;     // [count, hidden]
  std::vector<int32_t> experts;  // [count, top_k]
  std::vector<float> weights;    // [count, top_k]
  int64_t count = 0;
};

Batch make_batch(const ExpertExchangeOptions& options, Routing routing, int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Batch batch;
  batch.count = count;
  for (int64_t i = 0; i < count * options.hidden; ++i)
    batch.tokens.push_back(normal(random) * static_cast<float>(1 << (random() % 6)));
  for (int64_t token = 0; token < count; ++token) {
    std::vector<int32_t> ids(static_cast<size_t>(options.experts));
    for (int e = 0; e < options.experts; ++e) ids[static_cast<size_t>(e)] = e;
    std::shuffle(ids.begin(), ids.end(), random);
    for (int k = 0; k < options.top_k; ++k) {
      int32_t id = ids[static_cast<size_t>(k % options.experts)];
      if (routing == Routing::kDuplicates) id = static_cast<int32_t>(random() % 2);
      if (routing == Routing::kAllToOne) id = options.experts - 1;
      if (routing == Routing::kSomeWithout && random() % 3 == 0) id = -1;
      batch.experts.push_back(id);
      batch.weights.push_back(std::abs(normal(random)));
    }
  }
  return batch;
}

// Differs by expert and is not linear.
void expert(int id, const float* row, float* y, int64_t hidden) {
  for (int64_t i = 0; i < hidden; ++i)
    y[i] = row[i] * (1.0F + 0.37F * static_cast<float>(id)) - row[(i + id) % hidden] * row[i] * 0.01F;
}

ConstRows rows_of(const std::vector<float>& values, int64_t hidden) {
  return {values.data(), static_cast<int64_t>(values.size()) / hidden, hidden};
}

// One layer on this rank; what is wrong, or nothing.
std::string run_layer(ExpertExchange& exchange, const ExpertExchangeOptions& options, ExchangeForm form, int ranks,
                      int rank, const Batch& batch) {
  const int local_experts = options.experts / ranks;
  auto started = exchange.start_dispatch("dispatch", form, rows_of(batch.tokens, options.hidden), batch.experts);
  if (started.has_error()) return started.error().message;
  auto dispatched = exchange.finish_dispatch();
  if (dispatched.has_error()) return dispatched.error().message;
  const DispatchedRows rows = dispatched.value();
  // Results may lie where the rows lie, or closer: on odd ranks without the gaps, in descending order of experts.
  std::vector<int64_t> result_row(rows.expert_first_row.begin(), rows.expert_first_row.end());
  int64_t result_rows = rows.rows;
  if (rank % 2 == 1) {
    result_rows = 0;
    for (int e = local_experts - 1; e >= 0; --e) {
      result_row[static_cast<size_t>(e)] = result_rows;
      result_rows += rows.expert_rows[static_cast<size_t>(e)];
    }
  }
  std::vector<float> results(static_cast<size_t>(result_rows * options.hidden), std::nanf("")),
      row(static_cast<size_t>(options.hidden));
  for (int e = 0; e < local_experts; ++e) {
    const int64_t first = rows.expert_first_row[static_cast<size_t>(e)];
    if (form == ExchangeForm::kNormal && first % options.row_alignment != 0) return "rows are not aligned";
    if (form == ExchangeForm::kLowLatency && first != e * options.capacity_tokens * ranks)
      return "rows are not where they should";
    for (int64_t i = 0; i < rows.expert_rows[static_cast<size_t>(e)]; ++i) {
      rows.decode(first + i, row.data());
      float* const result = results.data() + (result_row[static_cast<size_t>(e)] + i) * options.hidden;
      expert(rank * local_experts + e, row.data(), result, options.hidden);
    }
  }
  started = exchange.start_combine("combine", {results.data(), result_rows, options.hidden}, result_row);
  if (started.has_error()) return started.error().message;
  std::fill(results.begin(), results.end(), 1e30F);  // start_combine has taken what it needs
  std::vector<float> out(batch.tokens.size(), std::nanf("")), want(out.size());
  auto finished = exchange.finish_combine(batch.weights, {out.data(), batch.count, options.hidden});
  if (finished.has_error()) return finished.error().message;
  reference_exchange(options, rows_of(batch.tokens, options.hidden), batch.experts, batch.weights,
                     [&](int id, const float* in, float* y) { expert(id, in, y, options.hidden); },
                     {want.data(), batch.count, options.hidden});
  if (!out.empty() && std::memcmp(out.data(), want.data(), out.size() * sizeof(float)) != 0)
    return "the result differs from one rank's";
  return "";
}

// Every payload, form and routing, with ranks that have nothing.
Report run_exchanges(Communicator& comm) {
  Report report;
  for (const DType payload : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    for (const DType result : {DType::kF32, DType::kBF16}) {
      ExpertExchangeOptions options;
      options.hidden = 200;  // two groups of scales, the second not full
      options.experts = 3 * comm.size();
      options.top_k = 4;
      options.payload = payload;
      options.result_payload = result;
      options.row_alignment = 8;
      options.capacity_tokens = 40;
      auto exchange = ExpertExchange::make(options, comm);
      if (exchange.has_error()) {
        report.failures.push_back(exchange.error().message);
        return report;
      }
      uint32_t seed = 1;
      for (const Routing routing :
           {Routing::kRandom, Routing::kDuplicates, Routing::kAllToOne, Routing::kSomeWithout}) {
        for (const ExchangeForm form : {ExchangeForm::kNormal, ExchangeForm::kLowLatency, ExchangeForm::kNormal}) {
          // Unequal loads: some ranks are empty, and once all are.
          const int64_t count = seed % 5 == 0                                     ? 0
                                : (comm.rank() + static_cast<int>(seed)) % 3 == 0 ? 0
                                                                                  : 40 - 7 * (comm.rank() % 4);
          const Batch batch = make_batch(options, routing, count, seed * 100 + static_cast<uint32_t>(comm.rank()));
          const std::string wrong = run_layer(*exchange.value(), options, form, comm.size(), comm.rank(), batch);
          ++report.cases;
          ++seed;
          if (wrong.empty()) continue;
          report.failures.push_back(fmt::format("rank {} of {}, {} {} routing {}: {}", comm.rank(), comm.size(),
                                                name_of(payload), name_of(result), static_cast<int>(routing), wrong));
          return report;
        }
      }
    }
  }
  return report;
}

std::vector<int> first_ranks(int count) {
  std::vector<int> ranks;
  for (int rank = 0; rank < count; ++rank) ranks.push_back(rank);
  return ranks;
}

TEST(ExpertExchange, EqualsOneRankBetweenThreads) {
  int64_t cases = 0;
  for (int size = 1; size <= 8; ++size) {
    auto world = World::local(size);
    const Report report = testing::run_ranks(*world, first_ranks(size), "ep", run_exchanges);
    EXPECT_THAT(report.failures, IsEmpty());
    cases += report.cases;
  }
  fmt::print("{} exchanges between 1 to 8 threads equal one rank's bits\n", cases);
}

#ifndef __SANITIZE_THREAD__  // libgloo is not instrumented
TEST(ExpertExchange, EqualsOneRankBetweenProcesses) {
  int64_t cases = 0;
  for (const std::vector<int>& shape :
       {std::vector{1, 1}, std::vector{1, 1, 1}, std::vector{2, 2}, std::vector{1, 3}}) {
    const int port = testing::free_port();
    const int nodes = static_cast<int>(shape.size());
    testing::Processes processes(nodes, [&](int node, const testing::Processes::Say& say) {
      log::initialise(log::Level::kWarning, "");
      auto world = World::join(testing::options_for(port, nodes, node, shape[static_cast<size_t>(node)])).value();
      world->set_deadline(20s);
      const Report report = testing::run_ranks(*world, first_ranks(world->size()), "ep", run_exchanges);
      for (const auto& failure : report.failures) say("FAILED " + failure);
      say(fmt::format("cases {}", report.cases));
    });
    for (int node = 0; node < nodes; ++node) {
      const std::string said = processes.listen(node, 60s);
      EXPECT_EQ(said.find("FAILED"), std::string::npos) << said;
      EXPECT_TRUE(processes.ended_well(node, 10s));
      if (const size_t at = said.find("cases "); at != std::string::npos) cases += std::stoll(said.substr(at + 6));
    }
  }
  fmt::print("{} exchanges between processes equal one rank's bits\n", cases);
}
#endif

ExpertExchangeOptions small_options() {
  ExpertExchangeOptions options;
  options.hidden = 8;
  options.experts = 4;
  options.top_k = 2;
  options.capacity_tokens = 3;
  return options;
}

TEST(ExpertExchange, CapacityIsCheckedBeforeServing) {
  EXPECT_FALSE(check_capacity(small_options(), {3, 1}).has_error());
  EXPECT_THAT(check_capacity(small_options(), {2, 2}).error().message,
              HasSubstr("4 tokens on a rank (2 requests of 2 tokens), its capacity is 3"));
  EXPECT_GT(low_latency_bytes(small_options(), 2), 0U);
}

TEST(ExpertExchange, TooManyTokensAreRefusedOnAllRanks) {
  auto world = World::local(2);
  std::vector<std::string> messages(2);
  testing::run_ranks(*world, first_ranks(2), "ep", [&](Communicator& comm) {
    auto exchange = ExpertExchange::make(small_options(), comm).value();
    const Batch batch = make_batch(small_options(), Routing::kRandom, comm.rank() == 1 ? 4 : 2, 1);
    auto status =
        exchange->start_dispatch("layer 9", ExchangeForm::kLowLatency, rows_of(batch.tokens, 8), batch.experts);
    if (!status.has_error()) {
      auto rows = exchange->finish_dispatch();
      if (rows.has_error()) status = std::move(rows).error();
    }
    messages[static_cast<size_t>(comm.rank())] = status.has_error() ? status.error().message : "";
    return Report{};
  });
  for (const auto& message : messages)
    EXPECT_THAT(message,
                HasSubstr("expert exchange 'layer 9' on rank 1: 4 tokens exceed the low-latency capacity of 3"));
}

TEST(ExpertExchange, UseOutOfOrderIsRefusedAndHarmless) {
  auto world = World::local(2);
  const Report report = testing::run_ranks(*world, first_ranks(2), "ep", [&](Communicator& comm) {
    int hooks = 0;
    const auto count = [&] { ++hooks; };
    auto exchange = ExpertExchange::make(small_options(), comm, {count, count, count, count}).value();
    const Batch batch = make_batch(small_options(), Routing::kRandom, 2, 1);
    Report report;
    const auto expect_refused = [&](const Status& status, std::string_view text) {
      ++report.cases;
      if (!status.has_error() || status.error().kind != ErrorKind::kInvalid ||
          status.error().message.find(text) == std::string::npos)
        report.failures.push_back(status.has_error() ? status.error().message : "not refused");
    };
    const auto start = [&] {
      return exchange->start_dispatch("d", ExchangeForm::kNormal, rows_of(batch.tokens, 8), batch.experts);
    };
    std::vector<float> out(16);
    expect_refused(exchange->finish_dispatch().error(), "finish_dispatch was called, the next call is start_dispatch");
    if (start().has_error()) report.failures.push_back("start");
    expect_refused(start(),
                   "start_dispatch was called, the next call is finish_dispatch; two batches need two exchanges");
    expect_refused(exchange->finish_combine(batch.weights, {out.data(), 2, 8}), "the next call is finish_dispatch");
    const DispatchedRows rows = exchange->finish_dispatch().value();
    expect_refused(start(), "the next call is start_combine");
    std::vector<float> results(static_cast<size_t>(rows.rows * 8), 1.0F);
    const Status started = exchange->start_combine("c", {results.data(), rows.rows, 8}, rows.expert_first_row);
    if (started.has_error()) report.failures.push_back("combine");
    if (exchange->finish_combine(batch.weights, {out.data(), 2, 8}).has_error()) report.failures.push_back("finish");
    if (out[0] != batch.weights[0] + batch.weights[1]) report.failures.push_back("weights are not applied once");
    if (hooks != 4) report.failures.push_back("hooks");
    return report;
  });
  EXPECT_THAT(report.failures, IsEmpty());
}

TEST(ExpertExchange, AnotherCallBetweenStartAndFinishIsRefused) {
  auto world = World::local(1);
  auto comm = world->communicator("ep", std::array{0}, 0).value();
  auto exchange = ExpertExchange::make(small_options(), comm).value();
  const Batch batch = make_batch(small_options(), Routing::kRandom, 2, 1);
  ASSERT_FALSE(
      exchange->start_dispatch("d", ExchangeForm::kNormal, rows_of(batch.tokens, 8), batch.experts).has_error());
  EXPECT_THAT(comm.barrier("b").error().message, HasSubstr("the all_to_all 'd' has been started and not finished"));
}

TEST(ExpertExchange, ImpossibleOptionsAreRefused) {
  auto world = World::local(3);
  auto comm = world->communicator("ep", std::array{0, 1, 2}, 0).value();
  EXPECT_THAT(ExpertExchange::make(small_options(), comm).error().message,
              HasSubstr("4 experts cannot be spread evenly over 3 ranks"));
  auto options = small_options();
  options.experts = 6;
  options.payload = DType::kI32;
  EXPECT_THAT(ExpertExchange::make(options, comm).error().message, HasSubstr("not as I32"));
}

}  // namespace
}  // namespace plait::comm
