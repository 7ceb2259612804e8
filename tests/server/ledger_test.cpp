// The ledger: what is submitted again after the engine died, what is complete, and who is suspected of killing it.
#include "server/ledger.h"

#include <random>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/restart_policy.h"

namespace plait {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const Ledger::Clock::time_point kNow{seconds(1000)};
constexpr int32_t kEos = 1;

Request request(RequestId id, int64_t max_new_tokens = 10) {
  Request request{.id = id, .prompt_ids = {100, 101}};
  request.sampling.max_new_tokens = max_new_tokens;
  request.sampling.seed = 42 + id;
  request.eos_token_ids = {kEos};
  return request;
}

RequestOutput tokens(RequestId id, std::vector<int32_t> ids) {
  RequestOutput output{.id = id};
  for (const int32_t token : ids) output.tokens.push_back({.id = token});
  return output;
}

RequestOutput finished(RequestId id) {
  RequestOutput output{.id = id};
  output.finish = Finish{.kind = FinishKind::kLength};
  return output;
}

std::vector<RequestId> ids_of(const std::vector<Request>& requests) {
  std::vector<RequestId> ids;
  for (const Request& one : requests) ids.push_back(one.id);
  return ids;
}

TEST(Ledger, GoesOnFromWhatWasDelivered) {
  Ledger ledger;
  for (RequestId id = 1; id <= 3; ++id) ledger.add(request(id), kNow);
  EXPECT_THAT(ids_of(ledger.next(kNow)), ElementsAre(1, 2, 3));
  EXPECT_THAT(ledger.next(kNow), IsEmpty()) << "once per engine";
  EXPECT_TRUE(ledger.record(tokens(1, {5, 6})));
  EXPECT_TRUE(ledger.record(tokens(1, {7})));
  EXPECT_TRUE(ledger.record(finished(2)));
  EXPECT_FALSE(ledger.record(tokens(2, {9}))) << "finished requests are forgotten";
  EXPECT_EQ(ledger.tokens(), 2 + 3 + 2);
  EXPECT_THAT(ledger.engine_died(), IsEmpty());
  const auto again = ledger.next(kNow);
  ASSERT_THAT(ids_of(again), ElementsAre(1, 3)) << "in the order of arrival";
  EXPECT_THAT(again[0].output_ids, ElementsAre(5, 6, 7));
  EXPECT_EQ(again[0].sampling.seed, 43U);
  EXPECT_THAT(again[1].output_ids, IsEmpty());
}

TEST(Ledger, CompletesRequestsWhoseLastWordWasLost) {
  Ledger ledger;
  ledger.add(request(1, 2), kNow);
  ledger.add(request(2), kNow);
  Request ignoring = request(3);
  ignoring.sampling.ignore_eos = true;
  ledger.add(ignoring, kNow);
  Request with_stop_id = request(4);
  with_stop_id.sampling.stop_token_ids = {77};
  ledger.add(with_stop_id, kNow);
  ledger.next(kNow);
  for (const auto& output : {tokens(1, {5, 6}), tokens(2, {5, kEos}), tokens(3, {kEos}), tokens(4, {77})}) {
    ledger.record(output);
  }
  const auto ended = ledger.engine_died();
  EXPECT_THAT(ids_of(ledger.next(kNow)), ElementsAre(3)) << "end of sequence is an ordinary token with ignore_eos";
  ASSERT_EQ(ended.size(), 3U);
  EXPECT_EQ(ended[0].finish->kind, FinishKind::kLength);
  EXPECT_EQ(ended[1].finish->kind, FinishKind::kStop);
  EXPECT_EQ(ended[1].finish->matched_token, kEos);
  EXPECT_EQ(ended[2].finish->matched_token, 77);
  EXPECT_EQ(ledger.size(), 1U);
}

TEST(Ledger, PromptLogprobsAreNotAskedForTwice) {
  Ledger ledger;
  Request wants = request(1);
  wants.return_logprob = true;
  wants.logprob_start = 0;
  ledger.add(wants, kNow);
  ledger.next(kNow);
  ledger.engine_died();
  EXPECT_EQ(ledger.next(kNow)[0].logprob_start, 0);
  RequestOutput output = tokens(1, {5});
  output.prompt_logprobs.resize(2);
  ledger.record(output);
  ledger.engine_died();
  EXPECT_EQ(ledger.next(kNow)[0].logprob_start, -1);
}

TEST(Ledger, RoutedExpertsGoOnBehindTheRowsThatCame) {
  Ledger ledger;
  Request wanted = request(1);
  wanted.return_routed_experts = true;
  wanted.routed_experts_start = 3;
  ledger.add(wanted, kNow);
  ASSERT_EQ(ledger.next(kNow)[0].routed_experts_start, 3);
  RequestOutput rows{.id = 1};
  rows.routed_experts = {4, "abcd"};
  EXPECT_TRUE(ledger.record(rows));
  RequestOutput more = tokens(1, {5});
  more.routed_experts = {1, "e"};
  EXPECT_TRUE(ledger.record(more));
  EXPECT_THAT(ledger.engine_died(), IsEmpty());
  const Request again = ledger.next(kNow)[0];
  EXPECT_EQ(again.routed_experts_start, 8);
  EXPECT_THAT(again.output_ids, ElementsAre(5));
}

TEST(Ledger, TimeLimitsGoOnWhileNoEngineRuns) {
  Ledger ledger;
  Request limited = request(1);
  limited.time_limit = milliseconds(1000);
  ledger.add(limited, kNow);
  EXPECT_EQ(ledger.next(kNow + milliseconds(400))[0].time_limit, milliseconds(600));
  ledger.engine_died();
  EXPECT_THAT(ledger.expire(kNow + milliseconds(999)), IsEmpty());
  const auto late = ledger.expire(kNow + milliseconds(1000));
  ASSERT_EQ(late.size(), 1U);
  EXPECT_EQ(late[0].finish->error, ErrorKind::kDeadline);
  EXPECT_EQ(ledger.size(), 0U);
  EXPECT_THAT(ledger.next(kNow), IsEmpty());
}

TEST(Ledger, DeathsDoNotCountForRequestsThatMadeProgress) {
  Ledger ledger;
  ledger.add(request(1, 1000), kNow);
  for (int crash = 0; crash < 50; ++crash) {
    ASSERT_EQ(ledger.next(kNow).size(), 1U);
    ledger.record(tokens(1, {7}));
    EXPECT_THAT(ledger.engine_died(), IsEmpty());
  }
}

TEST(Ledger, SuspectsAreTriedOneAtATimeBeforeEverythingElse) {
  Ledger ledger;
  for (RequestId id = 1; id <= 3; ++id) ledger.add(request(id), kNow);
  ledger.next(kNow);
  ledger.engine_died();
  EXPECT_EQ(ledger.next(kNow).size(), 3U) << "one death is no suspicion";
  ledger.record(tokens(2, {5}));
  ledger.engine_died();
  ledger.add(request(4), kNow);
  EXPECT_THAT(ids_of(ledger.next(kNow)), ElementsAre(1));
  EXPECT_THAT(ledger.next(kNow), IsEmpty()) << "it is on trial, 2 and 4 wait";
  ledger.add(request(5), kNow);
  EXPECT_THAT(ledger.next(kNow), IsEmpty());
  ledger.record(tokens(1, {5}));
  EXPECT_THAT(ids_of(ledger.next(kNow)), ElementsAre(3));
  ledger.remove(3);
  EXPECT_THAT(ids_of(ledger.next(kNow)), ElementsAre(2, 4, 5)) << "nobody is suspected any more";
}

// An engine of `slots` requests at a time that dies whenever `poison` is among them. All of them make progress in a
// step that it survives.
struct DeadlyEngine {
  Ledger& ledger;
  RequestId poison;
  size_t slots;
  std::vector<RequestId> requests;
  int deaths = 0;
  std::vector<RequestId> given_up;

