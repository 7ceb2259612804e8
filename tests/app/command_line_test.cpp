#include "command_line.h"

#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "foreign_flags.h"

namespace plait::app {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr Command kEveryCommand[] = {kServe, kGenerate, kBench, kCheck, kPlan, kCompile};

std::string error_of(Command command, const std::vector<std::string>& arguments) {
  const auto parsed = parse_command_line(command, arguments);
  return parsed.has_error() ? parsed.error().message : "no error";
}

TEST(CommandLine, TakesFlagsInSglangsSpelling) {
  const auto parsed = parse_command_line(kServe, {"--model-path",
                                                  "models/demo",
                                                  "--host",
                                                  "0.0.0.0",
                                                  "--port=0",
                                                  "--api-key",
                                                  "secret",
                                                  "--dtype",
                                                  "float32",
                                                  "--load-format",
                                                  "dummy",
                                                  "--context-length",
                                                  "4096",
                                                  "--mem-fraction-static",
                                                  "0.5",
                                                  "--max-running-requests",
                                                  "48",
                                                  "--max-total-tokens",
                                                  "100000",
                                                  "--max-queued-requests",
                                                  "7",
                                                  "--chunked-prefill-size",
                                                  "512",
                                                  "--page-size",
                                                  "64",
                                                  "--disable-radix-cache",
                                                  "--schedule-policy",
                                                  "priority",
                                                  "--incremental-streaming-output",
                                                  "--log-requests",
                                                  "--watchdog-timeout",
                                                  "9",
                                                  "--served-model-name",
                                                  "demo",
                                                  "--chat-template",
                                                  "deepseek-v3",
                                                  "--skip-tokenizer-init",
                                                  "--json-model-override-args",
                                                  R"({"num_hidden_layers": 2})",
                                                  "--load-balance-method",
                                                  "total_tokens",
                                                  "--kernels",
                                                  "reference"});
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message;
  const ServeOptions& serve = parsed->settings.serve;
  EXPECT_EQ(serve.engine.model_path, "models/demo");
  EXPECT_EQ(serve.host, "0.0.0.0");
  EXPECT_EQ(serve.port, 0);
  EXPECT_EQ(serve.api_key, "secret");
  EXPECT_EQ(serve.engine.dtype, "float32");
  EXPECT_TRUE(serve.engine.dummy_weights);
  EXPECT_EQ(serve.engine.context_tokens, 4096);
  EXPECT_EQ(serve.engine.mem_fraction_static, 0.5);
  EXPECT_EQ(serve.engine.max_running_requests, 48);
  EXPECT_EQ(serve.engine.max_total_tokens, 100000);
  EXPECT_EQ(serve.engine.chunked_prefill_tokens, 512);
  EXPECT_EQ(serve.engine.page_tokens, 64);
  EXPECT_EQ(serve.engine.implementation, kernels::Implementation::kReference);
  EXPECT_EQ(serve.engine.config_overrides.at("num_hidden_layers").as_int64(), 2);
  EXPECT_EQ(serve.scheduler.max_running_requests, 48);
  EXPECT_EQ(serve.scheduler.chunked_prefill_tokens, 512);
  EXPECT_EQ(serve.scheduler.max_queued_requests, 7);
  EXPECT_FALSE(serve.scheduler.radix_cache);
  EXPECT_EQ(serve.scheduler.policy, SchedulePolicy::kPriority);
  EXPECT_TRUE(serve.stream_output);
  EXPECT_TRUE(serve.log_requests);
  EXPECT_TRUE(serve.skip_tokenizer_init);
  EXPECT_EQ(serve.load_balance, LoadBalance::kTotalTokens);
  EXPECT_EQ(serve.watchdog_timeout, std::chrono::seconds(9));
  EXPECT_EQ(serve.served_model_name, "demo");
  EXPECT_EQ(serve.chat_template, "deepseek-v3");
}

TEST(CommandLine, DefaultsAreThoseOfTheOptions) {
  const auto parsed = parse_command_line(kServe, {"--model", "m"});
  ASSERT_TRUE(parsed.has_value());
  const ServeOptions defaults;
  EXPECT_EQ(parsed->settings.serve.port, defaults.port);
  EXPECT_EQ(parsed->settings.serve.scheduler.max_queued_requests, defaults.scheduler.max_queued_requests);
  EXPECT_EQ(parsed->settings.serve.served_model_name, "m");
  EXPECT_THAT(parsed->non_default, ElementsAre("--model-path m"));
}

TEST(CommandLine, TheLastOneCounts) {
  const auto parsed = parse_command_line(
      kServe, {"--model-path", "m", "--port", "1", "--port", "2", "--log-requests", "--log-requests"});
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message;
  EXPECT_EQ(parsed->settings.serve.port, 2);
  EXPECT_TRUE(parsed->settings.serve.log_requests);
}

TEST(CommandLine, DumpsWhatDiffersAndMasksTheKey) {
  const auto parsed =
      parse_command_line(kServe, {"--model-path", "m", "--port", "30000", "--api-key", "secret", "--log-requests"});
  ASSERT_TRUE(parsed.has_value());
  EXPECT_THAT(parsed->non_default, ElementsAre("--model-path m", "--api-key ***", "--log-requests"));
}

TEST(CommandLine, GenerateIsGreedyUnlessAsked) {
  const auto greedy = parse_command_line(kGenerate, {"--model-path", "m", "--prompt", "x"});
  ASSERT_TRUE(greedy.has_value());
  EXPECT_TRUE(greedy->settings.generate.sampling.greedy());
  const auto sampled =
      parse_command_line(kGenerate, {"--model-path", "m", "--prompt", "x", "--temperature", "0.6", "--seed",
                                     "18446744073709551615", "--top-k", "-1", "--stop", "a", "--stop", "b c"});
  ASSERT_TRUE(sampled.has_value()) << sampled.error().message;
  EXPECT_EQ(sampled->settings.generate.sampling.temperature, 0.6);
  EXPECT_EQ(sampled->settings.generate.sampling.seed, 18446744073709551615u);
  EXPECT_EQ(sampled->settings.generate.sampling.top_k, -1);
  EXPECT_THAT(sampled->settings.generate.stop, ElementsAre("a", "b c"));
}

TEST(CommandLine, BenchTakesLists) {
  const auto parsed =
      parse_command_line(kBench, {"--batch", "1,8", "--context", "16", "--weights", "fp8", "--format", "lines"});
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message;
  const BenchOptions& bench = parsed->settings.bench;
  EXPECT_THAT(bench.decode_batch, ElementsAre(1, 8));
  EXPECT_THAT(bench.decode_context_tokens, ElementsAre(16));
  EXPECT_THAT(bench.weights, ElementsAre(BenchOptions::WeightKind::kFP8));
  EXPECT_EQ(bench.format, BenchOptions::Format::kLines);
}

TEST(CommandLine, SaysWhatIsWrongWithAValue) {
  EXPECT_THAT(error_of(kServe, {"--model-path", "m", "--port", "70000"}), HasSubstr("--port"));
  EXPECT_THAT(error_of(kServe, {"--model-path", "m", "--port", "x"}), HasSubstr("--port"));
  EXPECT_THAT(error_of(kServe, {"--model-path", "m", "--mem-fraction-static", "1.5"}),
              HasSubstr("--mem-fraction-static"));
  EXPECT_THAT(error_of(kServe, {"--model-path", "m", "--load-format", "gguf"}), HasSubstr("safetensors"));
  EXPECT_THAT(error_of(kServe, {"--model-path", "m", "--chat-template", "chatml"}), HasSubstr("deepseek-v3"));
  EXPECT_THAT(error_of(kServe, {"--model-path", "m", "--json-model-override-args", "{"}),
              HasSubstr("--json-model-override-args"));
  EXPECT_THAT(error_of(kServe, {"--model-path", "m", "--json-model-override-args", "[1]"}),
              HasSubstr("--json-model-override-args"));
  EXPECT_THAT(error_of(kServe, {"--model-path"}), HasSubstr("--model-path"));
  EXPECT_THAT(error_of(kServe, {}), HasSubstr("--model-path is missing"));
  EXPECT_THAT(error_of(kGenerate, {"--model-path", "m"}), HasSubstr("--prompt"));
  EXPECT_THAT(error_of(kGenerate, {"--model-path", "m", "--prompt", "x", "--input-ids", "1"}), HasSubstr("either"));
  EXPECT_THAT(error_of(kGenerate, {"--model-path", "m", "--prompt", "x", "--skip-tokenizer-init"}),
              HasSubstr("--input-ids"));
  EXPECT_THAT(error_of(kGenerate, {"--model-path", "m", "--prompt", "x", "--seed", "-1"}), HasSubstr("--seed"));
  EXPECT_THAT(error_of(kBench, {"--batch", "1,,2"}), HasSubstr("--batch"));
  EXPECT_THAT(error_of(kBench, {"--batch", "0"}), HasSubstr("--batch"));
  EXPECT_THAT(error_of(kBench, {"--weights", "int4"}), HasSubstr("int4"));
  EXPECT_THAT(error_of(kServe, {"--model-path", "m", "stray"}), HasSubstr("unexpected argument 'stray'"));
}

TEST(CommandLine, SuggestsTheNearestFlag) {
  EXPECT_THAT(error_of(kServe, {"--modelpath", "m"}), HasSubstr("did you mean --model-path?"));
  EXPECT_THAT(error_of(kServe, {"--chunked-prefil-size", "8"}), HasSubstr("did you mean --chunked-prefill-size?"));
  EXPECT_THAT(error_of(kServe, {"--zzzzzzzzzz"}), HasSubstr("--help lists them"));
}

TEST(ForeignFlags, AcceptsWhatAsksForNothing) {
  const auto notes = judge_foreign_flags(
      {"--kv-cache-dtype=auto", "--trust-remote-code", "--cuda-graph-bs", "1", "2", "4", "--device", "cpu"}, {});
  ASSERT_TRUE(notes.has_value()) << notes.error().message;
  EXPECT_EQ(notes->size(), 4u);
}

TEST(ForeignFlags, RefusesWhatIsNotThere) {
  const std::vector<std::vector<std::string>> refused = {
      {"--enable-eplb"},  {"--device", "cuda"}, {"--ep-num-redundant-experts=2"}, {"--speculative-algorithm", "EAGLE"},
      {"--quantization"},
  };
  for (const auto& arguments : refused) {
    const auto notes = judge_foreign_flags(arguments, {});
    ASSERT_TRUE(notes.has_error()) << arguments[0];
    EXPECT_THAT(notes.error().message, HasSubstr(arguments[0].substr(0, arguments[0].find('='))));
  }
  std::printf("%zu flags of SGLang refused\n", refused.size());
}

// A node of one role is of no use before a KV cache can travel; what it would build can be listed and built.
TEST(CommandLine, RolesAreForKernelsOnly) {
  EXPECT_THAT(error_of(kServe, {"--model-path", "m", "--disaggregation-mode", "prefill"}),
              AllOf(HasSubstr("--disaggregation-mode prefill is not possible"), HasSubstr("plait compile")));
  EXPECT_EQ(parse_command_line(kServe, {"--model-path", "m", "--disaggregation-mode", "null"})->notes.size(), 1u);
  for (const Command command : {kPlan, kCompile}) {
    const auto parsed = parse_command_line(command, {"--model-path", "m", "--disaggregation-mode", "decode"});
    ASSERT_TRUE(parsed.has_value()) << parsed.error().message;
    EXPECT_EQ(parsed->settings.engine().disaggregation, DisaggregationMode::kDecode);
  }
}

TEST(CommandLine, ServeAndCompileKeepKernelsInOnePlace) {
  for (const Command command : {kServe, kCompile}) {
    EXPECT_EQ(parse_command_line(command, {"--model-path", "m"})->settings.engine().kernel_cache_dir, "");
    for (const char* name : {"--kernel-cache-dir", "--cache-dir"})
      EXPECT_EQ(parse_command_line(command, {"--model-path", "m", name, "/k"})->settings.engine().kernel_cache_dir,
                "/k");
  }
}

TEST(FlagRegistry, NamesAreUniquePerCommandAndExplained) {
  Settings settings;
  FlagWords words;
  const std::vector<Flag> flags = flag_registry(settings, words);
  for (const Command command : kEveryCommand) {
    std::set<std::string> seen;
    for (const Flag& flag : flags) {
      EXPECT_FALSE(flag.help.empty()) << flag.names;
      EXPECT_NE(std::string(flag.group), "");
      if ((flag.commands & command) == 0) continue;
      std::string_view rest = flag.names;
      while (!rest.empty()) {
        const size_t comma = std::min(rest.find(','), rest.size());
        EXPECT_TRUE(seen.insert(std::string(rest.substr(0, comma))).second) << flag.names;
        rest.remove_prefix(std::min(comma + 1, rest.size()));
      }
    }
  }
}

TEST(FlagRegistry, HelpNamesEveryFlagOfTheCommand) {
  Settings settings;
  FlagWords words;
  const std::vector<Flag> flags = flag_registry(settings, words);
  for (const Command command : kEveryCommand) {
    const auto parsed = parse_command_line(command, {"--help"});
    ASSERT_TRUE(parsed.has_value());
    EXPECT_TRUE(parsed->wants_help);
    for (const Flag& flag : flags) {
      const std::string name = flag.names.substr(0, flag.names.find(','));
      if (flag.commands & command) {
        EXPECT_THAT(parsed->help, HasSubstr(name));
        EXPECT_THAT(parsed->help, HasSubstr(flag.group));
      }
    }
  }
}

TEST(NearestName, IsEmptyWhereNothingIsNear) {
  EXPECT_EQ(nearest_name("serv", {"serve", "bench"}), "serve");
  EXPECT_EQ(nearest_name("quantise", {"serve", "bench"}), "");
  EXPECT_EQ(nearest_name("", {}), "");
}

}  // namespace
}  // namespace plait::app
