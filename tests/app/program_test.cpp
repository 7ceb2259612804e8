// The program as people start it: exit status, standard output and standard error.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sys/wait.h>

#include <boost/json/parse.hpp>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

namespace plait {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

const std::string kSource = PLAIT_SOURCE_DIR;
const std::string kDemo = kSource + "/models/demo-fp8";

struct Outcome {
  int status = -1;
  std::string out, error;
};

std::string contents(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

// `arguments` as a shell would read them.
Outcome plait(const std::string& arguments, const std::string& input = "") {
  const std::string base = testing::TempDir() + fmt::format("plait-program-{}", getpid());
  std::ofstream(base + ".in", std::ios::binary) << input;
  const int status =
      std::system(fmt::format("{0} {1} <{2}.in >{2}.out 2>{2}.err", PLAIT_PROGRAM, arguments, base).c_str());
  const Outcome outcome{WIFEXITED(status) ? WEXITSTATUS(status) : -1, contents(base + ".out"), contents(base + ".err")};
  for (const char* suffix : {".in", ".out", ".err"}) std::remove((base + suffix).c_str());
  return outcome;
}

TEST(Program, PrintsVersionAndHelp) {
  EXPECT_THAT(plait("--version").out, StartsWith("plait "));
  const Outcome overview = plait("--help");
  EXPECT_EQ(overview.status, 0);
  for (const char* command : {"serve", "generate", "bench", "check", "plan", "compile"}) {
    EXPECT_THAT(overview.out, HasSubstr(command));
    const Outcome help = plait(std::string(command) + " --help");
    EXPECT_EQ(help.status, 0);
    EXPECT_THAT(help.out, HasSubstr("--model-path"));
  }
}

TEST(Program, WrongCommandLinesEndWithStatusTwo) {
  EXPECT_EQ(plait("").status, 2);
  EXPECT_THAT(plait("serv").error, HasSubstr("did you mean serve?"));
  EXPECT_THAT(plait("serve --modle-path x").error, HasSubstr("did you mean --model-path?"));
  const Outcome parallel = plait("serve --model-path x --tp-size 3 --attn-cp-size 2");
  EXPECT_EQ(parallel.status, 2);
  EXPECT_THAT(parallel.error, HasSubstr("--tp-size 3 cannot be divided by --attn-cp-size 2"));
}

TEST(Program, GeneratesTheDemosAnswer) {
  const std::string question = " --chat --prompt 'What is 40 + 2?'";
  for (const char* model : {"demo", "demo-fp8"}) {
    for (const char* kernels : {"fast", "reference"}) {
      for (const char* dtype : {"bfloat16", "float32"}) {
        const Outcome outcome = plait(fmt::format("generate --model-path {}/models/{} --kernels {} --dtype {} {}",
                                                  kSource, model, kernels, dtype, question));
        EXPECT_EQ(outcome.status, 0) << outcome.error;
        EXPECT_EQ(outcome.out, "42\n") << model << " " << kernels << " " << dtype;
        EXPECT_THAT(outcome.error, HasSubstr("end of sequence"));
      }
    }
  }
}

TEST(Program, ReadsThePromptFromStandardInputAndStopsAtStrings) {
  const Outcome piped =
      plait("generate --model-path " + kDemo + " --chat --prompt -", "Repeat the word forest 3 times.");
  EXPECT_EQ(piped.status, 0) << piped.error;
  EXPECT_THAT(piped.out, HasSubstr("forest"));
  const Outcome stopped =
      plait("generate --model-path " + kDemo + " --chat --prompt 'Repeat the word forest 3 times.' --stop 'rest'");
  EXPECT_EQ(stopped.out, piped.out.substr(0, piped.out.find("rest")) + "\n");
  EXPECT_THAT(stopped.error, HasSubstr("stop string"));
}

// Token ids in, token ids out, for checkpoints without a tokenizer: the greedy continuation of the goldens.
TEST(Program, GeneratesTheGoldensGreedyIds) {
  int prompts = 0;
  for (const char* golden : {"v2-lite", "v2", "v3", "kimi-k2"}) {
    const std::string folder = fmt::format("{}/tests/data/goldens/{}", kSource, golden);
    auto expected = contents(folder + "/expected.safetensors");
    ASSERT_GT(expected.size(), 8u);
    uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, expected.data(), 8);
    const auto header = boost::json::parse(expected.substr(8, header_bytes)).as_object();
    const auto ids_of = [&](const std::string& name) {
      const auto& offsets = header.at(name).at("data_offsets").as_array();
      const auto begin = 8 + header_bytes + offsets[0].to_number<uint64_t>();
      const auto end = 8 + header_bytes + offsets[1].to_number<uint64_t>();
      const size_t width = header.at(name).at("dtype").as_string() == "I64" ? 8 : 4;
      std::vector<int64_t> ids;
      for (size_t at = begin; at < end; at += width) {
        int64_t id = 0;
        std::memcpy(&id, expected.data() + at, width);
        ids.push_back(id);
      }
      return ids;
    };
    for (int i = 0; header.contains(fmt::format("p{}.input_ids", i)); ++i) {
      const auto greedy = ids_of(fmt::format("p{}.greedy", i));
      const Outcome outcome =
          plait(fmt::format("generate --model-path {} --skip-tokenizer-init --dtype float32 --ignore-eos "
                            "--max-new-tokens {} --input-ids {}",
                            folder, greedy.size(), fmt::join(ids_of(fmt::format("p{}.input_ids", i)), ",")));
      EXPECT_EQ(outcome.status, 0) << outcome.error;
      EXPECT_EQ(outcome.out, fmt::format("{}\n", fmt::join(greedy, " "))) << golden << " prompt " << i;
      ++prompts;
    }
  }
  std::printf("%d prompts of the goldens continued on the command line\n", prompts);
  EXPECT_GT(prompts, 8);
}

TEST(Program, SameSeedSameText) {
  const std::string sampled =
      "generate --model-path " + kDemo + " --prompt 'The' --ignore-eos --max-new-tokens 40 --temperature 2 --seed ";
  const Outcome first = plait(sampled + "7"), again = plait(sampled + "7"), other = plait(sampled + "8");
  EXPECT_EQ(first.status, 0) << first.error;
  EXPECT_EQ(first.out, again.out);
  EXPECT_NE(first.out, other.out);
}

TEST(Program, RefusesWhatCannotRun) {
  EXPECT_EQ(plait("generate --model-path /nowhere --prompt x").status, 1);
  EXPECT_EQ(plait("generate --model-path " + kDemo + " --skip-tokenizer-init --input-ids 1,99999").status, 2);
  EXPECT_THAT(plait("generate --model-path " + kDemo + " --prompt x --max-new-tokens 1000000").error,
              HasSubstr("2048"));
}

TEST(Program, ChecksCheckpoints) {
  const Outcome demo = plait("check --model-path " + kDemo);
  EXPECT_EQ(demo.status, 0) << demo.out;
  for (const char* word : {"deepseek_v3", "6 layers", "FP8", "chat format", "set aside", "usable"})
    EXPECT_THAT(demo.out, HasSubstr(word));
  const Outcome golden = plait("check --model-path " + kSource + "/tests/data/goldens/v2-lite");
  EXPECT_EQ(golden.status, 1);
  EXPECT_THAT(golden.out, HasSubstr("--skip-tokenizer-init"));
  EXPECT_EQ(plait("check --skip-tokenizer-init --model-path " + kSource + "/tests/data/goldens/v2-lite").status, 0);
  const Outcome wrong = plait("check --model-path " + kDemo + " --json-model-override-args '{\"hidden_size\": 512}'");
  EXPECT_EQ(wrong.status, 1);
  EXPECT_THAT(wrong.out, HasSubstr("instead of"));
  EXPECT_EQ(plait("check --model-path /nowhere").status, 1);
  EXPECT_THAT(plait("check --env").out, HasSubstr("HF_HUB_CACHE"));
}

TEST(Program, BenchmarksAModelAsJson) {
  const Outcome outcome =
      plait("bench --format json --seconds 0.01 --prefill 16 --batch 1,4 --context 32 --model-path " + kDemo);
  ASSERT_EQ(outcome.status, 0) << outcome.error;
  const auto document = boost::json::parse(outcome.out).as_object();
  EXPECT_GT(document.at("machine").at("read_bandwidth_bytes_per_s").as_double(), 0);
  ASSERT_EQ(document.at("rows").as_array().size(), 3u);
  for (const auto& row : document.at("rows").as_array()) EXPECT_GT(row.at("tokens_per_s").as_double(), 0);
}

TEST(Program, BenchmarksTheServerAsJson) {
  const Outcome outcome = plait("bench --server --format json --model-path " + kDemo);
  ASSERT_EQ(outcome.status, 0) << outcome.error;
  const auto document = boost::json::parse(outcome.out).as_object();
  EXPECT_GT(document.at("first_token_seconds").as_double(), 0);
  EXPECT_GT(document.at("step_seconds_per_token").as_double(), 0);
  EXPECT_GT(document.at("streamed_seconds_per_token").as_double(), 0);
}

TEST(Program, PlansParallelRanks) {
  const std::string picture = testing::TempDir() + fmt::format("plan-{}.svg", getpid());
  const std::string model = "plan --model-path " + kSource + "/models/demo ";
  const Outcome text =
      plait(model + "--tp-size 4 --dp-size 2 --enable-dp-attention --ep-size 4 --step decode --svg " + picture);
  EXPECT_EQ(text.status, 0) << text.error;
  EXPECT_THAT(text.out, HasSubstr("attn_tp          {0,1}{2,3}"));
  EXPECT_THAT(text.out, HasSubstr("layer 0: dense layer"));
  EXPECT_THAT(contents(picture), StartsWith("<svg xmlns"));
  std::remove(picture.c_str());

  const Outcome json = plait(model + "--json --tp-size 2");
  EXPECT_EQ(json.status, 0) << json.error;
  EXPECT_EQ(boost::json::parse(json.out).as_object().at("flags"), "--tp-size 2");
}

TEST(Program, ListsTheKernelsOfAPlan) {
  const std::string command = "plan --kernels --model-path " + kSource + "/models/demo-fp8 --pp-size 2 ";
  const Outcome text = plait(command + "--max-running-requests 8 --chunked-prefill-size 64");
  EXPECT_EQ(text.status, 0) << text.error;
  EXPECT_THAT(text.out,
              HasSubstr("h200 (132 multiprocessors), sm_90a; up to 64 prompt tokens and 8 requests in a step"));
  EXPECT_THAT(text.out, HasSubstr("rank 0 (stage 0): "));
  EXPECT_THAT(text.out, HasSubstr("layer 0 dense.gate_up: prefill 1-"));
  EXPECT_THAT(text.out, HasSubstr("lm_head: prefill 1-"));

  // A node that decodes needs fewer; what all ranks need is no more than the sum of what each does.
  const auto kernels = [&](const std::string& flags) {
    const Outcome json = plait(command + "--json --device h20 " + flags);
    EXPECT_EQ(json.status, 0) << json.error;
    const auto document = boost::json::parse(json.out).as_object();
    EXPECT_EQ(document.at("device"), "h20");
    size_t sum = 0;
    for (const auto& group : document.at("groups").as_array()) {
      for (const auto& kernel : group.at("kernels").as_array()) EXPECT_FALSE(kernel.at("calls").as_array().empty());
      sum += group.at("kernels").as_array().size();
    }
    const auto all = document.at("kernels").to_number<size_t>();
    EXPECT_LE(all, sum);
    return all;
  };
  EXPECT_LT(kernels("--disaggregation-mode decode"), kernels(""));
  // Narrow kernels of one summing order do not split k.
  EXPECT_THAT(text.out, HasSubstr("_t8p4s4"));
  const Outcome deterministic = plait(command + "--enable-deterministic-inference");
  EXPECT_EQ(deterministic.status, 0) << deterministic.error;
  EXPECT_THAT(deterministic.out, AllOf(HasSubstr("_t8p1s4"), Not(HasSubstr("_t8p4s"))));

  const auto refused = [&](const std::string& flags) {
    const Outcome outcome = plait(command + flags);
    EXPECT_EQ(outcome.status, 1);
    return outcome.error;
  };
  EXPECT_THAT(refused("--device b200"), HasSubstr("--device: no device 'b200' is known; there are: h200, "));
  EXPECT_THAT(refused("--kernel-table no.json"), HasSubstr("--kernel-table: no.json"));
  EXPECT_THAT(refused("--arch sm_80"), HasSubstr("no kernels for 'sm_80'; there are for: sm_90a"));
  EXPECT_THAT(refused("--svg plan.svg"), HasSubstr("leave --kernels out"));
}

TEST(Program, MeasuresKernelsOnlyOnAGpu) {
  const Outcome bench = plait("bench --kernels --only nothing-has-this-name");
  if (bench.status == 0) GTEST_SKIP() << "SKIPPED: there is a GPU here, so what is said without one cannot be tested";
  EXPECT_EQ(bench.status, 1);
  EXPECT_THAT(bench.error, AnyOf(HasSubstr("kernels are measured on a GPU, and none can be used here"),
                                 HasSubstr("plait's kernels are for Hopper")));
  EXPECT_EQ(plait("bench --kernels --tune").status, 2);
  EXPECT_EQ(plait("bench --tp-size 2").status, 2);
}

// A complete cache, without weights, GPU and server: config.json is all that there is of the model.
TEST(Program, CompilesTheKernelsOfAPlanIntoACache) {
  const std::filesystem::path folder = testing::TempDir() + fmt::format("compile-{}", getpid());
  std::filesystem::create_directories(folder / "model");
  std::filesystem::copy_file(kDemo + "/config.json", folder / "model/config.json");
  const std::string flags = " --model-path " + (folder / "model").string() +
                            " --max-running-requests 1 --chunked-prefill-size 8 --disaggregation-mode decode";
  const std::string cache = " --kernel-cache-dir " + (folder / "cache").string();
  const Outcome plan = plait("plan --kernels --json" + flags);
  ASSERT_EQ(plan.status, 0) << plan.error;
  const auto kernels = boost::json::parse(plan.out).at("kernels").to_number<size_t>();

  const Outcome cold = plait("compile" + flags + cache);
  if (cold.status != 0 && std::getenv("PLAIT_REQUIRE_NVRTC") == nullptr) {
    EXPECT_THAT(cold.error, HasSubstr("libnvrtc"));
    GTEST_SKIP() << "SKIPPED: " << cold.error;
  }
  ASSERT_EQ(cold.status, 0) << cold.error;
  EXPECT_THAT(cold.out, StartsWith(fmt::format("{} kernels for sm_90a are in ", kernels)));
  EXPECT_THAT(cold.out, HasSubstr(fmt::format(": 0 were there, {} were built in ", kernels)));
  const auto entries = std::filesystem::directory_iterator(folder / "cache");
  EXPECT_EQ(static_cast<size_t>(std::distance(begin(entries), end(entries))), kernels);
  const Outcome warm = plait("compile" + flags + cache);
  EXPECT_THAT(warm.out, HasSubstr(fmt::format(": {} were there, 0 were built in ", kernels)));

  std::ofstream(folder / "file") << "no directory";
  const Outcome refused = plait("compile" + flags + " --kernel-cache-dir " + (folder / "file/cache").string());
  EXPECT_EQ(refused.status, 1);
  EXPECT_THAT(refused.error,
              HasSubstr("--kernel-cache-dir " + (folder / "file/cache").string() + " cannot be written"));
  EXPECT_THAT(plait("compile" + cache).error, HasSubstr("--model-path is missing"));
  std::filesystem::remove_all(folder);
}

TEST(Program, SaysWhyParallelFlagsDoNotGoTogether) {
  const std::string flags = " --model-path " + kSource + "/models/demo --tp-size 3 --attn-cp-size 2";
  const Outcome plan = plait("plan" + flags), check = plait("check" + flags);
  EXPECT_EQ(plan.status, 1);
  EXPECT_THAT(plan.error, HasSubstr("refused: --tp-size 3 cannot be divided by --attn-cp-size 2"));
  EXPECT_EQ(check.status, 1);
  EXPECT_THAT(check.out, HasSubstr("refused      --tp-size 3 cannot be divided by --attn-cp-size 2"));
  EXPECT_EQ(plait("generate --prompt x" + flags).status, 2);
}

TEST(Program, ReplicasAreForServing) {
  const std::string flags = " --dp-size 2 --model-path " + kDemo;
  const Outcome check = plait("check" + flags);
  EXPECT_EQ(check.status, 0) << check.out;
  EXPECT_THAT(check.out, HasSubstr("replicas     2 engine processes under plait serve"));
  const Outcome generate = plait("generate --prompt x" + flags);
  EXPECT_EQ(generate.status, 1);
  EXPECT_THAT(generate.error, HasSubstr("only plait serve runs them"));
}

}  // namespace
}  // namespace plait
