#include "jit/kernel_source.h"

#include <random>
#include <set>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/effort.h"

namespace plait::jit {
namespace {

using ::testing::HasSubstr;

const CompilerIdentity kCompiler{"nvrtc", "13.0.88"};

KernelSource some_source() {
  KernelSource source;
  source.name = "scale_n128";
  source.text = "extern \"C\" __global__ void scale(float* x) { x[0] *= kN; }";
  source.entry = "scale";
  source.constants = {{"kN", 128}, {"kLargest", int64_t{1} << 40}};
  source.options = {"--use_fast_math"};
  return source;
}

// Entries on disk are found by this value: when it changes, kKernelFormat must.
TEST(KernelKey, IsTheSameForEver) {
  ASSERT_EQ(kKernelFormat, 1U);
  EXPECT_EQ(to_hex(kernel_key(some_source(), kCompiler)),
            "5ef257c1af37d0ca1a84c11915e30d9ce5352e4c1b8069c2008a6d570155691d");
}

TEST(KernelKey, DependsOnEverythingButTheName) {
  const KernelSource original = some_source();
  std::set<Digest> keys = {kernel_key(original, kCompiler)};
  const auto expect_new = [&](const KernelSource& source, const CompilerIdentity& compiler, const char* what) {
    EXPECT_TRUE(keys.insert(kernel_key(source, compiler)).second) << what;
  };
  const auto changed = [&](auto&& change) {
    KernelSource source = original;
    change(source);
    return source;
  };
  expect_new(changed([](auto& s) { s.text += " "; }), kCompiler, "text");
  expect_new(changed([](auto& s) { s.entry = "scales"; }), kCompiler, "entry");
  expect_new(changed([](auto& s) { s.constants["kN"] = 129; }), kCompiler, "value of a constant");
  expect_new(changed([](auto& s) { s.constants["kM"] = 128; }), kCompiler, "one more constant");
  expect_new(changed([](auto& s) { s.constants.erase("kN"); }), kCompiler, "one constant less");
  expect_new(changed([](auto& s) { s.architecture = "sm_90"; }), kCompiler, "architecture");
  expect_new(changed([](auto& s) { s.options.clear(); }), kCompiler, "no options");
  expect_new(changed([](auto& s) { s.options.push_back("--use_fast_math"); }), kCompiler, "an option twice");
  expect_new(changed([](auto& s) { s.options = {"--use_fast", "_math"}; }), kCompiler, "options cut elsewhere");
  expect_new(original, {"nvrtc", "13.0.89"}, "release of the compiler");
  expect_new(original, {"nvrtc1", "3.0.88"}, "name and version cut elsewhere");
  EXPECT_EQ(kernel_key(changed([](auto& s) { s.name = "another"; }), kCompiler), kernel_key(original, kCompiler));
}

TEST(KernelKey, RandomSourcesHaveKeysOfTheirOwn) {
  std::mt19937_64 random(20240611);
  // From an alphabet of two, so that texts that differ only in where fields end are drawn often.
  const auto word = [&random] {
    std::string text(1 + random() % 3, 'a');
    for (char& c : text) c = random() % 2 == 0 ? 'a' : 'b';
    return text;
  };
  std::map<Digest, std::string> seen;
  const int64_t tried = repetitions(20000);
  for (int64_t i = 0; i < tried; ++i) {
    KernelSource source;
    source.text = word();
    source.entry = word();
    for (uint64_t n = random() % 3; n > 0; --n) source.constants[word()] = static_cast<int64_t>(random() % 2);
    for (uint64_t n = random() % 3; n > 0; --n) source.options.push_back(word());
    source.architecture = word();
    const CompilerIdentity compiler{word(), word()};
    // The same fields, written down so that a person sees where each ends.
    std::string spelled =
        fmt::format("{}|{}|{}|{}|{}", source.text, source.entry, source.architecture, compiler.name, compiler.version);
    for (const auto& [name, value] : source.constants) spelled += fmt::format("|{}={}", name, value);
    for (const auto& option : source.options) spelled += fmt::format("|-{}", option);
    const auto [at, is_new] = seen.emplace(kernel_key(source, compiler), spelled);
    ASSERT_EQ(at->second, spelled) << "two sources share a key";
  }
  std::printf("kernel keys: %ld random sources, %zu different ones\n", static_cast<long>(tried), seen.size());
}

TEST(KernelSource, ConstantsComeFirstInTheTypeThatHoldsThem) {
  KernelSource source = some_source();
  source.constants = {{"kZ", -1},
                      {"kA", 7},
                      {"kIntMin", std::numeric_limits<int>::min()},
                      {"kBig", int64_t{1} << 31},
                      {"kMin", std::numeric_limits<int64_t>::min()}};
  EXPECT_EQ(translation_unit(source),
            "[[maybe_unused]] constexpr int kA = 7;\n"
            "[[maybe_unused]] constexpr long long kBig = 2147483648LL;\n"
            "[[maybe_unused]] constexpr int kIntMin = -2147483648;\n"
            "[[maybe_unused]] constexpr long long kMin = -9223372036854775807LL - 1;\n"
            "[[maybe_unused]] constexpr int kZ = -1;\n"
            "#line 1\n" +
                source.text);
}

TEST(KernelSource, WhatTheKeyCannotCoverIsRefused) {
  struct Case {
    const char* says;
    void (*change)(KernelSource&);
  };
  const Case cases[] = {
      {"'' is no name", [](KernelSource& s) { s.name = ""; }},
      {"'../up' is no name", [](KernelSource& s) { s.name = "../up"; }},
      {"is no name", [](KernelSource& s) { s.name = std::string(129, 'a'); }},
      {"'a b' is no entry", [](KernelSource& s) { s.entry = "a b"; }},
      {"'1st' is no constant", [](KernelSource& s) { s.constants["1st"] = 1; }},
      {"'compute_90' is no real architecture", [](KernelSource& s) { s.architecture = "compute_90"; }},
      {"'sm_90a -I' is no real architecture", [](KernelSource& s) { s.architecture = "sm_90a -I"; }},
      {"its text is empty", [](KernelSource& s) { s.text = ""; }},
      {"NUL byte", [](KernelSource& s) { s.text.push_back('\0'); }},
      {"#include", [](KernelSource& s) { s.text = "#include <cuda_fp8.h>\n"; }},
      {"#include", [](KernelSource& s) { s.text = "int a;\n  # \tinclude \"x.h\""; }},
      {"option '-I/usr/include'", [](KernelSource& s) { s.options = {"-I/usr/include"}; }},
      {"option '--include-path=/x'", [](KernelSource& s) { s.options = {"--include-path=/x"}; }},
      {"option '-arch=sm_80'", [](KernelSource& s) { s.options = {"-arch=sm_80"}; }},
      {"option '-DkN=3'", [](KernelSource& s) { s.options = {"-DkN=3"}; }},
      {"an option is empty", [](KernelSource& s) { s.options = {""}; }},
  };
  EXPECT_FALSE(validate(some_source()).has_error());
  for (const Case& c : cases) {
    KernelSource source = some_source();
    c.change(source);
    const Status status = validate(source);
    ASSERT_TRUE(status.has_error()) << c.says;
    EXPECT_EQ(status.error().kind, ErrorKind::kInvalid);
    EXPECT_THAT(status.error().message, HasSubstr(c.says));
  }
}

}  // namespace
}  // namespace plait::jit
