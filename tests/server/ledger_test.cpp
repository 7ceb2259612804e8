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

TEST(Ledger, ResumesFromWhatWasDelivered) {
  Ledger ledger;
  ledger.add(request(1), true, kNow);
  ledger.add(request(2), true, kNow);
  ledger.add(request(3), true, kNow);
  EXPECT_TRUE(ledger.record(tokens(1, {5, 6})));
  EXPECT_TRUE(ledger.record(tokens(1, {7})));
  EXPECT_TRUE(ledger.record(finished(2)));
  EXPECT_FALSE(ledger.record(tokens(2, {9}))) << "finished requests are forgotten";
  EXPECT_THAT(ledger.engine_died(), IsEmpty());
  const auto resumption = ledger.resume(kNow);
  ASSERT_THAT(ids_of(resumption.submit), ElementsAre(1, 3)) << "in the order of arrival";
  EXPECT_THAT(resumption.submit[0].output_ids, ElementsAre(5, 6, 7));
  EXPECT_EQ(resumption.submit[0].sampling.seed, 43U);
  EXPECT_THAT(resumption.submit[1].output_ids, IsEmpty());
  EXPECT_THAT(ledger.resume(kNow).submit, IsEmpty()) << "once per engine";
}

TEST(Ledger, RequestsThatArriveWithoutAnEngineWaitForOne) {
  Ledger ledger;
  ledger.add(request(1), false, kNow);
  EXPECT_THAT(ids_of(ledger.resume(kNow).submit), ElementsAre(1));
}

TEST(Ledger, CompletesRequestsWhoseLastWordWasLost) {
  Ledger ledger;
  ledger.add(request(1, 2), true, kNow);
  ledger.add(request(2), true, kNow);
  Request ignoring = request(3);
  ignoring.sampling.ignore_eos = true;
  ledger.add(ignoring, true, kNow);
  Request with_stop_id = request(4);
  with_stop_id.sampling.stop_token_ids = {77};
  ledger.add(with_stop_id, true, kNow);
  for (const auto& output : {tokens(1, {5, 6}), tokens(2, {5, kEos}), tokens(3, {kEos}), tokens(4, {77})}) {
    ledger.record(output);
  }
  ledger.engine_died();
  const auto resumption = ledger.resume(kNow);
  EXPECT_THAT(ids_of(resumption.submit), ElementsAre(3)) << "end of sequence is an ordinary token with ignore_eos";
  ASSERT_EQ(resumption.finished.size(), 3U);
  EXPECT_EQ(resumption.finished[0].finish->kind, FinishKind::kLength);
  EXPECT_EQ(resumption.finished[1].finish->kind, FinishKind::kStop);
  EXPECT_EQ(resumption.finished[1].finish->matched_token, kEos);
  EXPECT_EQ(resumption.finished[2].finish->matched_token, 77);
  EXPECT_EQ(ledger.size(), 1U);
}

TEST(Ledger, PromptLogprobsAreNotAskedForTwice) {
  Ledger ledger;
  Request wants = request(1);
  wants.return_logprob = true;
  wants.logprob_start = 0;
  ledger.add(wants, true, kNow);
  ledger.engine_died();
  EXPECT_EQ(ledger.resume(kNow).submit[0].logprob_start, 0);
  RequestOutput output = tokens(1, {5});
  output.prompt_logprobs.resize(2);
  ledger.record(output);
  ledger.engine_died();
  EXPECT_EQ(ledger.resume(kNow).submit[0].logprob_start, -1);
}

TEST(Ledger, TimeLimitsGoOnWhileNoEngineRuns) {
  Ledger ledger;
  Request limited = request(1);
  limited.time_limit = milliseconds(1000);
  ledger.add(limited, true, kNow);
  ledger.engine_died();
  EXPECT_EQ(ledger.resume(kNow + milliseconds(400)).submit[0].time_limit, milliseconds(600));
  ledger.engine_died();
  EXPECT_THAT(ledger.expire(kNow + milliseconds(999)), IsEmpty());
  const auto late = ledger.resume(kNow + milliseconds(1000));
  EXPECT_THAT(late.submit, IsEmpty());
  ASSERT_EQ(late.finished.size(), 1U);
  EXPECT_EQ(late.finished[0].finish->error, ErrorKind::kDeadline);
  EXPECT_EQ(ledger.size(), 0U);
}

TEST(Ledger, DeathsDoNotCountForRequestsThatMadeProgress) {
  Ledger ledger;
  ledger.add(request(1, 1000), true, kNow);
  for (int crash = 0; crash < 50; ++crash) {
    ledger.record(tokens(1, {7}));
    EXPECT_THAT(ledger.engine_died(), IsEmpty());
    ASSERT_EQ(ledger.resume(kNow).submit.size(), 1U);
  }
}

