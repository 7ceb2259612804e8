#include "scheduler/scheduler.h"

#include <ctime>
#include <future>
#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pthread.h>

#include "base/log.h"
#include "scheduler/step_log.h"
#include "tests/scheduler/fake_model.h"

namespace plait {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

Request request_of(RequestId id, int64_t prompt_tokens, int64_t max_new_tokens) {
  Request request;
  request.id = id;
  for (int64_t i = 0; i < prompt_tokens; ++i)
    request.prompt_ids.push_back(static_cast<int32_t>((static_cast<int64_t>(id % 5) + i) % FakeModel::kVocab));
  request.sampling.max_new_tokens = max_new_tokens;
  request.sampling.seed = id;
  return request;
}

// Everything that the sink heard; waits for ends.
class Ear {
 public:
  struct Heard {
    std::vector<OutputToken> tokens;
    std::optional<Finish> finish;
  };

  Scheduler::OutputSink sink() {
    return [this](std::vector<RequestOutput>&& outputs) {
      const std::lock_guard lock(mutex_);
      for (RequestOutput& output : outputs) {
        Heard& one = heard_[output.id];
        EXPECT_FALSE(one.finish) << "request " << output.id << " was heard of after its end";
        one.tokens.insert(one.tokens.end(), output.tokens.begin(), output.tokens.end());
        one.finish = std::move(output.finish);
      }
      changed_.notify_all();
    };
  }
  Heard wait_for_end(RequestId id) {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, 60s, [&] { return heard_[id].finish.has_value(); })) << "request " << id;
    return heard_[id];
  }
  Heard heard(RequestId id) {
    const std::lock_guard lock(mutex_);
    return heard_[id];
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<RequestId, Heard> heard_;
};

class SchedulerTest : public testing::Test {
 protected:
  void SetUp() override { log::initialise(log::Level::kWarning, ""); }
  void TearDown() override { stop(); }

  void start(const SchedulerOptions& options, int64_t pages = 200, int64_t page_tokens = 4) {
    model = std::make_unique<FakeModel>(pages, page_tokens);
    model->before_step = [this](const Step& step) {
      if (gate_steps) gate(step);
    };
    scheduler = std::make_unique<Scheduler>(options, *model, ear.sink());
    runner = std::thread([this] { scheduler->run(); });
  }
  void stop() {
    open_gate();
    if (!runner.joinable()) return;
    scheduler->stop();
    runner.join();
  }

  // With gate_steps, every step waits here until pass_step() or open_gate().
  void gate(const Step& step) {
    std::unique_lock lock(mutex);
    seen_steps.push_back(step);
    arrived.notify_all();
    passed.wait(lock, [this] { return passes > 0 || gate_is_open; });
    if (passes > 0) --passes;
  }
  Step wait_for_step(size_t number) {
    std::unique_lock lock(mutex);
    EXPECT_TRUE(arrived.wait_for(lock, 60s, [&] { return seen_steps.size() > number; }));
    return seen_steps[number];
  }
  void pass_step() {
    const std::lock_guard lock(mutex);
    ++passes;
    passed.notify_all();
  }
  void open_gate() {
    const std::lock_guard lock(mutex);
    gate_is_open = true;
    passed.notify_all();
  }

  Ear ear;
  std::unique_ptr<FakeModel> model;
  std::unique_ptr<Scheduler> scheduler;
  std::thread runner;
  std::atomic<bool> gate_steps = false;
  std::mutex mutex;
  std::condition_variable arrived, passed;
  std::vector<Step> seen_steps;
  int passes = 0;
  bool gate_is_open = false;
};

