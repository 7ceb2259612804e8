// Worlds of several processes over Gloo, alone and with several thread ranks each.
#include "tests/comm/processes.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/log.h"
#include "tests/comm/battery.h"

namespace plait::comm {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;

// Processes with ranks_of[i] ranks each; body returns what went wrong.
int64_t run_world(const std::vector<int>& ranks_of, const std::function<testing::Report(World&)>& body) {
  const int port = testing::free_port();
  const int nodes = static_cast<int>(ranks_of.size());
  testing::Processes processes(nodes, [&](int node, const testing::Processes::Say& say) {
    log::initialise(log::Level::kWarning, fmt::format("node {}", node));
    auto world = World::join(testing::options_for(port, nodes, node, ranks_of[static_cast<size_t>(node)]));
    if (world.has_error()) return say("FAILED " + world.error().message);
    world.value()->set_deadline(20s);
    const auto report = body(*world.value());
    for (const auto& failure : report.failures) say("FAILED " + failure);
    say(fmt::format("cases {}", report.cases));
  });
  int64_t cases = 0;
  for (int node = 0; node < nodes; ++node) {
    const std::string said = processes.listen(node, 60s);
    EXPECT_EQ(said.find("FAILED"), std::string::npos) << said;
    EXPECT_TRUE(processes.ended_well(node, 10s)) << "node " << node;
    const size_t at = said.find("cases ");
    if (at == std::string::npos)
      ADD_FAILURE() << "node " << node << " said nothing";
    else
      cases += std::stoll(said.substr(at + 6));
  }
  return cases;
}

std::vector<int> all_ranks(const World& world) {
  std::vector<int> ranks;
  for (int rank = 0; rank < world.size(); ++rank) ranks.push_back(rank);
  return ranks;
}

testing::Report battery_on(World& world, const std::vector<int>& ranks, std::string_view group) {
  return testing::run_ranks(world, ranks, group,
                            [](Communicator& comm) { return testing::run_battery(comm, testing::kSizes); });
}

TEST(Processes, EveryCollectiveIsRightOverGloo) {
  int64_t cases = 0;
  for (int nodes = 2; nodes <= 8; ++nodes)
    cases += run_world(std::vector<int>(static_cast<size_t>(nodes), 1),
                       [](World& world) { return battery_on(world, all_ranks(world), "all"); });
  fmt::print("gloo: {} collectives of 2 to 8 processes compared bit by bit\n", cases);
}

// While node 0 waits in a collective that the others have not begun.
TEST(Processes, NotesReachNodeZeroAndTheLastOneCounts) {
  const int64_t seen = run_world({1, 1, 1}, [](World& world) {
    testing::Report report;
    auto all = world.communicator("all", all_ranks(world), world.this_node());
    if (all.has_error()) {
      report.failures.push_back(all.error().message);
      return report;
    }
    const auto text_of = [](int node, int i) { return fmt::format("node {} is at {}", node, i); };
    if (world.this_node() != 0) {
      for (int i = 0; i <= 20; ++i) {
        world.set_note(text_of(world.this_node(), i) + std::string(i == 19 ? 60'000 : 0, '.'));
        std::this_thread::sleep_for(5ms);
      }
      if (all.value().barrier("end").has_error()) report.failures.emplace_back("barrier");
      return report;
    }
    std::thread waiting([&] {
      if (all.value().barrier("end").has_error()) report.failures.emplace_back("barrier");
    });
    const auto until = std::chrono::steady_clock::now() + 20s;
    std::vector<std::string> last(3);
    while ((last[1] != text_of(1, 20) || last[2] != text_of(2, 20)) && std::chrono::steady_clock::now() < until) {
      for (const NodeNote& note : world.notes()) {
        report.cases += note.text != last[static_cast<size_t>(note.node)];
        last[static_cast<size_t>(note.node)] = note.text;
      }
      std::this_thread::sleep_for(1ms);
    }
    waiting.join();
    for (int node : {1, 2})
      if (last[static_cast<size_t>(node)] != text_of(node, 20))
        report.failures.push_back("last: " + last[static_cast<size_t>(node)]);
    return report;
  });
  EXPECT_GE(seen, 2);
  fmt::print("notes: node 0 saw {} of 42\n", seen);
}

TEST(Processes, MixedGroupsGiveTheBitsOfLocalOnes) {
  int64_t cases = 0;
  const std::vector<std::vector<int>> shapes = {{2, 1}, {1, 3}, {2, 2}, {3, 1, 2}, {4, 4}};
  for (const auto& shape : shapes)
    cases += run_world(shape, [](World& world) { return battery_on(world, all_ranks(world), "all"); });
  fmt::print("mixed: {} collectives in {} worlds of threads and processes compared bit by bit\n", cases, shapes.size());
}

TEST(Processes, GroupsInterleaveHostsInAnyOrder) {
  const int64_t cases = run_world({2, 2}, [](World& world) {
    auto report = battery_on(world, {3, 0, 2, 1}, "shuffled");
    // Two groups of one process pair at once, one of them with a single member per process
    std::vector<std::thread> threads;
    std::mutex mutex;
    for (const auto& [name, ranks] : {std::pair("a", std::vector{0, 3}), std::pair("b", std::vector{2, 1})}) {
      threads.emplace_back([&, name, ranks] {
        const auto part = battery_on(world, ranks, name);
        std::lock_guard lock(mutex);
        report.cases += part.cases;
        report.failures.insert(report.failures.end(), part.failures.begin(), part.failures.end());
      });
    }
    for (auto& thread : threads) thread.join();
    return report;
  });
  fmt::print("interleaved groups: {} collectives\n", cases);
}

// Both processes see the mismatch, and say the same about it.
TEST(Processes, MismatchesBetweenProcessesAreReported) {
  struct Case {
    const char* what;
    std::function<Status(Communicator&)> usual, other;  // other: member 2, in another process
    std::vector<const char*> named;
  };
  static float in[100000], out[100000];
  const std::vector<int64_t> even = {4, 4, 4}, skewed = {2, 4, 6};
  const std::vector<Case> cases = {
      {"kind",
       [](Communicator& c) { return c.barrier("x"); },
       [](Communicator& c) { return c.all_gather("x", in, out, 8, DType::kF32); },
       {"barrier 'x'", "all_gather 'x'"}},
      {"count",
       [](Communicator& c) { return c.all_reduce("x", in, out, 8, DType::kF32); },
       [](Communicator& c) { return c.all_reduce("x", in, out, 100000, DType::kF32); },
       {"of 8 F32", "of 100000 F32"}},
      {"dtype",
       [](Communicator& c) { return c.all_reduce("x", in, out, 8, DType::kF32); },
       [](Communicator& c) { return c.all_reduce("x", in, out, 8, DType::kBF16); },
       {"8 F32", "8 BF16"}},
      {"name",
       [](Communicator& c) { return c.barrier("layer 3"); },
       [](Communicator& c) { return c.barrier("layer 4"); },
       {"layer 3", "layer 4"}},
      {"counts",
       [&](Communicator& c) { return c.all_gather("x", in, out, even, DType::kF32); },
       [&](Communicator& c) { return c.all_gather("x", in, out, skewed, DType::kF32); },
       {"by rank"}},
      {"sent and expected",
       [&](Communicator& c) { return c.all_to_all("x", in, even, out, even, DType::kF32); },
       [&](Communicator& c) { return c.all_to_all("x", in, even, out, skewed, DType::kF32); },
       {"expects 2"}},
      {"message",
       [](Communicator& c) { return c.rank() == 0 ? c.send("x", in, 8, DType::kF32, 2) : Status{}; },
       [](Communicator& c) { return c.receive("x", out, 7, DType::kF32, 0); },
       {"send 'x' of 7 F32", "send 'x' of 8 F32"}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.what);
    const int port = testing::free_port();
    testing::Processes processes(2, [&](int node, const testing::Processes::Say& say) {
      log::initialise(log::Level::kOff, "");
      auto world = World::join(testing::options_for(port, 2, node, node == 0 ? 2 : 1)).value();
      world->set_deadline(20s);
      testing::run_ranks(*world, std::array{0, 1, 2}, "group", [&](Communicator& comm) {
        auto status = (comm.rank() == 2 ? c.other : c.usual)(comm);
        if (!status.has_error()) status = comm.barrier("after");
        if (!status.has_error()) say("NOT NOTICED");
        return testing::Report{};
      });
      say(fmt::format("kind {}: {}", static_cast<int>(world->failure()->kind), world->failure()->message));
    });
    for (int node = 0; node < 2; ++node) {
      const std::string said = processes.listen(node, 5s);
      EXPECT_THAT(said, HasSubstr(fmt::format("kind {}", static_cast<int>(FailureKind::kMismatch))));
      EXPECT_THAT(said, ::testing::Not(HasSubstr("NOT NOTICED")));
      for (const char* named : c.named) EXPECT_THAT(said, HasSubstr(named));
      EXPECT_TRUE(processes.ended_well(node, 5s));
    }
  }
  // Lists of ranks that differ between processes
  const int port = testing::free_port();
  testing::Processes processes(2, [&](int node, const testing::Processes::Say& say) {
    log::initialise(log::Level::kOff, "");
    auto world = World::join(testing::options_for(port, 2, node, 1)).value();
    auto comm = world->communicator("g", node == 0 ? std::vector{0, 1} : std::vector{1, 0}, node).value();
    say(comm.barrier("x").error().message);
  });
  EXPECT_THAT(processes.listen(0, 5s), HasSubstr("group 'g' is not the same everywhere"));
  fmt::print("{} kinds of mismatch between processes reported\n", cases.size() + 1);
}

}  // namespace
}  // namespace plait::comm