// An engine that dies whenever `poison` is in it; every other request makes one token of progress per life, but only if
// the poison is not there from the start.
TEST(Ledger, FindsTheRequestThatKillsTheEngine) {
  constexpr RequestId kPoison = 30;
  Ledger ledger;
  for (RequestId id = 1; id <= 50; ++id) ledger.add(request(id, 100), true, kNow);
  std::vector<RequestId> given_up;
  int deaths = 0;
  std::set<RequestId> in_engine;
  for (RequestId id = 1; id <= 50; ++id) in_engine.insert(id);
  while (given_up.empty() && deaths < 10) {
    if (in_engine.contains(kPoison)) {
      ++deaths;
      for (const RequestOutput& output : ledger.engine_died()) given_up.push_back(output.id);
      in_engine.clear();
      for (const Request& again : ledger.resume(kNow).submit) in_engine.insert(again.id);
      continue;
    }
    // without the poison all of them make progress, which lets the next suspect in
    for (const RequestId id : std::vector<RequestId>(in_engine.begin(), in_engine.end()))
      ledger.record(tokens(id, {7}));
    if (const auto suspect = ledger.next_suspect(kNow)) in_engine.insert(suspect->id);
  }
  EXPECT_THAT(given_up, ElementsAre(kPoison));
  EXPECT_EQ(deaths, Ledger::kPoisonStrikes);
  EXPECT_EQ(ledger.size(), 49U) << "nobody else was lost";
}

TEST(Ledger, SuspectsAreTriedOneAtATime) {
  Ledger ledger;
  for (RequestId id = 1; id <= 3; ++id) ledger.add(request(id), true, kNow);
  ledger.engine_died();
  EXPECT_EQ(ledger.resume(kNow).submit.size(), 3U);
  ledger.engine_died();
  EXPECT_THAT(ids_of(ledger.resume(kNow).submit), ElementsAre(1));
  EXPECT_FALSE(ledger.next_suspect(kNow).has_value()) << "the first one is on trial";
  ledger.record(tokens(1, {5}));
  EXPECT_EQ(ledger.next_suspect(kNow)->id, 2U);
  ledger.remove(2);
  EXPECT_EQ(ledger.next_suspect(kNow)->id, 3U);
  ledger.add(request(4), true, kNow);
  const auto given_up = ledger.engine_died();
  ASSERT_EQ(given_up.size(), 1U);
  EXPECT_EQ(given_up[0].id, 3U);
  EXPECT_EQ(given_up[0].finish->error, ErrorKind::kInternal);
  EXPECT_THAT(given_up[0].finish->message, HasSubstr("crashed 3 times"));
  EXPECT_THAT(ids_of(ledger.resume(kNow).submit), ElementsAre(1, 4));
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
    for (int event = 0; event < 400 || !open.empty(); ++event) {
      if (event < 400 && random() % 8 == 0) {
        Request fresh = request(next++, 1 + static_cast<int64_t>(random() % 20));
        open.insert(fresh.id);
        engine[fresh.id] = fresh;
        ledger.add(fresh, true, kNow);
      } else if (random() % 40 == 0) {
        ++crashes;
        engine.clear();
        ASSERT_THAT(ledger.engine_died(), IsEmpty());
        auto resumption = ledger.resume(kNow);
        for (Request& again : resumption.submit) engine[again.id] = std::move(again);
        for (const RequestOutput& done : resumption.finished) open.erase(done.id);
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
        if (auto suspect = ledger.next_suspect(kNow)) engine[suspect->id] = *suspect;
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

TEST(RestartPolicy, RestartsAtOnceThenSlowerThenGivesUp) {
  RestartPolicy policy(3, seconds(60));
  EXPECT_EQ(policy.after_death(kNow), milliseconds(0));
  const auto second = policy.after_death(kNow + seconds(1));
  const auto third = policy.after_death(kNow + seconds(2));
  ASSERT_TRUE(second && third);
  EXPECT_GT(*second, milliseconds(0));
  EXPECT_GT(*third, *second);
  EXPECT_EQ(policy.after_death(kNow + seconds(3)), std::nullopt);
}

TEST(RestartPolicy, OldDeathsAreForgiven) {
  RestartPolicy policy(1, seconds(60));
  for (int hour = 0; hour < 100; ++hour) {
    EXPECT_EQ(policy.after_death(kNow + std::chrono::hours(hour)), milliseconds(0));
  }
}

}  // namespace
}  // namespace plait