TEST_F(SchedulerTest, ManyThreadsSubmitAndAbort) {
  start({.max_running_requests = 8, .chunked_prefill_tokens = 16, .conservativeness = 0}, 40);
  model->before_step = [](const Step&) { std::this_thread::sleep_for(50us); };
  constexpr size_t kThreads = 4, kEach = 200;
  std::vector<Request> requests(kThreads * kEach);
  std::atomic<int> aborts = 0, flushes = 0;
  std::vector<std::thread> threads;
  for (size_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      std::mt19937_64 random(thread);
      for (size_t i = 0; i < kEach; ++i) {
        const size_t id = thread * kEach + i;
        requests[id] = request_of(id, 1 + static_cast<int64_t>(random() % 40), static_cast<int64_t>(random() % 30));
        ASSERT_FALSE(scheduler->submit(requests[id]).has_error());
        if (random() % 4 == 0) {
          scheduler->abort(id - random() % std::min<size_t>(i + 1, 10));
          ++aborts;
        }
        if (random() % 20 == 0) flushes += scheduler->flush_cache() ? 1 : 0;
        const SchedulerLoad load = scheduler->load();
        ASSERT_LE(load.kv_used_tokens + load.kv_evictable_tokens, load.kv_tokens);
        ASSERT_LE(load.running, 8);
        if (random() % 8 == 0) std::this_thread::sleep_for(1ms);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  int cut = 0;
  for (const Request& request : requests) {
    const auto heard = ear.wait_for_end(request.id);
    const ExpectedRun expected = expected_run(request);
    ASSERT_EQ(difference(heard.tokens, expected), "");
    if (heard.finish->kind == FinishKind::kAbort)
      ++cut;
    else
      ASSERT_EQ(heard.tokens.size(), expected.tokens.size());
  }
  const SchedulerLoad load = scheduler->load();
  EXPECT_EQ(load.running, 0);
  EXPECT_EQ(load.queued, 0);
  EXPECT_EQ(load.kv_used_tokens, 0);
  EXPECT_EQ(load.aborted, static_cast<uint64_t>(cut));
  EXPECT_GT(load.generation_rate, 0);
  EXPECT_TRUE(scheduler->flush_cache());
  std::printf("%zu requests from %zu threads: %d aborts called, %d in time, %d flushes, %lu steps, %lu retractions\n",
              requests.size(), kThreads, aborts.load(), cut, flushes.load(), load.steps, load.retractions);
}

TEST_F(SchedulerTest, AnIdleSchedulerUsesNoCpu) {
  start({});
  ASSERT_FALSE(scheduler->submit(request_of(1, 10, 10)).has_error());
  ear.wait_for_end(1);
  std::this_thread::sleep_for(300ms);
  clockid_t clock;
  ASSERT_EQ(pthread_getcpuclockid(runner.native_handle(), &clock), 0);
  const auto cpu_ns = [clock] {
    timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * 1'000'000'000L + time.tv_nsec;
  };
  const int64_t before = cpu_ns();
  std::this_thread::sleep_for(400ms);
  EXPECT_LT(cpu_ns() - before, 100'000) << "nanoseconds of CPU while nothing was to do";
}

TEST_F(SchedulerTest, AFullQueueRefusesAndSaysSo) {
  gate_steps = true;
  start({.max_running_requests = 1, .max_queued_requests = 2});
  ASSERT_FALSE(scheduler->submit(request_of(0, 4, 2)).has_error());
  wait_for_step(0);
  ASSERT_FALSE(scheduler->submit(request_of(1, 4, 2)).has_error());
  ASSERT_FALSE(scheduler->submit(request_of(2, 4, 2)).has_error());
  EXPECT_EQ(scheduler->load().queued, 2);
  EXPECT_EQ(scheduler->load().running, 1);
  const Status refused = scheduler->submit(request_of(3, 4, 2));
  ASSERT_TRUE(refused.has_error());
  EXPECT_EQ(refused.error().kind, ErrorKind::kExhausted);
  EXPECT_THAT(refused.error().message, HasSubstr("2 requests wait (--max-queued-requests 2)"));
  open_gate();
  for (RequestId id = 0; id < 3; ++id) EXPECT_EQ(ear.wait_for_end(id).finish->kind, FinishKind::kLength);
  EXPECT_FALSE(scheduler->submit(request_of(3, 4, 2)).has_error()) << "the refused id was not kept";
  ear.wait_for_end(3);
}

TEST_F(SchedulerTest, AbortTakesEffectInTheNextStep) {
  gate_steps = true;
  start({});
  ASSERT_FALSE(scheduler->submit(request_of(1, 4, 50)).has_error());
  ASSERT_EQ(wait_for_step(0).sequences.size(), 1U);
  ASSERT_FALSE(scheduler->submit(request_of(2, 4, 50)).has_error());
  pass_step();
  ASSERT_EQ(wait_for_step(1).sequences.size(), 2U);
  scheduler->abort(1);
  pass_step();
  EXPECT_EQ(wait_for_step(2).sequences.size(), 1U);
  const auto heard = ear.heard(1);
  ASSERT_TRUE(heard.finish) << "it hears of its end before the next step runs";
  EXPECT_EQ(heard.finish->kind, FinishKind::kAbort);
  EXPECT_EQ(heard.finish->error, ErrorKind::kCancelled);
  EXPECT_EQ(heard.tokens.size(), 2U);
  scheduler->abort(1);
  scheduler->abort(12345);
  scheduler->abort_all();
  pass_step();
  EXPECT_EQ(ear.wait_for_end(2).finish->kind, FinishKind::kAbort);
}

TEST_F(SchedulerTest, DeadlinesPass) {
  start({.max_running_requests = 1});
  model->before_step = [](const Step&) { std::this_thread::sleep_for(2ms); };
  for (RequestId id = 1; id <= 2; ++id) {
    Request request = request_of(id, 4, 700);
    request.time_limit = 60ms;
    ASSERT_FALSE(scheduler->submit(request).has_error());
  }
  for (RequestId id = 1; id <= 2; ++id) {
    const auto heard = ear.wait_for_end(id);
    EXPECT_EQ(heard.finish->error, ErrorKind::kDeadline);
    EXPECT_LT(heard.tokens.size(), 100U);
  }
}

TEST_F(SchedulerTest, RefusesWhatIsWrong) {
  gate_steps = true;
  start({.context_tokens = 64});
  EXPECT_EQ(scheduler->submit(request_of(1, 0, 4)).error().kind, ErrorKind::kInvalid);
  EXPECT_EQ(scheduler->submit(request_of(1, 60, 5)).error().kind, ErrorKind::kInvalid);
  ASSERT_FALSE(scheduler->submit(request_of(1, 4, 4)).has_error());
  EXPECT_THAT(scheduler->submit(request_of(1, 4, 4)).error().message, HasSubstr("request id 1 is in use"));
  open_gate();
  ear.wait_for_end(1);
}

TEST_F(SchedulerTest, FlushCacheOnlyWhileNothingRuns) {
  gate_steps = true;
  start({});
  EXPECT_TRUE(scheduler->flush_cache());
  ASSERT_FALSE(scheduler->submit(request_of(1, 16, 2)).has_error());
  EXPECT_FALSE(scheduler->flush_cache());
  wait_for_step(0);
  EXPECT_FALSE(scheduler->flush_cache());
  open_gate();
  ear.wait_for_end(1);
  EXPECT_EQ(scheduler->load().kv_evictable_tokens, 16);
  EXPECT_TRUE(scheduler->flush_cache());
  EXPECT_EQ(scheduler->load().kv_evictable_tokens, 0);
}

TEST_F(SchedulerTest, StopEndsWhatIsUnfinished) {
  gate_steps = true;
  start({.max_running_requests = 1});
  ASSERT_FALSE(scheduler->submit(request_of(1, 4, 50)).has_error());
  wait_for_step(0);
  ASSERT_FALSE(scheduler->submit(request_of(2, 4, 50)).has_error());
  scheduler->stop();
  EXPECT_EQ(scheduler->submit(request_of(3, 4, 50)).error().kind, ErrorKind::kUnavailable);
  pass_step();
  for (RequestId id = 1; id <= 2; ++id) {
    const auto heard = ear.wait_for_end(id);
    EXPECT_EQ(heard.finish->kind, FinishKind::kAbort);
    EXPECT_THAT(heard.finish->message, HasSubstr("shutting down"));
  }
  EXPECT_EQ(ear.heard(1).tokens.size(), 1U);
}

TEST(Scheduler, AnExecutorFailureLeavesRunAndAbortsNobody) {
  log::initialise(log::Level::kOff, "");
  FakeModel model(10, 4);
  model.before_step = [](const Step& step) {
    if (step.sequence_number == 3) throw std::runtime_error("rank 0 is gone");
  };
  Ear ear;
  Scheduler scheduler({}, model, ear.sink());
  ASSERT_FALSE(scheduler.submit(request_of(1, 4, 10)).has_error());
  EXPECT_THROW(scheduler.run(), std::runtime_error);
  EXPECT_EQ(ear.heard(1).tokens.size(), 2U);
  EXPECT_FALSE(ear.heard(1).finish) << "the supervisor sends it again";
  EXPECT_EQ(scheduler.submit(request_of(2, 4, 10)).error().kind, ErrorKind::kUnavailable);
}

TEST(Scheduler, TheSinkMayCallBack) {
  FakeModel model(50, 4);
  Scheduler* self = nullptr;
  std::promise<void> done;
  Scheduler scheduler({}, model, [&](std::vector<RequestOutput>&& outputs) {
    for (const RequestOutput& output : outputs) {
      if (!output.finish) continue;
      if (output.id == 5) {
        EXPECT_TRUE(self->flush_cache());
        self->stop();
        done.set_value();
      } else {
        EXPECT_FALSE(self->submit(request_of(output.id + 1, 8, 4)).has_error());
      }
    }
  });
  self = &scheduler;
  ASSERT_FALSE(scheduler.submit(request_of(1, 8, 4)).has_error());
  std::thread runner([&] { scheduler.run(); });
  EXPECT_EQ(done.get_future().wait_for(60s), std::future_status::ready);
  runner.join();
}

TEST(RateWindow, CountsTheLastSeconds) {
  RateWindow rate;
  Clock::time_point now{1000s};
  EXPECT_EQ(rate.per_second(now), 0);
  for (int i = 0; i < 100; ++i) rate.add(10, now += 10ms);  // one second at 1,000 a second
  EXPECT_NEAR(rate.per_second(now), 1000, 30);
  for (int i = 0; i < 2000; ++i) rate.add(1, now += 10ms);  // then 100 a second, for longer than the window
  EXPECT_NEAR(rate.per_second(now), 100, 5);
  EXPECT_EQ(rate.per_second(now + 10s), 0) << "nothing lately";
  rate.add(1, now += 60s);
  EXPECT_EQ(rate.per_second(now), 2) << "one token in the shortest span";
}

}  // namespace
}  // namespace plait
