// BFloat16 activations: inputs of products and the KV cache rounded to 8 significant bits.
//
// The goldens are float32. Rounding moves router logits by up to a few parts in a hundred, and where the k-th and the
// next expert are closer than that, another expert is chosen: the row is then right, but not comparable, and neither
// are the rows after it that attend to it. So rows count as comparable while no row of the prompt up to them has
// flipped in any layer. On these the tolerance is 3 % of the range of the logits: each of the ~10 roundings of a layer
// adds a relative error of up to 2^-9 to every term of a sum, in the random models nothing averages them away, and the
// residual stream carries all of them to the end.
#include <fstream>

#include <boost/json.hpp>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tests/model/goldens.h"
#include "tests/model/model_runner.h"
#include "tests/support/effort.h"
#include "text/chat.h"
#include "text/tokenizer.h"

namespace plait::testing {
namespace {

using kernels::Activation;
using kernels::Implementation;

constexpr double kTolerance = 0.03;

struct Case {
  std::string folder;
  Implementation implementation;
};

const char* name_of(Implementation implementation) {
  return implementation == Implementation::kFast ? "fast" : "reference";
}

std::vector<int32_t> sorted_row(std::span<const int32_t> table, int64_t row, int64_t k) {
  std::vector<int32_t> ids(table.begin() + row * k, table.begin() + (row + 1) * k);
  std::sort(ids.begin(), ids.end());
  return ids;
}

// Rows before the first one that went to another expert in some layer; adds the flipped (row, layer) pairs to `flips`.
int64_t comparable_rows(const Recorded& ours, const GoldenPrompt& golden, int64_t k, int64_t& flips) {
  auto comparable = static_cast<int64_t>(golden.input_ids.size());
  for (const auto& [layer, table] : golden.routed) {
    for (int64_t row = 0; row < static_cast<int64_t>(golden.input_ids.size()); ++row) {
      if (sorted_row(ours.routed.at(layer), row, k) == sorted_row(table, row, k)) continue;
      ++flips;
      comparable = std::min(comparable, row);
    }
  }
  return comparable;
}

class BFloat16Goldens : public ::testing::TestWithParam<Case> {};

TEST_P(BFloat16Goldens, RowsThatKeptTheirExpertsAreClose) {
  const GoldenFolder folder = GoldenFolder::read(GetParam().folder);
  ModelRunner runner(folder.config, folder.weights, {GetParam().implementation, Activation::kBFloat16});
  const int64_t k = folder.config.gate.experts_per_token;
  for (const bool absorbed : {false, true}) {
    int64_t flips = 0, routed = 0, compared = 0;
    double worst = 0;
    for (const GoldenPrompt& prompt : folder.prompts) {
      TestSequence sequence;
      const auto tokens = static_cast<int64_t>(prompt.input_ids.size());
      const Recorded ours = runner.append(sequence, prompt.input_ids, absorbed ? 0 : tokens);
      runner.release(sequence);
      const int64_t comparable = comparable_rows(ours, prompt, k, flips);
      const double range = prompt.range();
      routed += tokens * static_cast<int64_t>(prompt.routed.size());
      for (int64_t row = tokens - prompt.logit_rows; row < comparable; ++row, ++compared) {
        const std::span<const float> golden = prompt.logit_row(row - (tokens - prompt.logit_rows));
        for (size_t i = 0; i < golden.size(); ++i)
          worst = std::max(worst, std::abs(static_cast<double>(ours.row(row)[i]) - golden[i]) / range);
      }
    }
    EXPECT_LE(worst, kTolerance);
    EXPECT_GT(compared, 0);
    fmt::print("[ bfloat16 ] {:8} {:9} {:8} {} of {} routed rows flipped; {} comparable logit rows, worst {:.1e}\n",
               folder.name, name_of(GetParam().implementation), absorbed ? "absorbed" : "expanded", flips, routed,
               compared, worst);
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

INSTANTIATE_TEST_SUITE_P(All, BFloat16Goldens, ::testing::ValuesIn(cases()), case_name);

// -- The demo model's answers
// -------------------------------------------------------------------------------------------

struct Task {
  std::string prompt, answer, reference_output;
};

std::vector<Task> read_tasks() {
  std::ifstream file(std::filesystem::path(PLAIT_SOURCE_DIR) / "tests/data/eval_tasks.json");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const boost::json::value parsed = boost::json::parse(text);
  std::vector<Task> tasks;
  for (const auto& entry : parsed.as_array()) {
    const auto field = [&](const char* name) { return std::string(entry.at(name).as_string()); };
    tasks.push_back({field("prompt"), field("answer"), field("reference_output")});
  }
  return tasks;
}

std::string answer(ModelRunner& runner, const Tokenizer& tokenizer, const std::string& prompt) {
  ChatRequest request;
  request.messages.push_back({.role = "user", .content = prompt});
  const std::string text = encode_chat(ChatFormat::kDeepseekV3, request, tokenizer).value();
  const std::vector<int32_t> ids = tokenizer.encode(text, /*add_special_tokens=*/false);
  const std::vector<int32_t> output = runner.greedy(ids, 48, *tokenizer.eos_id());
  return tokenizer.decode(output, /*skip_special_tokens=*/true);
}

TEST(BFloat16Demo, AnswersAsOftenRightAsTheReference) {
  std::vector<Task> tasks = read_tasks();
  tasks.resize(static_cast<size_t>(repetitions(static_cast<int64_t>(tasks.size()))));
  for (const char* name : {"demo", "demo-fp8"}) {
    const GoldenFolder folder = GoldenFolder::read(name);
    const Tokenizer tokenizer = Tokenizer::load(golden_path(name)).value();
    ModelRunner runner(folder.config, folder.weights, {Implementation::kFast, Activation::kBFloat16});
    int right = 0, reference_right = 0, equal = 0;
    for (const Task& task : tasks) {
      const std::string text = answer(runner, tokenizer, task.prompt);
      right += text == task.answer;
      reference_right += task.reference_output == task.answer;
      equal += text == task.reference_output;
    }
    // Instruction sets add in different orders: one near-tie may fall either way.
    EXPECT_GE(right, reference_right - 1);
    fmt::print("[ bfloat16 ] {:8} {} of {} tasks right, the reference {}; {} outputs equal\n", name, right,
               tasks.size(), reference_right, equal);
  }
}

}  // namespace
}  // namespace plait::testing
