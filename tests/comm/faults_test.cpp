// Processes that die, stop or lag in the middle of collectives.
#include <csignal>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/log.h"
#include "comm/signal.h"
#include "tests/comm/battery.h"
#include "tests/comm/processes.h"

namespace plait::comm {
namespace {

using namespace std::chrono_literals;
using ::testing::AnyOf;
using ::testing::HasSubstr;

constexpr int kNodes = 3;

// Three processes of two ranks that reduce for ever in two groups: all ranks, and the second rank of each process.
// Each says "running", and at the end what every rank got.
void serve(int port, int node, int64_t count, std::chrono::milliseconds deadline, int calls,
           const testing::Processes::Say& say) {
  log::initialise(log::Level::kOff, "");
  auto options = testing::options_for(port, kNodes, node, 2);
  auto joined = World::join(options);
  if (joined.has_error()) return say(joined.error().message);
  World& world = *joined.value();
  world.set_deadline(deadline);
  std::mutex mutex;
  const auto loop = [&](const std::vector<int>& ranks, const char* group) {
    testing::run_ranks(world, ranks, group, [&](Communicator& comm) {
      std::vector<float> data(static_cast<size_t>(count), 1.0F);
      Status status;
      for (int i = 0; i < calls && !status.has_error(); ++i) {
        comm.set_step(i);
        status = comm.all_reduce("layer 3 attention out", data.data(), data.data(), count, DType::kF32);
        std::fill(data.begin(), data.end(), 1.0F);
        if (i == 20 && comm.rank() == 0) {
          std::lock_guard lock(mutex);
          say(fmt::format("running {}", group));
        }
      }
      std::lock_guard lock(mutex);
      say(fmt::format("rank {}: {}", comm.world_rank(comm.rank()),
                      status.has_error()
                          ? fmt::format("kind {} {}", static_cast<int>(status.error().kind), status.error().message)
                          : "done"));
      return testing::Report{};
    });
  };
  std::thread other([&] { loop({1, 3, 5}, "second"); });
  loop({0, 2, 4}, "first");
  other.join();
  if (auto failure = world.failure()) say(fmt::format("culprit node {}", failure->node));
}

TEST(Faults, AKilledProcessIsNamedByAllOthers) {
  for (const int64_t count : {int64_t{256}, int64_t{300000}}) {
    for (int victim = 0; victim < kNodes; ++victim) {
      SCOPED_TRACE(fmt::format("victim {} count {}", victim, count));
      const int port = testing::free_port();
      testing::Processes processes(
          kNodes, [&](int node, const testing::Processes::Say& say) { serve(port, node, count, 30s, 1 << 30, say); });
      EXPECT_THAT(processes.listen(0, 20s, "running first"), HasSubstr("running"));
      const auto begin = Clock::now();
      processes.signal(victim, SIGKILL);
      for (int node = 0; node < kNodes; ++node) {
        if (node == victim) continue;
        const std::string said = processes.listen(node, 20s);
        EXPECT_THAT(said, HasSubstr(fmt::format("culprit node {}", victim)));
        EXPECT_THAT(said, HasSubstr(fmt::format("rank {}: kind", 2 * node)));
        EXPECT_THAT(said, HasSubstr(fmt::format("rank {}: kind", 2 * node + 1)));
        EXPECT_TRUE(processes.ended_well(node, 20s));
      }
      const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
      fmt::print("killed node {} of {} ({} floats): all others ended after {:.3f} s\n", victim, kNodes, count, seconds);
      EXPECT_LT(seconds, 3.0) << "seen when the deadline of 30 s passed, not when the connection ended";
    }
  }
}

TEST(Faults, AProcessStoppedForLessThanTheDeadlineGoesOn) {
  const int port = testing::free_port();
  testing::Processes processes(
      kNodes, [&](int node, const testing::Processes::Say& say) { serve(port, node, 256, 20s, 1500, say); });
  EXPECT_THAT(processes.listen(0, 20s, "running first"), HasSubstr("running"));
  processes.signal(1, SIGSTOP);
  std::this_thread::sleep_for(700ms);
  processes.signal(1, SIGCONT);
  for (int node = 0; node < kNodes; ++node) {
    const std::string said = processes.listen(node, 20s);
    EXPECT_THAT(said, HasSubstr(fmt::format("rank {}: done", 2 * node)));
    EXPECT_THAT(said, HasSubstr(fmt::format("rank {}: done", 2 * node + 1)));
    EXPECT_TRUE(processes.ended_well(node, 10s));
  }
}

TEST(Faults, AProcessStoppedForLongerIsNamed) {
  for (int victim = 0; victim < kNodes; ++victim) {
    SCOPED_TRACE(victim);
    const int port = testing::free_port();
    testing::Processes processes(
        kNodes, [&](int node, const testing::Processes::Say& say) { serve(port, node, 256, 1s, 1 << 30, say); });
    EXPECT_THAT(processes.listen(0, 20s, "running first"), HasSubstr("running"));
    const auto begin = Clock::now();
    processes.signal(victim, SIGSTOP);
    for (int node = 0; node < kNodes; ++node) {
      if (node == victim) continue;
      const std::string said = processes.listen(node, 30s);
      EXPECT_THAT(said, HasSubstr(fmt::format("culprit node {}", victim)));
      EXPECT_THAT(said, HasSubstr("layer 3 attention out"));
      EXPECT_THAT(said, HasSubstr(", step "));
      EXPECT_THAT(said, HasSubstr("does not answer"));
    }
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    fmt::print("stopped node {} of {}: all others ended after {:.2f} s, the deadline is 1 s\n", victim, kNodes,
               seconds);
    EXPECT_LT(seconds, 6.0);
    processes.signal(victim, SIGCONT);  // learns what happened, and ends too
    EXPECT_THAT(processes.listen(victim, 30s), HasSubstr("culprit node"));
  }
}

// One rank thread of another process is late, and nobody there waits for it: its process is asked who it is.
TEST(Faults, ALateRankInAnotherProcessIsNamed) {
  constexpr int kLate = 5;
  const int port = testing::free_port();
  testing::Processes processes(kNodes, [&](int node, const testing::Processes::Say& say) {
    log::initialise(log::Level::kOff, "");
    auto world = World::join(testing::options_for(port, kNodes, node, 2)).value();
    if (node != kLate / 2) world->set_deadline(1s);
    testing::run_ranks(*world, std::array{0, 1, 2, 3, 4, 5}, "tp", [&](Communicator& comm) {
      if (comm.rank() == kLate) std::this_thread::sleep_for(3s);
      (void)comm.barrier("layer 5");
      return testing::Report{};
    });
    say(fmt::format("culprit rank {}: {}", world->failure()->rank, world->failure()->message));
  });
  for (int node = 0; node < kNodes; ++node) {
    const std::string said = processes.listen(node, 30s);
    EXPECT_THAT(said, HasSubstr("culprit rank 5: "));
    EXPECT_THAT(said, HasSubstr("for rank 5 (node 2, 127.0.0.1) in barrier 'layer 5'"));
  }
}

// While another process is stopped, and no deadline has passed, this one says what its ranks wait for.
TEST(Faults, AStoppedProcessIsNamedByWhoeverIsAsked) {
  const int port = testing::free_port();
  testing::Processes processes(2, [&](int node, const testing::Processes::Say& say) {
    log::initialise(log::Level::kOff, "");
    auto world = World::join(testing::options_for(port, 2, node, 2)).value();
    world->set_deadline(30s);
    testing::run_ranks(*world, std::array{0, 1, 2, 3}, "ep", [&](Communicator& comm) {
      const std::vector<int64_t> counts(4, 8);
      std::array<float, 32> in{}, out{};
      comm.set_step(5);
      (void)comm.barrier("ready");
      if (comm.rank() == 2) {
        say("ready");
        raise(SIGSTOP);
      }
      std::thread asking;
      if (comm.rank() == 0)
        asking = std::thread([&] {
          for (int i = 0; i < 50; ++i) {
            std::this_thread::sleep_for(20ms);
            std::string said;
            for (const std::string& line : world->describe_activity()) said += line + "; ";
            // of both ranks here, and after a while
            if (i == 49 || said.find("rank 1 (node 0, 127.0.0.1) has waited 1") != std::string::npos) {
              say("asked: " + said);
              return;
            }
          }
        });
      (void)comm.all_to_all("experts", in.data(), counts, out.data(), counts, DType::kF32);
      if (asking.joinable()) asking.join();
      return testing::Report{};
    });
    say("over");
  });
  EXPECT_THAT(processes.listen(0, 20s, "asked"),
              ::testing::AllOf(HasSubstr("rank 0 (node 0, 127.0.0.1) has waited"),
                               HasSubstr("rank 1 (node 0, 127.0.0.1) has waited"),
                               HasSubstr("for rank 2 (node 1, 127.0.0.1), rank 3 (node 1, 127.0.0.1) in all_to_all "
                                         "'experts' of F32 (call 2 of group 'ep', step 5)")));
  processes.signal(1, SIGCONT);
  for (int node = 0; node < 2; ++node) {
    EXPECT_THAT(processes.listen(node, 20s), HasSubstr("over"));
    EXPECT_TRUE(processes.ended_well(node, 10s));
  }
}

TEST(Faults, CancelReachesOtherProcessesAndGroups) {
  const int port = testing::free_port();
  testing::Processes processes(2, [&](int node, const testing::Processes::Say& say) {
    log::initialise(log::Level::kOff, "");
    auto world = World::join(testing::options_for(port, 2, node, 2)).value();
    const auto begin = Clock::now();
    // Node 1 waits in a group of its own, and in one with rank 0, which cancels instead of coming.
    if (node == 0) {
      std::this_thread::sleep_for(200ms);
      world->cancel("rank 0 ran out of pages", 0);
      return;
    }
    std::thread other([&] {
      auto comm = world->communicator("own", std::array{2, 3}, 3).value();
      say("own: " + comm.barrier("x").error().message);
    });
    auto comm = world->communicator("shared", std::array{0, 2}, 2).value();
    say("shared: " + comm.barrier("x").error().message);
    other.join();
    say(Clock::now() - begin < 2s ? "soon" : "late");
  });
  const std::string said = processes.listen(1, 30s);
  EXPECT_THAT(said, HasSubstr("own: cancelled: rank 0 ran out of pages"));
  EXPECT_THAT(said, HasSubstr("shared: cancelled: rank 0 ran out of pages"));
  EXPECT_THAT(said, HasSubstr("soon"));
}

TEST(Faults, ALateComerIsToldThatTheWorldIsComplete) {
  const int port = testing::free_port();
  testing::Processes processes(2, [&](int node, const testing::Processes::Say& say) {
    log::initialise(log::Level::kOff, "");
    auto world = World::join(testing::options_for(port, 2, node, 1)).value();
    auto comm = world->communicator("all", std::array{0, 1}, node).value();
    (void)comm.barrier("ready");
    say("ready");
    std::this_thread::sleep_for(1s);
    say(comm.barrier("still alive").has_error() ? "disturbed" : "undisturbed");
  });
  EXPECT_THAT(processes.listen(0, 30s, "ready"), HasSubstr("ready"));
  auto third = meet(testing::options_for(port, 2, 1, 1));
  ASSERT_TRUE(third.has_error());
  EXPECT_THAT(third.error().message, HasSubstr("all nodes of this engine are here already"));
  for (int node = 0; node < 2; ++node) EXPECT_THAT(processes.listen(node, 30s), HasSubstr("undisturbed"));
}

}  // namespace
}  // namespace plait::comm
