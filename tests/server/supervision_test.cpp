// The front end with real engine processes: this program is its own engine, with a model whose every token depends on
// everything before it (tests/scheduler/fake_model.h). Engines are killed, hang, and meet a request that kills them;
// what receivers get must be exactly what an undisturbed run gives.
#include <random>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include "base/log.h"
#include "server/engine_process.h"
#include "server/front_end.h"
#include "tests/scheduler/fake_model.h"

namespace plait {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;

// Prompts that begin with one of these do it to the engine that runs them.
constexpr int32_t kKills = 90;
constexpr int32_t kHangs = 91;
constexpr int64_t kPages = 512;
constexpr int64_t kPageTokens = 4;

Result<LoadedEngine> load_fake(const EngineOptions& options, StartListener&) {
  if (options.model_path == "broken") return corrupt("config.json is broken");
  if (options.model_path == "dies") raise(SIGKILL);
  auto model = std::make_unique<FakeModel>(kPages, kPageTokens);
  model->before_step = [](const Step& step) {
    std::this_thread::sleep_for(500us);  // time to be killed in
    for (const StepSequence& sequence : step.sequences) {
      if (sequence.first_position > 0) continue;
      const int32_t first = step.token_ids[static_cast<size_t>(sequence.row_begin)];
      if (first == kKills) raise(SIGKILL);
      if (first == kHangs) std::this_thread::sleep_for(1h);
    }
  };
  LoadedEngine loaded{.executor = std::move(model)};
  loaded.info = {.vocab_size = FakeModel::kVocab,
                 .context_tokens = 1024,
                 .kv_tokens = kPages * kPageTokens,
                 .page_tokens = kPageTokens};
  return loaded;
}

class Ear : public OutputReceiver {
 public:
  struct Heard {
    std::vector<OutputToken> tokens;
    std::optional<Finish> finish;
  };
  explicit Ear(size_t count) : heard(count) {}
  void on_output(size_t index, RequestOutput&& output) override {
    Heard& one = heard[index];
    EXPECT_FALSE(one.finish) << "sequence " << index << " was heard of after its end";
    one.tokens.insert(one.tokens.end(), output.tokens.begin(), output.tokens.end());
    if (output.finish) {
      one.finish = output.finish;
      ++finished;
    }
    if (on_change) on_change();
  }
  size_t tokens() const {
    size_t count = 0;
    for (const Heard& one : heard) count += one.tokens.size();
    return count;
  }
  std::vector<Heard> heard;
  size_t finished = 0;
  std::function<void()> on_change;
};

class Supervision : public ::testing::Test {
 protected:
  Supervision() {
    options_.engine.model_path = "fake";
    options_.log_level = "off";
    options_.max_engine_restarts = 20;
    options_.scheduler.max_running_requests = 16;
    context_.config.vocab_size = FakeModel::kVocab;
    context_.served_model_name = "fake";
  }

  void start() {
    front_end_.emplace(
        loop_, options_, context_,
        FrontEnd::Events{.ready = [this] { ready_ = true; }, .ended = [this](int status) { ended_ = status; }});
    front_end_->start();
  }
  void start_and_wait() {
    start();
    run_until([this] { return ready_; });
  }

  // Runs the loop until the condition holds.
  void run_until(std::function<bool()> condition) {
    const auto deadline = std::chrono::steady_clock::now() + 120s;
    EventLoop::Timer timer(loop_);
    std::function<void()> look = [&] {
      if (condition() || std::chrono::steady_clock::now() > deadline) {
        loop_.stop();
      } else {
        timer.set(1ms, look);
      }
    };
    look();
    loop_.run();
    loop_.restart();
    ASSERT_TRUE(condition());
  }

