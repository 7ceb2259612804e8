// Float32 activations against the goldens: every family, both implementations, every way in which a prompt can be cut
// into steps.
//
// Tolerance: 2e-5 of the range of a prompt's golden logits. Both sides compute in float32 but add in different orders;
// over 3 to 6 layers that moves the logits by up to 1e-5 of their range, while any wrong formula moves them by 1e-3 and
// more.
#include "tests/model/goldens.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tests/model/model_runner.h"
#include "tests/support/effort.h"

namespace plait::testing {
namespace {

using kernels::Activation;
using kernels::Implementation;

constexpr double kTolerance = 2e-5;

// -- Comparison
// ---------------------------------------------------------------------------------------------------------

struct Tally {
  int64_t prompts = 0;
  int64_t logit_rows = 0;
  int64_t routed_rows = 0;
  int64_t hidden_rows = 0;
  double worst_logit = 0;   // of the range
  double worst_hidden = 0;  // likewise
};

double worst_difference(std::span<const float> ours, std::span<const float> golden) {
  EXPECT_EQ(ours.size(), golden.size());
  double worst = 0;
  for (size_t i = 0; i < golden.size(); ++i) {
    const double difference = std::abs(static_cast<double>(ours[i]) - golden[i]);
    worst = std::isnan(difference) ? std::numeric_limits<double>::infinity() : std::max(worst, difference);
  }
  return worst;
}

double range_of(std::span<const float> values) {
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  return static_cast<double>(*high) - *low;
}

std::vector<int32_t> sorted_row(std::span<const int32_t> table, int64_t row, int64_t k) {
  std::vector<int32_t> ids(table.begin() + row * k, table.begin() + (row + 1) * k);
  std::sort(ids.begin(), ids.end());
  return ids;
}

// `ours` holds the last rows of the prompt, all of them or, behind a reused prefix, fewer.
void compare(const Recorded& ours, const GoldenPrompt& golden, int64_t k, Tally& tally) {
  ++tally.prompts;
  const int64_t logit_rows = std::min(ours.rows(), golden.logit_rows);
  for (int64_t i = 1; i <= logit_rows; ++i)
    tally.worst_logit =
        std::max(tally.worst_logit,
                 worst_difference(ours.row(ours.rows() - i), golden.logit_row(golden.logit_rows - i)) / golden.range());
  tally.logit_rows += logit_rows;
  for (const auto& [layer, table] : golden.routed) {
    const std::vector<int32_t>& mine = ours.routed.at(layer);
    const auto rows = static_cast<int64_t>(mine.size()) / k, all_rows = static_cast<int64_t>(table.size()) / k;
    for (int64_t i = 0; i < rows; ++i)
      ASSERT_EQ(sorted_row(mine, i, k), sorted_row(table, all_rows - rows + i, k)) << "layer " << layer << " row " << i;
    tally.routed_rows += rows;
  }
  for (const auto& [layer, rows] : golden.hidden) {
    tally.worst_hidden = std::max(tally.worst_hidden, worst_difference(ours.hidden.at(layer), rows) / range_of(rows));
    ++tally.hidden_rows;
  }
}

// -- Ways through a prompt
// ----------------------------------------------------------------------------------------------

struct Way {
  std::string name;
  std::function<Recorded(ModelRunner&, std::span<const int32_t>)> run;
};

constexpr int64_t kExpanded = std::numeric_limits<int64_t>::max();
constexpr int64_t kAbsorbed = 0;

Recorded in_chunks(ModelRunner& runner, std::span<const int32_t> prompt, int64_t chunk, int64_t expanded_until) {
  TestSequence sequence;
  Recorded recorded = runner.append_in_chunks(sequence, prompt, chunk, expanded_until);
  runner.release(sequence);
  return recorded;
}

// A second sequence that shares all full pages of a first one's prompt, but computes at least its last token itself.
Recorded with_reused_prefix(ModelRunner& runner, std::span<const int32_t> prompt) {
  TestSequence first, second;
  runner.append(first, prompt, kExpanded);
  const int64_t shared_pages = (static_cast<int64_t>(prompt.size()) - 1) / runner.page_tokens();
  second.pages.assign(first.pages.begin(), first.pages.begin() + shared_pages);
  second.cached_tokens = shared_pages * runner.page_tokens();
  Recorded recorded = runner.append(second, prompt.subspan(second.cached_tokens), kExpanded);
  second.pages.erase(second.pages.begin(), second.pages.begin() + shared_pages);
  runner.release(second);
  runner.release(first);
  return recorded;
}

std::vector<Way> ways() {
  const auto chunks = [](int64_t chunk, int64_t expanded_until) {
    return [=](ModelRunner& runner, std::span<const int32_t> prompt) {
      return in_chunks(runner, prompt, chunk, expanded_until);
    };
  };
  return {{"at once", chunks(1 << 20, kExpanded)},    {"chunks of 1", chunks(1, kExpanded)},
          {"chunks of 3", chunks(3, kExpanded)},      {"chunks of 16", chunks(16, kExpanded)},
          {"decode, absorbed", chunks(1, kAbsorbed)}, {"chunks of 7, absorbed", chunks(7, kAbsorbed)},
          {"reused prefix", with_reused_prefix}};
}

// -- Tests
// ----------------------------------------------------------------------------------------------------------------

struct Case {
  std::string folder;
  Implementation implementation;
};

const char* name_of(Implementation implementation) {
  return implementation == Implementation::kFast ? "fast" : "reference";
}

class Goldens : public ::testing::TestWithParam<Case> {
 protected:
  Goldens()
      : folder_(GoldenFolder::read(GetParam().folder)),
        runner_(folder_.config, folder_.weights, {GetParam().implementation, Activation::kFloat32}) {}

