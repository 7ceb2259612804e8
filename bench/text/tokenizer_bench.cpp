// Encoding and decoding on one core, with the demo model's tokenizer (4,096 tokens: more merging per word than with a
// published vocabulary). The text is made: words drawn as in natural text (few often, many rarely), a tenth of them
// never seen before, in lines of Python, English and Chinese.
#include <cmath>
#include <filesystem>
#include <random>

#include <benchmark/benchmark.h>

#include "text/detokenizer.h"
#include "text/tokenizer.h"
#include "text/tokenizer_parts.h"
#include "text/utf8.h"

namespace plait {
namespace {

constexpr size_t kTextBytes = 4 << 20;

class TextMaker {
 public:
  std::string python() {
    std::string text;
    while (text.size() < kTextBytes) {
      text += std::string(4 * below(4), ' ');
      switch (below(5)) {
        case 0:
          text += "def " + word() + "_" + word() + "(self, " + word() + "=" + number() + "):\n";
          break;
        case 1:
          text += "self." + word() + " = [" + word() + "." + word() + "(x) for x in range(" + number() + ")]\n";
          break;
        case 2:
          text += "if " + word() + " is not None and len(" + word() + ") > " + number() + ":  # " + word() + "\n";
          break;
        case 3:
          text += "return {\"" + word() + "\": " + number() + ", '" + word() + "': " + word() + "}\n\n";
          break;
        default:
          text += "raise ValueError(f\"" + word() + " " + word() + ": {" + word() + "!r}\")\n";
      }
    }
    return text;
  }

  std::string english() {
    std::string text;
    while (text.size() < kTextBytes) {
      for (size_t n = 5 + below(15); n > 0; --n) text += word() + (below(12) == 0 ? ", " : " ");
      text += below(8) == 0 ? "in " + number() + ".\n\n" : "the end. ";
    }
    return text;
  }

  std::string chinese() {
    std::string text;
    while (text.size() < kTextBytes) {
      for (size_t n = 4 + below(20); n > 0; --n) append_utf8(text, static_cast<char32_t>(0x4E00 + rank(3000) * 6));
      text += below(6) == 0 ? "。\n" : "，";
    }
    return text;
  }

  std::string mixed() {
    const std::string parts[] = {python(), english(), chinese()};
    constexpr size_t kShares[] = {50, 40, 10};  // percent
    std::string text;
    for (size_t i = 0; i < 3; ++i) {
      std::string part = parts[i].substr(0, kTextBytes * kShares[i] / 100);
      text += repair_utf8(part);
    }
    return text;
  }

 private:
  size_t below(size_t bound) { return random_() % bound; }
  // Zipf's law, roughly: rank r as often as 1 / r.
  size_t rank(size_t bound) {
    const double u = std::uniform_real_distribution<double>(0, std::log(static_cast<double>(bound)))(random_);
    return std::min(bound - 1, static_cast<size_t>(std::exp(u)) - 1);
  }
  std::string spelled(uint64_t seed) {
    constexpr std::string_view kSyllables[] = {"the", "in", "re", "con", "tion", "al",  "ex", "per", "ing", "val",
                                               "ma",  "to", "st", "ed",  "er",   "pro", "is", "un",  "ly",  "ent"};
    std::mt19937_64 spelling(seed);
    std::string text;
    for (size_t n = 1 + spelling() % 3; n > 0; --n) text += kSyllables[spelling() % std::size(kSyllables)];
    return text;
  }
  std::string word() { return below(10) == 0 ? spelled(random_()) + spelled(random_()) : spelled(rank(20'000)); }
  std::string number() { return std::to_string(random_() % (below(2) ? 100 : 100'000)); }

  std::mt19937_64 random_{1};
};

const Tokenizer& tokenizer() {
  static const Tokenizer loaded = Tokenizer::load(std::filesystem::path(PLAIT_SOURCE_DIR) / "models/demo").value();
  return loaded;
}

void encode(benchmark::State& state, const std::string& text) {
  for (auto _ : state) benchmark::DoNotOptimize(tokenizer().encode(text, false));
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(text.size()));
  state.counters["bytes_per_token"] =
      static_cast<double>(text.size()) / static_cast<double>(tokenizer().encode(text, false).size());
}

void encode_mixed(benchmark::State& state) {
  encode(state, TextMaker().mixed());
}
void encode_python(benchmark::State& state) {
  encode(state, TextMaker().python());
}
void encode_english(benchmark::State& state) {
  encode(state, TextMaker().english());
}
void encode_chinese(benchmark::State& state) {
  encode(state, TextMaker().chinese());
}
// A chat turn: what a request costs.
void encode_short(benchmark::State& state) {
  encode(state, TextMaker().english().substr(0, 200));
}

// The specification: the same splits by PCRE2, and by the scanner.
void split(benchmark::State& state, bool regexes) {
  const std::string text = TextMaker().mixed();
  std::vector<SplitStep> steps;
  for (const std::string_view pattern : {kDeepseekV3Numbers, kDeepseekV3Cjk, kDeepseekV3Words})
    steps.push_back({Regex::compile(pattern).value(), std::string(pattern)});
  PreTokenizer splits(std::move(steps), {});
  if (regexes) splits.use_regexes_only();
  PreTokenizerScratch scratch;
  for (auto _ : state) {
    size_t pieces = 0;
    splits.split(text, scratch, [&](std::string_view) { ++pieces; });
    benchmark::DoNotOptimize(pieces);
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(text.size()));
}
void split_by_scanner(benchmark::State& state) {
  split(state, false);
}
void split_by_regexes(benchmark::State& state) {
  split(state, true);
}

void decode_stream(benchmark::State& state) {
  const std::vector<int32_t> ids = tokenizer().encode(TextMaker().mixed(), false);
  const size_t stops = static_cast<size_t>(state.range(0));
  for (auto _ : state) {
    std::vector<std::string> stop_strings;
    for (size_t i = 0; i < stops; ++i) stop_strings.push_back("\n\nStop " + std::to_string(i));
    StreamingDetokenizer detokenizer(&tokenizer(), std::move(stop_strings), true, false);
    for (const int32_t& id : ids) benchmark::DoNotOptimize(detokenizer.push({&id, 1}));
  }
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(ids.size()));
}

void load(benchmark::State& state) {
  for (auto _ : state)
    benchmark::DoNotOptimize(Tokenizer::load(std::filesystem::path(PLAIT_SOURCE_DIR) / "models/demo"));
}

BENCHMARK(encode_mixed);
BENCHMARK(encode_python);
BENCHMARK(encode_english);
BENCHMARK(encode_chinese);
BENCHMARK(encode_short);
BENCHMARK(split_by_scanner);
BENCHMARK(split_by_regexes);
BENCHMARK(decode_stream)->Arg(0)->Arg(4);
BENCHMARK(load);

}  // namespace
}  // namespace plait
