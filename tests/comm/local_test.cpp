// Thread ranks of one process.
#include <sys/resource.h>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "comm/signal.h"
#include "tests/comm/battery.h"

namespace plait::comm {
namespace {

using std::chrono::milliseconds;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using testing::Report;

std::vector<int> first_ranks(int count) {
  std::vector<int> ranks;
  for (int rank = 0; rank < count; ++rank) ranks.push_back(rank);
  return ranks;
}

// One thread per rank, each with the errors it saw.
std::vector<Status> run(World& world, const std::vector<int>& ranks, const std::function<Status(Communicator&)>& body,
                        std::string_view group = "group") {
  std::vector<Status> statuses(ranks.size());
  testing::run_ranks(world, ranks, group, [&](Communicator& comm) {
    statuses[static_cast<size_t>(comm.rank())] = body(comm);
    return Report{};
  });
  return statuses;
}

int count_kind(const std::vector<Status>& statuses, ErrorKind kind) {
  int count = 0;
  for (const Status& status : statuses) count += status.has_error() && status.error().kind == kind;
  return count;
}

TEST(Local, EveryCollectiveIsRightForEveryGroupSize) {
  int64_t cases = 0;
  for (int size = 1; size <= 8; ++size) {
    auto world = World::local(size);
    const Report report = testing::run_ranks(*world, first_ranks(size), "all", [](Communicator& comm) {
      return testing::run_battery(comm, testing::kSizes);
    });
    cases += report.cases;
    EXPECT_THAT(report.failures, ::testing::IsEmpty());
  }
  fmt::print("local: {} collectives of 1 to 8 ranks compared bit by bit\n", cases);
}

TEST(Local, GroupsInAnyOrderWorkSideBySide) {
  auto world = World::local(6);
  const std::vector<int> odd = {5, 1, 3}, even = {4, 0, 2};
  std::vector<std::thread> threads;
  std::atomic<int64_t> cases{0};
  for (const auto* ranks : {&odd, &even}) {
    threads.emplace_back([&, ranks] {
      const Report report = testing::run_ranks(*world, *ranks, ranks == &odd ? "odd" : "even", [](Communicator& comm) {
        return testing::run_battery(comm, std::array<int64_t, 2>{129, 20000});
      });
      EXPECT_THAT(report.failures, ::testing::IsEmpty());
      cases += report.cases;
    });
  }
  for (auto& thread : threads) thread.join();
  fmt::print("two groups of one world at once: {} collectives\n", cases.load());
}

struct Mismatch {
  const char* what;
  std::function<Status(Communicator&)> usual;
  std::function<Status(Communicator&)> other;  // what member 2 calls
  std::vector<const char*> named;
};

TEST(Local, CallsThatDoNotMatchAreReportedNotHung) {
  static float in[64], out[3][512];
  const auto o = [](Communicator& comm) { return out[comm.rank()]; };
  const std::vector<int64_t> even = {4, 4, 4}, skewed = {2, 4, 6};
  const std::vector<Mismatch> cases = {
      {"kind",
       [&](Communicator& c) { return c.all_reduce("x", in, o(c), 8, DType::kF32); },
       [&](Communicator& c) { return c.all_gather("x", in, o(c), 8, DType::kF32); },
       {"all_reduce 'x'", "all_gather 'x'"}},
      {"count",
       [&](Communicator& c) { return c.all_reduce("x", in, o(c), 8, DType::kF32); },
       [&](Communicator& c) { return c.all_reduce("x", in, o(c), 9, DType::kF32); },
       {"of 8 F32", "of 9 F32"}},
      {"dtype",
       [&](Communicator& c) { return c.all_reduce("x", in, o(c), 8, DType::kF32); },
       [&](Communicator& c) { return c.all_reduce("x", in, o(c), 8, DType::kBF16); },
       {"8 F32", "8 BF16"}},
      {"name",
       [&](Communicator& c) { return c.barrier("layer 3"); },
       [&](Communicator& c) { return c.barrier("layer 4"); },
       {"layer 3", "layer 4"}},
      {"root",
       [&](Communicator& c) { return c.broadcast("x", o(c), 8, DType::kF32, 0); },
       [&](Communicator& c) { return c.broadcast("x", o(c), 8, DType::kF32, 1); },
       {"from member 0", "from member 1"}},
      {"counts",
       [&](Communicator& c) { return c.all_gather("x", in, o(c), even, DType::kF32); },
       [&](Communicator& c) { return c.all_gather("x", in, o(c), skewed, DType::kF32); },
       {"by rank"}},
      {"small and large",
       [&](Communicator& c) { return c.all_reduce("x", in, o(c), 8, DType::kF32); },
       [&](Communicator& c) {
         std::vector<float> large(100000);
         return c.all_reduce("x", large.data(), large.data(), 100000, DType::kF32);
       },
       {"of 8 F32", "of 100000 F32"}},
      {"what is sent and expected",
       [&](Communicator& c) { return c.all_to_all("x", in, even, o(c), even, DType::kF32); },
       [&](Communicator& c) { return c.all_to_all("x", in, even, o(c), skewed, DType::kF32); },
       {"rank 0 sends 4 F32 to rank 2", "expects 2"}},
      {"message",
       [&](Communicator& c) { return c.rank() == 0 ? c.send("x", in, 8, DType::kF32, 2) : Status{}; },
       [&](Communicator& c) { return c.receive("x", o(c), 7, DType::kF32, 0); },
       {"send 'x' of 7 F32", "send 'x' of 8 F32"}},
  };
  for (const Mismatch& c : cases) {
    SCOPED_TRACE(c.what);
    auto world = World::local(3);
    world->set_deadline(milliseconds(60000));
    const auto begin = Clock::now();
    const auto statuses = run(*world, first_ranks(3), [&](Communicator& comm) -> Status {
      PLAIT_RETURN_IF_ERROR((comm.rank() == 2 ? c.other : c.usual)(comm));
      return comm.barrier("after");  // whoever got through waits here
    });
    EXPECT_LT(Clock::now() - begin, milliseconds(5000)) << "by the deadline, not by the mismatch";
    EXPECT_GE(count_kind(statuses, ErrorKind::kInternal), 1);
    EXPECT_EQ(count_kind(statuses, ErrorKind::kInternal) + count_kind(statuses, ErrorKind::kCancelled), 3);
    ASSERT_TRUE(world->failure().has_value());
    EXPECT_EQ(world->failure()->kind, FailureKind::kMismatch);
    for (const char* named : c.named) EXPECT_THAT(world->failure()->message, HasSubstr(named));
  }
  fmt::print("{} kinds of mismatch reported\n", cases.size());
}

TEST(Local, ImpossibleArgumentsAreRefusedAndFreeThePeers) {
  auto world = World::local(2);
  float data[4] = {};
  const auto statuses = run(*world, first_ranks(2), [&](Communicator& comm) {
    return comm.rank() == 0 ? comm.all_reduce("sum of integers", data, data, 4, DType::kI32) : comm.barrier("wait");
  });
  EXPECT_EQ(statuses[0].error().kind, ErrorKind::kInvalid);
  EXPECT_THAT(statuses[0].error().message, HasSubstr("I32 cannot be summed"));
  EXPECT_EQ(statuses[1].error().kind, ErrorKind::kCancelled);
}

TEST(Local, TheLateRankIsNamed) {
  for (int late = 0; late < 4; ++late) {
    auto world = World::local(4);
    world->set_deadline(milliseconds(800));  // far above what a busy machine delays the others
    std::atomic<bool> over{false};
    const auto statuses = run(*world, first_ranks(4), [&](Communicator& comm) -> Status {
      comm.set_step(42);
      PLAIT_RETURN_IF_ERROR(comm.barrier("in time"));
      if (comm.rank() == late) {
        while (!over.load()) std::this_thread::sleep_for(milliseconds(1));
        return {};
      }
      const Status status = comm.barrier("layer 7 attention out");
      over.store(true);
      return status;
    });
    EXPECT_EQ(count_kind(statuses, ErrorKind::kDeadline), 1);
    EXPECT_EQ(count_kind(statuses, ErrorKind::kCancelled), 2);
    ASSERT_TRUE(world->failure().has_value());
    EXPECT_EQ(world->failure()->rank, late);
    EXPECT_EQ(world->failure()->kind, FailureKind::kPeerTimeout);
    EXPECT_THAT(world->failure()->message,
                HasSubstr(fmt::format("for rank {} in barrier 'layer 7 attention out' (call 2 of "
                                      "group 'group', step 42)",
                                      late)));
  }
}

TEST(Local, TheDeadlineOfAGroupAndOfAReceiver) {
  auto world = World::local(2);
  world->set_deadline(milliseconds(60000));
  const auto begin = Clock::now();
  const auto statuses = run(*world, first_ranks(2), [&](Communicator& comm) -> Status {
    comm.set_deadline(milliseconds(50));
    float data = 0;
    return comm.rank() == 0 ? comm.receive("never sent", &data, 1, DType::kF32, 1) : Status{};
  });
  EXPECT_EQ(statuses[0].error().kind, ErrorKind::kDeadline);
  // No less than it was given, and said in milliseconds.
  EXPECT_THAT(statuses[0].error().message, ContainsRegex("rank 0 waited ([5-9][0-9]|[1-9][0-9][0-9])[.0-9]* ms "));
  EXPECT_THAT(statuses[0].error().message, HasSubstr("for rank 1 in receiving send 'never sent'"));
  EXPECT_GE(Clock::now() - begin, milliseconds(50));
  EXPECT_LT(Clock::now() - begin, milliseconds(2000)) << "the world's deadline, not the group's";
}

// Lines of describe_activity(), asked again until one says it: ranks need a moment to get where they wait.
std::string activity_with(const World& world, const std::string& text) {
  const auto until = Clock::now() + milliseconds(20000);
  std::string said;
  while (Clock::now() < until) {
    said = fmt::format("{}", fmt::join(world.describe_activity(), "\n"));
    if (said.find(text) != std::string::npos) break;
    std::this_thread::sleep_for(milliseconds(1));
  }
  return said;
}

TEST(Local, EveryRankSaysWhatItWaitsFor) {
  auto world = World::local(3);
  const auto nothing_to_do =
      ::testing::ElementsAre("rank 0 has no step to do", "rank 1 has no step to do", "rank 2 has no step to do");
  EXPECT_THAT(world->describe_activity(), nothing_to_do);
  const Result<Communicator> unused = world->communicator("unused", first_ranks(3), 1);
  ASSERT_TRUE(unused.has_value());
  EXPECT_THAT(world->describe_activity(), nothing_to_do) << "a group alone is no step";
  std::atomic<bool> barrier{false}, message{false};
  std::thread ranks([&] {
    run(*world, first_ranks(3), [&](Communicator& comm) -> Status {
      const auto wait_for = [](const std::atomic<bool>& flag) {
        while (!flag.load()) std::this_thread::sleep_for(milliseconds(1));
      };
      comm.set_step(7);
      const std::vector<int64_t> counts = {1, 1, 1};
      std::array<int64_t, 3> in{}, out{};
      if (comm.rank() == 1) wait_for(barrier);
      if (comm.rank() == 2)
        PLAIT_RETURN_IF_ERROR(comm.all_to_all_start("experts", in.data(), counts, DType::kU8));
      else
        PLAIT_RETURN_IF_ERROR(comm.all_to_all("experts", in.data(), counts, out.data(), counts, DType::kU8));
      if (comm.rank() == 2) {
        wait_for(barrier);
        PLAIT_RETURN_IF_ERROR(comm.all_to_all_pieces());
        PLAIT_RETURN_IF_ERROR(comm.all_to_all_finish());
      }
      comm.set_step(std::nullopt);
      if (comm.rank() == 0) PLAIT_RETURN_IF_ERROR(comm.receive("tokens", out.data(), 1, DType::kU8, 1));
      if (comm.rank() == 1) {
        wait_for(message);
        PLAIT_RETURN_IF_ERROR(comm.send("tokens", in.data(), 1, DType::kU8, 0));
      }
      return {};
    });
  });
  std::string said = activity_with(*world, "rank 2 has been");
  EXPECT_THAT(said,
              ContainsRegex("rank 2 has been .* in all_to_all 'experts' of U8 \\(call 1 of group 'group', step 7\\), "
                            "and waits for nobody"));
  said = activity_with(*world, "rank 0 has waited");
  EXPECT_THAT(said, ContainsRegex("rank 0 has waited [0-9.]* [mu]?s for rank 1 in all_to_all 'experts' of U8 "
                                  "\\(call 1 of group 'group', step 7\\)"));
  // Each says so when it has come to it, and not before.
  said = activity_with(*world, "rank 1 computes");
  EXPECT_THAT(said, HasSubstr("rank 1 computes in step 7"));
  barrier.store(true);
  said = activity_with(*world, "receiving");
  EXPECT_THAT(said,
              ContainsRegex("rank 0 has waited .* for rank 1 in receiving send 'tokens' of 1 U8 \\(group 'group'\\)"));
  said = activity_with(*world, "rank 1 has no step");
  EXPECT_THAT(said, ContainsRegex("rank 1 has no step to do; its last call began .* ago: all_to_all 'experts' of U8 "
                                  "\\(call 1 of group 'group'\\)"));
  message.store(true);
  ranks.join();
  world->cancel("rank 1 ran out of pages", 1);
  EXPECT_THAT(world->describe_activity().front(), HasSubstr("the ranks work no more: rank 1 ran out of pages"));
}

TEST(Local, AskingWhatRanksDoDisturbsNobody) {
  auto world = World::local(4);
  std::atomic<bool> over{false};
  int64_t asked = 0, waits = 0;
  std::thread asking([&] {
    while (!over.load()) {
      for (const std::string& line : world->describe_activity()) waits += line.find("has waited") != std::string::npos;
      ++asked;
    }
  });
  const Report report = testing::run_ranks(
      *world, first_ranks(4), "all", [](Communicator& comm) { return testing::run_battery(comm, testing::kSizes); });
  over.store(true);
  asking.join();
  EXPECT_THAT(report.failures, ::testing::IsEmpty());
  fmt::print("asked {} times during {} collectives, {} waits were named\n", asked, report.cases, waits);
  EXPECT_GT(waits, 0);
}

TEST(Local, WithoutADeadlineWaitsAreLong) {
  auto world = World::local(2);
  const auto statuses = run(*world, first_ranks(2), [&](Communicator& comm) {
    if (comm.rank() == 1) std::this_thread::sleep_for(milliseconds(300));
    return comm.barrier("slow start");
  });
  for (const Status& status : statuses) EXPECT_FALSE(status.has_error());
}

TEST(Local, OneFailureEndsWaitsInOtherGroups) {
  auto world = World::local(4);
  std::vector<Status> other;
  std::thread waiting([&] {
    other = run(
        *world, {2, 3},
        [](Communicator& comm) -> Status {
          return comm.rank() == 0 ? comm.barrier("other group") : Status{};  // member 1 never comes
        },
        "b");
  });
  std::this_thread::sleep_for(milliseconds(50));
  const auto begin = Clock::now();
  run(
      *world, {0, 1},
      [](Communicator& comm) -> Status {
        if (comm.rank() == 0) {
          comm.cancel("rank 0 ran out of pages");
          return {};
        }
        return comm.barrier("same group");
      },
      "a");
  waiting.join();
  EXPECT_LT(Clock::now() - begin, milliseconds(1000));
  EXPECT_EQ(other[0].error().kind, ErrorKind::kCancelled);
  EXPECT_THAT(other[0].error().message, HasSubstr("rank 0 ran out of pages"));
}

// A rank that gives up must not take its memory away from one that still reads it.
TEST(Local, CancellingDuringLargeCallsIsSafe) {
  std::atomic<int64_t> calls{0};
  for (int round = 0; round < 60; ++round) {
    auto world = World::local(3);
    std::thread killer([&] {
      std::this_thread::sleep_for(std::chrono::microseconds(500 + 400 * (round % 20)));
      world->cancel("enough");
    });
    run(*world, first_ranks(3), [&](Communicator& comm) -> Status {
      for (;;) {
        std::vector<float> data(100000 + static_cast<size_t>(round), 1.0F);  // freed at each end
        auto status =
            comm.all_reduce("large", data.data(), data.data(), static_cast<int64_t>(data.size()), DType::kF32);
        if (status.has_error()) return status;
        ++calls;
        if (data[17] != 3.0F) ADD_FAILURE();
      }
    });
    killer.join();
  }
  fmt::print("60 worlds cancelled in the middle of {} large calls\n", calls.load());
}

TEST(Local, GroupsThatCannotBeAreRefused) {
  auto world = World::local(4);
  const auto message = [&](std::vector<int> ranks, int rank, std::string_view name = "g") {
    auto comm = world->communicator(name, ranks, rank);
    return comm.has_error() ? comm.error().message : std::string();
  };
  EXPECT_THAT(message({0, 1, 1}, 0), HasSubstr("listed twice"));
  EXPECT_THAT(message({0, 4}, 0), HasSubstr("ranks 0 to 3"));
  EXPECT_THAT(message({0, 1}, 2), HasSubstr("rank 2 is not one of them"));
  EXPECT_EQ(message({0, 1}, 0), "");
  EXPECT_THAT(message({0, 1}, 0), HasSubstr("has its communicator already"));
  EXPECT_THAT(message({1, 0}, 1), HasSubstr("another rank listed 0,1"));
}

// Eight ranks on this machine's few cores, seven of which wait: they sleep.
TEST(Local, WaitingRanksDoNotBurnCores) {
  auto world = World::local(8);
  const auto cpu_seconds = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
  };
  const double before = cpu_seconds();
  run(*world, first_ranks(8), [&](Communicator& comm) -> Status {
    for (int i = 0; i < 50; ++i) {
      if (comm.rank() == 0) std::this_thread::sleep_for(milliseconds(10));
      PLAIT_RETURN_IF_ERROR(comm.barrier("tick"));
    }
    return {};
  });
  const double spent = cpu_seconds() - before;
  fmt::print("8 ranks waiting for 0.5 s used {:.0f} ms of CPU\n", spent * 1000);
#ifndef __SANITIZE_THREAD__
  EXPECT_LT(spent, 0.25);
#endif
}

}  // namespace
}  // namespace plait::comm