  // For the tests that compute each prompt many times. Plain loops over the demo model's weights are slow: there two
  // short prompts must do, and under a sanitizer one.
  std::span<const GoldenPrompt> prompts_for_many_runs() const {
    const bool demo = GetParam().folder.starts_with("demo");
    const std::span<const GoldenPrompt> prompts = folder_.prompts;
    if (kSanitized && demo) return prompts.subspan(1, 1);
    return demo && GetParam().implementation == Implementation::kReference ? prompts.subspan(1, 2) : prompts;
  }

  int64_t k() const { return folder_.config.gate.experts_per_token; }
  static void print(const std::string& text) {
    fmt::print("[ goldens  ] {:8} {:9} {}\n", GetParam().folder, name_of(GetParam().implementation), text);
  }

  const GoldenFolder folder_;
  ModelRunner runner_;
};

TEST_P(Goldens, LogitsHiddenStatesAndExperts) {
  for (const Way& way : ways()) {
    SCOPED_TRACE(way.name);
    Tally tally;
    for (const GoldenPrompt& prompt : way.name == "at once" ? std::span(folder_.prompts) : prompts_for_many_runs())
      compare(way.run(runner_, prompt.input_ids), prompt, k(), tally);
    EXPECT_LE(tally.worst_logit, kTolerance);
    EXPECT_LE(tally.worst_hidden, kTolerance);
    print(fmt::format("{:22} {} prompts, {} logit rows {:.1e}, {} hidden rows {:.1e}, {} routed rows equal", way.name,
                      tally.prompts, tally.logit_rows, tally.worst_logit, tally.hidden_rows, tally.worst_hidden,
                      tally.routed_rows));
  }
}

TEST_P(Goldens, GreedyText) {
  int64_t tokens = 0;
  for (const GoldenPrompt& prompt : prompts_for_many_runs()) {
    // The goldens of the random models go on after an end-of-sequence id, those of the demo model stop there.
    const int32_t stop = GetParam().folder.starts_with("demo") ? folder_.config.eos_token_ids.front() : -1;
    const auto wanted = static_cast<int64_t>(prompt.greedy.size());
    EXPECT_EQ(runner_.greedy(prompt.input_ids, wanted, stop), prompt.greedy);
    tokens += wanted;
  }
  print(fmt::format("greedy text: {} prompts, {} tokens equal", prompts_for_many_runs().size(), tokens));
}

// Chunk borders, cached prefixes and the company in a step change no bit.
TEST_P(Goldens, StepsDoNotShowInTheBits) {
  int64_t rows = 0;
  StepBuilder together(0);
  const std::span<const GoldenPrompt> prompts = prompts_for_many_runs();
  std::vector<TestSequence> sequences(prompts.size());
  std::vector<Recorded> alone;
  for (size_t i = 0; i < prompts.size(); ++i) {
    const std::vector<int32_t>& prompt = prompts[i].input_ids;
    const Recorded expanded = in_chunks(runner_, prompt, 1 << 20, kExpanded);
    for (const int64_t chunk : {1, 3, 16})
      EXPECT_EQ(in_chunks(runner_, prompt, chunk, kExpanded).logits, expanded.logits) << "chunks of " << chunk;
    const Recorded reused = with_reused_prefix(runner_, prompt);
    EXPECT_TRUE(std::equal(reused.logits.rbegin(), reused.logits.rend(), expanded.logits.rbegin()));
    const Recorded absorbed = in_chunks(runner_, prompt, 1, kAbsorbed);
    for (const int64_t chunk : {3, 16})
      EXPECT_EQ(in_chunks(runner_, prompt, chunk, kAbsorbed).logits, absorbed.logits) << "chunks of " << chunk;

    const auto count = static_cast<int64_t>(prompt.size());
    const int64_t half = count / 2;  // the first half expanded, the second absorbed
    alone.push_back(in_chunks(runner_, prompt, 1 << 20, half));
    EXPECT_EQ(in_chunks(runner_, prompt, 5, half).logits, alone.back().logits);
    runner_.reserve(sequences[i], count);
    together.add(prompt, 0, sequences[i].pages, half, count);
    rows += count;
  }
  const Recorded batch = runner_.run(std::move(together).build());
  Recorded joined;
  for (const Recorded& recorded : alone) joined.append(recorded);
  EXPECT_EQ(batch.logits, joined.logits);
  print(fmt::format("bitwise equal: {} rows through 10 cuts", rows));
}

// After a retraction or a crash the prompt and the tokens generated so far are computed again, the latter as one chunk
// in the form in which they were decoded. What follows must be what would have followed.
TEST_P(Goldens, ResumedRequestGoesOnWithTheSameBits) {
  for (const GoldenPrompt& prompt : prompts_for_many_runs()) {
    const auto prompt_tokens = static_cast<int64_t>(prompt.input_ids.size());
    TestSequence decoded, resumed;
    Recorded by_decode = runner_.append(decoded, prompt.input_ids, prompt_tokens, 1);
    for (const int32_t token : prompt.greedy)
      by_decode.append(runner_.append(decoded, std::span(&token, 1), prompt_tokens, 1));

    std::vector<int32_t> all = prompt.input_ids;
    all.insert(all.end(), prompt.greedy.begin(), prompt.greedy.end());
    const auto generated = static_cast<int64_t>(prompt.greedy.size());
    EXPECT_EQ(runner_.append(resumed, all, prompt_tokens, generated + 1).logits, by_decode.logits);
    runner_.release(decoded);
    runner_.release(resumed);
  }
}

std::vector<Case> cases() {
  std::vector<Case> cases;
  for (const std::string& name : golden_names())
    for (const Implementation implementation : {Implementation::kReference, Implementation::kFast})
      cases.push_back({name, implementation});
  return cases;
}

std::string case_name(const ::testing::TestParamInfo<Case>& info) {
  std::string name = info.param.folder + "_" + name_of(info.param.implementation);
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(All, Goldens, ::testing::ValuesIn(cases()), case_name);

}  // namespace
}  // namespace plait::testing