  void step() {
    for (const Request& request : ledger.next(kNow)) requests.push_back(request.id);
    const std::vector<RequestId> running(requests.begin(), requests.begin() + std::min(slots, requests.size()));
    if (std::find(running.begin(), running.end(), poison) != running.end()) {
      die();
      return;
    }
    for (const RequestId id : running) ledger.record(tokens(id, {7}));
  }
  void die() {
    ++deaths;
    requests.clear();
    for (const RequestOutput& output : ledger.engine_died()) given_up.push_back(output.id);
  }
};

TEST(Ledger, FindsTheRequestThatKillsTheEngine) {
  for (const RequestId poison : {1, 30, 50}) {
    for (const size_t slots : {1, 16, 100}) {
      Ledger ledger;
      for (RequestId id = 1; id <= 50; ++id) ledger.add(request(id, 1000), kNow);
      DeadlyEngine engine{ledger, poison, slots};
      for (int step = 0; step < 200 && engine.given_up.empty(); ++step) {
        engine.step();
        // nobody leaves, so with few slots the others would never run
        if (slots < 50 && step % 2 == 1 && !engine.requests.empty() && engine.requests[0] != poison) {
          ledger.remove(engine.requests[0]);
          engine.requests.erase(engine.requests.begin());
        }
      }
      EXPECT_THAT(engine.given_up, ElementsAre(poison)) << slots << " slots";
      EXPECT_EQ(engine.deaths, Ledger::kPoisonStrikes);
    }
  }
}

// Kills by chance, with a long queue: waiting requests make no progress through many deaths and are still innocent.
TEST(Ledger, ChanceCrashesCondemnNobody) {
  std::mt19937 random(11);
  int deaths = 0;
  for (int round = 0; round < 100; ++round) {
    Ledger ledger;
    for (RequestId id = 1; id <= 40; ++id) ledger.add(request(id, 1000), kNow);
    DeadlyEngine engine{ledger, 0, 4};
    for (int step = 0; step < 300; ++step) {
      engine.step();
      if (random() % 8 == 0) engine.die();
    }
    EXPECT_THAT(engine.given_up, IsEmpty());
    deaths += engine.deaths;
  }
  std::printf("tried %d chance deaths over 100 queues of 40 requests: nobody was given up\n", deaths);
}

// A deterministic engine that is killed at random moments: every request must end with the tokens it would have had.
TEST(Ledger, NothingIsLostOrRepeatedWhateverTheMoment) {
  std::mt19937 random(7);
  const auto token_at = [](RequestId id, size_t index) { return static_cast<int32_t>(2 + (id * 31 + index * 7) % 90); };
  int64_t crashes = 0;
  constexpr int kRounds = 200;
  for (int round = 0; round < kRounds; ++round) {
    Ledger ledger;
    std::map<RequestId, std::vector<int32_t>> received;
    std::map<RequestId, Request> engine;
    std::set<RequestId> open;
    RequestId next = 1;
    const auto submit = [&] {
      for (Request& one : ledger.next(kNow)) engine[one.id] = std::move(one);
    };
    for (int event = 0; event < 400 || !open.empty(); ++event) {
      if (event < 400 && random() % 8 == 0) {
        Request fresh = request(next++, 1 + static_cast<int64_t>(random() % 20));
        open.insert(fresh.id);
        ledger.add(fresh, kNow);
        submit();
      } else if (random() % 40 == 0) {
        ++crashes;
        engine.clear();
        for (const RequestOutput& done : ledger.engine_died()) {
          ASSERT_NE(done.finish->kind, FinishKind::kAbort);
          open.erase(done.id);
        }
        submit();
      } else if (!engine.empty()) {
        // every request gets one token a step; the outputs of the last step before a crash may be lost
        for (auto item = engine.begin(); item != engine.end();) {
          auto& [id, running] = *item;
          RequestOutput output = tokens(id, {token_at(id, running.output_ids.size())});
          running.output_ids.push_back(output.tokens[0].id);
          const bool last = static_cast<int64_t>(running.output_ids.size()) == running.sampling.max_new_tokens;
          if (last) output.finish = Finish{.kind = FinishKind::kLength};
          ASSERT_TRUE(ledger.record(output));
          received[id].push_back(output.tokens[0].id);
          if (last) open.erase(id);
          item = last ? engine.erase(item) : std::next(item);
        }
        submit();
      }
      ASSERT_LT(event, 100'000);
    }
    for (const auto& [id, got] : received) {
      for (size_t i = 0; i < got.size(); ++i) ASSERT_EQ(got[i], token_at(id, i));
    }
    ASSERT_EQ(ledger.size(), 0U);
  }
  std::printf("tried %d rounds with %ld crashes at random moments\n", kRounds, static_cast<long>(crashes));
}

TEST(RestartPolicy, FruitlessRestartsBecomeSlowerThenEnd) {
  RestartPolicy policy(3, seconds(60));
  EXPECT_EQ(policy.after_death(kNow, false), milliseconds(0));
  const auto second = policy.after_death(kNow + seconds(1), false);
  const auto third = policy.after_death(kNow + seconds(2), false);
  ASSERT_TRUE(second && third);
  EXPECT_GT(*second, milliseconds(0));
  EXPECT_GT(*third, *second);
  EXPECT_EQ(policy.after_death(kNow + seconds(3), false), std::nullopt);
}

TEST(RestartPolicy, AnEngineThatWorkedIsStartedAgainAtOnce) {
  RestartPolicy policy(5, seconds(60));
  EXPECT_EQ(policy.after_death(kNow, false), milliseconds(0));
  EXPECT_GT(policy.after_death(kNow + seconds(1), false), milliseconds(0));
  EXPECT_EQ(policy.after_death(kNow + seconds(2), true), milliseconds(0));
  EXPECT_EQ(policy.after_death(kNow + seconds(3), false), milliseconds(0)) << "the next one begins anew";
  EXPECT_EQ(policy.after_death(kNow + seconds(4), true), milliseconds(0));
  EXPECT_EQ(policy.after_death(kNow + seconds(5), true), std::nullopt) << "the number of deaths stays bounded";
}

TEST(RestartPolicy, OldDeathsAreForgiven) {
  RestartPolicy policy(1, seconds(60));
  for (int hour = 0; hour < 100; ++hour) {
    EXPECT_EQ(policy.after_death(kNow + std::chrono::hours(hour), hour % 2 == 0), milliseconds(0));
  }
}

}  // namespace
}  // namespace plait