  Request request(int32_t first, int64_t prompt_tokens, int64_t max_new_tokens) {
    Request one;
    one.prompt_ids.push_back(first);
    while (static_cast<int64_t>(one.prompt_ids.size()) < prompt_tokens) {
      one.prompt_ids.push_back(static_cast<int32_t>(random_() % 80));
    }
    one.sampling.max_new_tokens = max_new_tokens;
    one.sampling.seed = random_();
    one.sampling.ignore_eos = max_new_tokens > 200;  // long ones are to be long
    one.eos_token_ids = {1};
    return one;
  }
  void add(Request one) {
    SequenceRequest sequence{.request = std::move(one)};
    sequences_.push_back(std::make_unique<ClientSequence>(std::move(sequence), nullptr));
  }
  void submit() {
    ear_ = std::make_shared<Ear>(sequences_.size());
    ASSERT_FALSE(front_end_->submit(sequences_, ear_).has_error());
  }
  bool all_finished() const { return ear_->finished == sequences_.size(); }
  const Replica& replica(size_t number) const { return *front_end_->replicas()[number]; }
  pid_t engine(size_t of = 0) const { return replica(of).supervisor().pid(); }
  bool engine_ready(size_t of = 0) const { return replica(of).ready(); }
  void add_to(size_t of, Request one) {
    SequenceRequest sequence{.replica = of, .request = std::move(one)};
    sequences_.push_back(std::make_unique<ClientSequence>(std::move(sequence), nullptr));
  }

  void expect_exact(size_t index) {
    const Ear::Heard& heard = ear_->heard[index];
    const ExpectedRun expected = expected_run(sequences_[index]->request().request);
    EXPECT_EQ(difference(heard.tokens, expected), "") << "sequence " << index;
    EXPECT_EQ(heard.tokens.size(), expected.tokens.size()) << "sequence " << index;
    ASSERT_TRUE(heard.finish);
    EXPECT_EQ(heard.finish->kind, expected.finish) << heard.finish->message;
  }

  std::mt19937 random_{3};
  ServeOptions options_;
  ApiContext context_;
  EventLoop loop_{1};
  std::optional<FrontEnd> front_end_;
  std::vector<std::unique_ptr<ClientSequence>> sequences_;
  std::shared_ptr<Ear> ear_;
  bool ready_ = false;
  std::optional<int> ended_;
};

TEST_F(Supervision, UndisturbedRequestsAreExact) {
  start_and_wait();
  for (int i = 0; i < 20; ++i) add(request(i, 1 + i, 30));
  submit();
  run_until([this] { return all_finished(); });
  for (size_t i = 0; i < sequences_.size(); ++i) expect_exact(i);
  EXPECT_EQ(front_end_->unfinished(), 0U);
}

TEST_F(Supervision, KilledEnginesLoseNothing) {
  options_.max_engine_restarts = 1000;
  start_and_wait();
  constexpr int kKillCount = 5;
  for (int i = 0; i < 50; ++i) add(request(i % 80, 5 + i % 40, 60 + i));
  submit();
  for (int kill_count = 0; kill_count < kKillCount; ++kill_count) {
    const size_t before = ear_->tokens();
    const size_t progress = 100 + random_() % 150;
    run_until([&] { return (engine_ready() && ear_->tokens() >= before + progress) || all_finished(); });
    if (all_finished()) break;
    ::kill(engine(), SIGKILL);
    run_until([&] { return !engine_ready(); });
  }
  run_until([this] { return all_finished(); });
  for (size_t i = 0; i < sequences_.size(); ++i) expect_exact(i);
  EXPECT_GE(replica(0).supervisor().restarts(), 3U);
  std::printf("killed the engine %d times under 50 requests\n", static_cast<int>(replica(0).supervisor().restarts()));
}

// SIGUSR1 would end a process that does not expect it: from its first moment on, an engine does.
TEST_F(Supervision, QuestionsNeverEndAnEngine) {
  start();
  int64_t before_ready = 0, questions = 0;
  const auto ask = [&] {
    for (int i = 0; i < 20 && engine() > 0; ++i, ++questions) ::kill(engine(), SIGUSR1);
  };
  run_until([&] {
    ask();
    return ready_;
  });
  before_ready = questions;
  for (int i = 0; i < 10; ++i) add(request(i, 5, 100));
  submit();
  run_until([&] {
    ask();
    return all_finished();
  });
  for (size_t i = 0; i < sequences_.size(); ++i) expect_exact(i);
  EXPECT_EQ(replica(0).supervisor().restarts(), 0U);
  std::printf("%ld questions to an engine, %ld of them before it was ready\n", questions, before_ready);
  EXPECT_GT(before_ready, 0);
}

TEST_F(Supervision, ARequestThatKillsEveryEngineIsGivenUpAlone) {
  start_and_wait();
  for (int i = 0; i < 12; ++i) add(request(i == 7 ? kKills : i, 10, 400));
  submit();
  run_until([this] { return all_finished(); });
  for (size_t i = 0; i < sequences_.size(); ++i) {
    if (i == 7) {
      EXPECT_EQ(ear_->heard[i].finish->kind, FinishKind::kAbort);
      EXPECT_EQ(ear_->heard[i].finish->error, ErrorKind::kInternal);
      EXPECT_THAT(ear_->heard[i].finish->message, HasSubstr("suspected"));
    } else {
      expect_exact(i);
    }
  }
  EXPECT_EQ(replica(0).supervisor().restarts(), static_cast<uint64_t>(Ledger::kPoisonStrikes));
}

TEST_F(Supervision, AHangingEngineIsKilled) {
  options_.watchdog_timeout = 1s;
  start_and_wait();
  add(request(5, 10, 50));
  add(request(kHangs, 10, 50));
  submit();
  run_until([this] { return all_finished(); });
  expect_exact(0);
  EXPECT_EQ(ear_->heard[1].finish->error, ErrorKind::kInternal);
  EXPECT_EQ(replica(0).supervisor().restarts(), static_cast<uint64_t>(Ledger::kPoisonStrikes));
}

TEST_F(Supervision, GivesUpAfterTooManyDeaths) {
  options_.max_engine_restarts = 1;
  start_and_wait();
  add(request(5, 10, 900));
  submit();
  for (int death = 0; death < 2; ++death) {
    run_until([&] { return engine_ready() && ear_->tokens() > 0; });
    ::kill(engine(), SIGKILL);
    run_until([&] { return !engine_ready(); });
  }
  run_until([this] { return ended_.has_value(); });
  EXPECT_EQ(ended_, 1);
  ASSERT_TRUE(ear_->heard[0].finish);
  EXPECT_EQ(ear_->heard[0].finish->error, ErrorKind::kInternal);
  EXPECT_TRUE(front_end_->refusal().has_value());
}

TEST_F(Supervision, AnEngineThatCannotStartEndsTheServer) {
  for (const char* model : {"broken", "dies"}) {
    ended_.reset();
    options_.engine.model_path = model;
    start();
    run_until([this] { return ended_.has_value(); });
    EXPECT_EQ(ended_, 1);
    EXPECT_EQ(replica(0).supervisor().restarts(), 0U) << "what cannot start is not tried again";
    EXPECT_FALSE(ready_);
  }
}

TEST_F(Supervision, AbandonedAndAbortedRequestsLeaveTheEngine) {
  start_and_wait();
  for (int i = 0; i < 4; ++i) add(request(i, 10, 900));
  submit();
  run_until([&] { return ear_->tokens() > 20; });
  front_end_->abandon(sequences_[0]->id());
  front_end_->abandon(sequences_[0]->id());
  front_end_->abort(sequences_[1]->request().rid);
  front_end_->abort("unknown");
  EXPECT_FALSE(ear_->heard[0].finish) << "nobody wants to hear of it";
  ASSERT_TRUE(ear_->heard[1].finish);
  EXPECT_EQ(ear_->heard[1].finish->error, ErrorKind::kCancelled);
  front_end_->abort_all();
  EXPECT_EQ(ear_->finished, 3U);
  EXPECT_EQ(front_end_->unfinished(), 0U);
  run_until([&] { return replica(0).supervisor().load().running == 0; });
  std::optional<bool> flushed;
  front_end_->flush_cache([&](std::optional<bool> result) { flushed = result; });
  run_until([&] { return flushed.has_value(); });
  EXPECT_TRUE(*flushed);
}

TEST_F(Supervision, TheQueueIsBounded) {
  options_.scheduler.max_running_requests = 2;
  options_.scheduler.max_queued_requests = 3;
  start_and_wait();
  for (int i = 0; i < 6; ++i) add(request(i, 5, 100));
  const auto refused = front_end_->submit(sequences_, std::make_shared<Ear>(6));
  ASSERT_TRUE(refused.has_error());
  EXPECT_EQ(refused.error().status, 503);
  EXPECT_TRUE(refused.error().retry_after_s.has_value());
  EXPECT_EQ(front_end_->unfinished(), 0U) << "all or none";
  sequences_.pop_back();
  submit();
  ::kill(engine(), SIGKILL);
  run_until([this] { return all_finished(); });
  for (size_t i = 0; i < sequences_.size(); ++i) expect_exact(i);
}

TEST_F(Supervision, TimeLimitsHoldWithAndWithoutAnEngine) {
  start_and_wait();
  Request late = request(3, 10, 900);
  late.time_limit = 100ms;
  add(late);
  submit();
  run_until([this] { return all_finished(); });
  EXPECT_EQ(ear_->heard[0].finish->error, ErrorKind::kDeadline);

  // An engine that is stopped while it starts: the front end keeps the time.
  sequences_.clear();
  ::kill(engine(), SIGKILL);
  run_until([&] { return !engine_ready(); });
  run_until([&] { return engine() > 0; });
  ::kill(engine(), SIGSTOP);
  late.time_limit = 200ms;
  add(late);
  submit();
  run_until([this] { return all_finished(); });
  EXPECT_EQ(ear_->heard[0].finish->error, ErrorKind::kDeadline);
  ::kill(engine(), SIGCONT);
}

TEST_F(Supervision, DrainsAndEnds) {
  start_and_wait();
  for (int i = 0; i < 4; ++i) add(request(i, 10, 100));
  submit();
  front_end_->drain([] { return 0; });
  EXPECT_TRUE(front_end_->refusal().has_value());
  run_until([this] { return ended_.has_value(); });
  EXPECT_EQ(ended_, 0);
  EXPECT_TRUE(all_finished());
  for (size_t i = 0; i < sequences_.size(); ++i) expect_exact(i);
  EXPECT_EQ(engine(), -1);
}

TEST_F(Supervision, RequestsAreSharedOutAmongReplicas) {
  options_.engine.parallel.dp_size = 3;
  options_.scheduler.max_running_requests = 3;
  options_.scheduler.max_queued_requests = 2;
  start_and_wait();
  for (int i = 0; i < 4; ++i) add_to(1, request(i, 5, 300));
  for (int i = 4; i < 14; ++i) add(request(i, 5, 300));
  submit();
  EXPECT_EQ(replica(0).unfinished(), 5U);
  EXPECT_EQ(replica(1).unfinished(), 5U);
  EXPECT_EQ(replica(2).unfinished(), 4U);
  std::vector<std::unique_ptr<ClientSequence>> more;
  const auto one_more = [&](std::optional<size_t> of) {
    more.push_back(
        std::make_unique<ClientSequence>(SequenceRequest{.replica = of, .request = request(3, 5, 4)}, nullptr));
  };
  one_more(0);
  EXPECT_TRUE(front_end_->submit(more, std::make_shared<Ear>(1)).has_error()) << "that one has no room";
  more.clear();
  one_more({});
  one_more({});
  EXPECT_TRUE(front_end_->submit(more, std::make_shared<Ear>(2)).has_error()) << "there is room for one: all or none";
  EXPECT_EQ(front_end_->unfinished(), 14U);
  more.pop_back();
  EXPECT_FALSE(front_end_->submit(more, std::make_shared<Ear>(1)).has_error());
  EXPECT_EQ(replica(2).unfinished(), 5U);
  run_until([this] { return front_end_->unfinished() == 0; });
  for (size_t i = 0; i < sequences_.size(); ++i) expect_exact(i);
}

TEST_F(Supervision, KilledReplicasLoseNothingAndLeaveTheOthersAlone) {
  options_.engine.parallel.dp_size = 3;
  options_.max_engine_restarts = 1000;
  start_and_wait();
  const pid_t unharmed = engine(1);
  for (int i = 0; i < 60; ++i) add(request(i % 80, 5 + i % 40, 120 + i));
  submit();
  int kills = 0;
  for (; kills < 8; ++kills) {
    const size_t victim = kills % 2 == 0 ? 0 : 2;
    const size_t before = ear_->tokens();
    const size_t progress = 100 + random_() % 300;
    run_until([&] { return (engine_ready(victim) && ear_->tokens() >= before + progress) || all_finished(); });
    if (all_finished()) break;
    ::kill(engine(victim), SIGKILL);
    run_until([&] { return !engine_ready(victim); });
    EXPECT_TRUE(front_end_->healthy());
  }
  run_until([this] { return all_finished(); });
  for (size_t i = 0; i < sequences_.size(); ++i) expect_exact(i);
  EXPECT_GE(kills, 3);
  EXPECT_EQ(replica(0).supervisor().restarts() + replica(2).supervisor().restarts(), static_cast<uint64_t>(kills));
  EXPECT_EQ(engine(1), unharmed);
  std::printf("killed engines of two of three replicas %d times under 60 requests\n", kills);
}

TEST_F(Supervision, ARequestThatKillsEveryEngineMeetsOnlyItsOwnReplica) {
  options_.engine.parallel.dp_size = 2;
  start_and_wait();
  const pid_t unharmed = engine(0);
  for (int i = 0; i < 5; ++i) add_to(0, request(i, 10, 300));
  for (int i = 5; i < 9; ++i) add_to(1, request(i, 10, 300));
  add_to(1, request(kKills, 10, 300));
  submit();
  run_until([this] { return all_finished(); });
  for (size_t i = 0; i + 1 < sequences_.size(); ++i) expect_exact(i);
  EXPECT_EQ(ear_->heard.back().finish->error, ErrorKind::kInternal);
  EXPECT_EQ(replica(1).supervisor().restarts(), static_cast<uint64_t>(Ledger::kPoisonStrikes));
  EXPECT_EQ(engine(0), unharmed);
}

TEST_F(Supervision, AReplicaThatIsGivenUpEndsTheServerWhenTheOthersAreDone) {
  options_.engine.parallel.dp_size = 2;
  options_.max_engine_restarts = 0;
  start_and_wait();
  add_to(0, request(3, 10, 300));
  add_to(1, request(4, 10, 300));
  submit();
  run_until([&] { return !ear_->heard[0].tokens.empty() && !ear_->heard[1].tokens.empty(); });
  ::kill(engine(1), SIGKILL);
  run_until([this] { return ended_.has_value(); });
  EXPECT_EQ(ended_, 1);
  expect_exact(0);
  ASSERT_TRUE(ear_->heard[1].finish);
  EXPECT_EQ(ear_->heard[1].finish->error, ErrorKind::kInternal);
  EXPECT_EQ(engine(0), -1);
}

TEST_F(Supervision, DuplicateRidsAreRefused) {
  start_and_wait();
  const auto with_rid = [&](const char* rid) {
    SequenceRequest sequence{.rid = rid, .request = request(3, 5, 400)};
    sequences_.push_back(std::make_unique<ClientSequence>(std::move(sequence), nullptr));
  };
  with_rid("a");
  with_rid("a");
  EXPECT_TRUE(front_end_->submit(sequences_, std::make_shared<Ear>(2)).has_error());
  sequences_.pop_back();
  submit();
  std::vector<std::unique_ptr<ClientSequence>> again;
  again.push_back(std::make_unique<ClientSequence>(SequenceRequest{.rid = "a", .request = request(3, 5, 4)}, nullptr));
  EXPECT_TRUE(front_end_->submit(again, std::make_shared<Ear>(1)).has_error());
  run_until([this] { return all_finished(); });
  EXPECT_FALSE(front_end_->submit(again, std::make_shared<Ear>(1)).has_error()) << "the rid is free again";
}

}  // namespace
}  // namespace plait

int main(int argc, char** argv) {
  if (argc == 3 && std::string_view(argv[1]) == "engine") {
    return plait::run_engine_process(std::atoi(argv[2]), plait::load_fake);
  }
  ::signal(SIGPIPE, SIG_IGN);
  plait::log::initialise(plait::log::Level::kOff, "");
  ::testing::InitGoogleMock(&argc, argv);
  return RUN_ALL_TESTS();
}
