#include "checkpoint/safetensors.h"

#include <chrono>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/checkpoint/checkpoint_files.h"

namespace plait {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing_files::as_bytes;
using testing_files::safetensors_file;

TEST(Safetensors, ReadsEntriesInTheOrderOfTheirData) {
  const std::string header =
      R"({"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},"__metadata__":{"format":"pt"},)"
      R"("a":{"data_offsets":[0,4],"dtype":"F32","shape":[]},)"
      R"("nothing":{"dtype":"F8_E4M3","shape":[0,7],"data_offsets":[4,4]}}   )";
  const std::string file = safetensors_file(header, std::string(16, 'x'));
  const auto entries = parse_safetensors(as_bytes(file));
  ASSERT_TRUE(entries.has_value()) << entries.error().message;
  ASSERT_EQ(entries->size(), 3U);
  const auto& [a, nothing, b] = std::tie((*entries)[0], (*entries)[1], (*entries)[2]);
  EXPECT_EQ(a.name, "a");
  EXPECT_EQ(a.dtype, DType::kF32);
  EXPECT_TRUE(a.shape.empty());
  EXPECT_EQ(a.begin_bytes, 8 + header.size());
  EXPECT_EQ(a.end_bytes, 8 + header.size() + 4);
  EXPECT_EQ(nothing.name, "nothing");
  EXPECT_EQ(nothing.begin_bytes, nothing.end_bytes);
  EXPECT_EQ(b.name, "b");
  EXPECT_THAT(b.shape, ElementsAre(2, 3));
  EXPECT_EQ(b.end_bytes, file.size());
}

TEST(Safetensors, ReadsEveryDtypeOfTheFormat) {
  int tried = 0;
  for (const auto& [name, bytes] : {std::pair{"F64", 8},
                                    {"F32", 4},
                                    {"F16", 2},
                                    {"BF16", 2},
                                    {"F8_E4M3", 1},
                                    {"F8_E5M2", 1},
                                    {"F8_E8M0", 1},
                                    {"I64", 8},
                                    {"U64", 8},
                                    {"I32", 4},
                                    {"U32", 4},
                                    {"I16", 2},
                                    {"U16", 2},
                                    {"I8", 1},
                                    {"U8", 1},
                                    {"BOOL", 1}}) {
    const std::string file = safetensors_file({{"t", name, {3}, std::string(3 * bytes, 'x')}});
    const auto entries = parse_safetensors(as_bytes(file));
    ASSERT_TRUE(entries.has_value()) << entries.error().message;
    EXPECT_EQ(name_of((*entries)[0].dtype), name);
    ++tried;
  }
  fmt::print("{} dtypes read\n", tried);
}

TEST(Safetensors, AcceptsWhatTheFormatAllows) {
  // No tensors at all; escapes in names; a field from a later version, with anything in it.
  for (const auto& [header, data] : {
           std::pair<std::string, std::string>{"{}", ""},
           {R"({"__metadata__":{}})", ""},
           {R"({"\u00e9\"":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "x"},
           {R"({"t":{"later":{"a":[1,{"b":null}],"c":"d"},"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}})", "x"},
       }) {
    const std::string file = safetensors_file(header, data);
    const auto entries = parse_safetensors(as_bytes(file));
    EXPECT_TRUE(entries.has_value()) << header << "\n" << entries.error().message;
  }
}

struct Hostile {
  std::string file;
  std::string message;  // part of the refusal
};

std::string tensor(std::string_view fields) {
  return fmt::format(R"({{"t":{{{}}}}})", fields);
}

// One tensor "t" of U8 with this shape and these offsets, before `data_bytes` bytes.
Hostile offsets(std::string_view shape, std::string_view data_offsets, size_t data_bytes, std::string message) {
  const auto header = tensor(fmt::format(R"("dtype":"U8","shape":{},"data_offsets":{})", shape, data_offsets));
  return {safetensors_file(header, std::string(data_bytes, 'x')), std::move(message)};
}

std::string with_length(uint64_t header_bytes, std::string_view rest) {
  std::string file(8, '\0');
  std::memcpy(file.data(), &header_bytes, sizeof(header_bytes));
  return file + std::string(rest);
}

std::vector<Hostile> hostile_lengths() {
  return {
      {"", "too few"},
      {"1234567", "too few"},
      {with_length(0, ""), "does not begin with '{'"},
      {with_length(1, ""), "cut off"},
      {with_length(100, "{}"), "cut off"},
      {with_length(100'000'001, "{}"), "at most 100000000"},
      {with_length(uint64_t{1} << 63, "{}"), "at most 100000000"},
      {with_length(~uint64_t{0}, "{}"), "at most 100000000"},
      {with_length(~uint64_t{7}, "{}"), "at most 100000000"},
      {with_length(1, "{}"), "not valid JSON"},
  };
}

std::vector<Hostile> hostile_json() {
  const auto refused = [](std::string header, std::string message) {
    return Hostile{safetensors_file(header, ""), std::move(message)};
  };
  return {
      refused("[]", "does not begin with '{'"),
      refused(" {}", "does not begin with '{'"),
      refused("{} {}", "not valid JSON"),
      refused("{\"a\":", "not valid JSON"),
      refused("{\"a\"}", "not valid JSON"),
      refused("{,}", "not valid JSON"),
      refused("{\"\xff\xfe\":{}}", "not valid JSON"),
      refused("{\"\xc0\xaf\":{}}", "not valid JSON"),
      refused(R"({"\ud800":{}})", "not valid JSON"),
      refused("{\"a\nb\":{}}", "not valid JSON"),
      refused("{/**/}", "not valid JSON"),
      refused(std::string("{}\0", 3), "not valid JSON"),
      refused("{\"t\":" + std::string(100'000, '['), "an array does not belong there"),
      refused(R"({"t":{"later":)" + std::string(100'000, '[') + "}}", "too deep"),
      refused("{\"" + std::string(70'000, 'n') + "\":{}}", "not valid JSON"),
      refused(R"({"t":1})", "a number does not belong"),
      refused(R"({"t":"x"})", "a string does not belong"),
      refused(R"({"t":null})", "null does not belong"),
      refused(R"({"t":true})", "a boolean does not belong"),
      refused(R"({"t":[]})", "an array does not belong"),
      refused(R"({"t":{}})", "needs dtype, shape and two data_offsets"),
      refused(R"({"__metadata__":{"a":1}})", "__metadata__ \"a\": a number does not belong"),
      refused(R"({"__metadata__":{"a":{}}})", "an object does not belong"),
      refused(R"({"__metadata__":{"a":["b"]}})", "an array does not belong"),
      refused(R"({"__metadata__":{"a":null}})", "null does not belong"),
      refused(R"({"__metadata__":"a"})", "a string does not belong"),
      refused(R"({"__metadata__":{},"__metadata__":{}})", "__metadata__ stands there twice"),
  };
}

std::vector<Hostile> hostile_tensors() {
  const auto refused = [](std::string_view fields, std::string message) {
    return Hostile{safetensors_file(tensor(fields), "x"), std::move(message)};
  };
  return {
      refused(R"("dtype":"U8","shape":[1])", "needs dtype, shape"),
      refused(R"("dtype":"U8","data_offsets":[0,1])", "needs dtype, shape"),
      refused(R"("shape":[1],"data_offsets":[0,1])", "needs dtype, shape"),
      refused(R"("dtype":"U8","shape":[1],"data_offsets":[0])", "two data_offsets"),
      refused(R"("dtype":"U8","shape":[1],"data_offsets":[])", "two data_offsets"),
      refused(R"("dtype":"U8","shape":[1],"data_offsets":[0,1,2])", "more than two numbers"),
      refused(R"("dtype":"U8","shape":[1],"data_offsets":{"0":0,"1":1})", "an object does not belong"),
      refused(R"("dtype":"U8","shape":[1],"data_offsets":1)", "a number does not belong"),
      refused(R"("dtype":"U8","shape":[1],"data_offsets":["0","1"])", "a string does not belong"),
      refused(R"("dtype":"U8","shape":[1],"data_offsets":[-1,1])", "negative number -1"),
      refused(R"("dtype":"U8","shape":[1],"data_offsets":[0,1.0])", "not a whole number"),
      refused(R"("dtype":"U8","shape":[1],"data_offsets":[0,99999999999999999999])", "not a whole number"),
      refused(R"("dtype":"U8","shape":[[1]],"data_offsets":[0,1])", "an array does not belong"),
      refused(R"("dtype":"U8","shape":1,"data_offsets":[0,1])", "a number does not belong"),
      refused(R"("dtype":"U8","shape":null,"data_offsets":[0,1])", "null does not belong"),
      refused(R"("dtype":"U8","shape":[-1],"data_offsets":[0,1])", "negative number -1"),
      refused(R"("dtype":"U8","shape":[1e0],"data_offsets":[0,1])", "not a whole number"),
      refused(R"("dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,1])", "too large"),
      refused(R"("dtype":"U8","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"data_offsets":[0,1])", "more than 16"),
      refused(R"("dtype":"F4","shape":[1],"data_offsets":[0,1])", R"(dtype "F4" is not known)"),
      refused(R"("dtype":"bf16","shape":[1],"data_offsets":[0,1])", R"(dtype "bf16" is not known)"),
      refused(R"("dtype":7,"shape":[1],"data_offsets":[0,1])", "a number does not belong"),
      refused(R"("dtype":["U8"],"shape":[1],"data_offsets":[0,1])", "an array does not belong"),
      refused(R"("dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1])", "stands there twice"),
      refused(R"("dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1])", "stands there twice"),
      refused(R"("dtype":"U8","shape":[1],"data_offsets":[0,1],"data_offsets":[0,1])", "stands there twice"),
  };
}

std::vector<Hostile> hostile_offsets() {
  const auto two = [](std::string_view first, std::string_view second, size_t data_bytes, std::string message) {
    return Hostile{safetensors_file(fmt::format(R"({{"a":{{"dtype":"U8","shape":[4],"data_offsets":{}}},)"
                                                R"("b":{{"dtype":"U8","shape":[4],"data_offsets":{}}}}})",
                                                first, second),
                                    std::string(data_bytes, 'x')),
                   std::move(message)};
  };
  return {
      offsets("[1]", "[1,0]", 1, "end before they begin"),
      offsets("[1]", "[0,2]", 1, "leave the 1 bytes of data"),
      offsets("[1]", "[18446744073709551615,18446744073709551615]", 1, "leave the 1 bytes"),
      offsets("[1]", "[18446744073709551615,0]", 1, "end before they begin"),
      offsets("[1]", "[9223372036854775807,9223372036854775808]", 1, "leave the 1 bytes"),
      offsets("[2]", "[0,1]", 1, "do not fit U8 [2], which has 2 bytes"),
      offsets("[]", "[0,2]", 2, "do not fit U8 []"),
      offsets("[0]", "[0,1]", 1, "do not fit U8 [0]"),
      offsets("[4611686018427387904,4]", "[0,0]", 0, "its size overflows"),
      offsets("[4294967296,4294967296]", "[0,0]", 0, "its size overflows"),
      offsets("[9223372036854775807,9223372036854775807,9223372036854775807]", "[0,1]", 1, "its size overflows"),
      offsets("[9223372036854775807,2]", "[0,1]", 1, "do not fit"),
      offsets("[1]", "[1,2]", 2, "leave a gap after byte 0"),
      offsets("[1]", "[0,1]", 2, "1 bytes after the last tensor's data belong to no tensor"),
      {safetensors_file("{}", "x"), "belong to no tensor"},
      two("[0,4]", "[0,4]", 4, "overlap another tensor"),
      two("[0,4]", "[3,7]", 7, "overlap another tensor"),
      two("[4,8]", "[5,9]", 9, "leave a gap"),
      two("[0,4]", "[5,9]", 9, "leave a gap after byte 4"),
      {safetensors_file(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                        R"("a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                        "xx"),
       R"(tensor "a" stands in the header twice)"},
      {safetensors_file(R"({"a":{"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0]}})", ""),
       "its size overflows"},
  };
}

TEST(Safetensors, RefusesHostileFiles) {
  int refused = 0;
  for (const auto& make : {hostile_lengths, hostile_json, hostile_tensors, hostile_offsets}) {
    for (const Hostile& hostile : make()) {
      const auto entries = parse_safetensors(as_bytes(hostile.file));
      const std::string shown = hostile.file.substr(std::min<size_t>(8, hostile.file.size()), 200);
      ASSERT_TRUE(entries.has_error()) << shown;
      EXPECT_THAT(entries.error().message, HasSubstr(hostile.message)) << shown;
      EXPECT_LT(entries.error().message.size(), 1000U);
      ++refused;
    }
  }
  fmt::print("{} hostile safetensors files refused\n", refused);
}

TEST(Safetensors, EveryTruncationIsRefused) {
  const std::string file =
      safetensors_file({{"a", "F32", {2, 2}, std::string(16, 'a')}, {"b", "BF16", {3}, std::string(6, 'b')}});
  ASSERT_TRUE(parse_safetensors(as_bytes(file)).has_value());
  for (size_t bytes = 0; bytes < file.size(); ++bytes)
    EXPECT_TRUE(parse_safetensors(as_bytes(std::string_view(file).substr(0, bytes))).has_error()) << bytes;
  fmt::print("{} truncated safetensors files refused\n", file.size());
}

// A header far beyond any model's must take time in proportion to its size.
TEST(Safetensors, ManyTensorsAreReadFast) {
  constexpr int kTensors = 100'000;
  std::string header = "{";
  for (int i = 0; i < kTensors; ++i)
    header += fmt::format(R"({}"model.layers.{}.mlp.experts.{}.w":{{"dtype":"U8","shape":[1],"data_offsets":[{},{}]}})",
                          i ? "," : "", i % 61, i, i, i + 1);
  const std::string file = safetensors_file(header + "}", std::string(kTensors, 'x'));
  const auto begin = std::chrono::steady_clock::now();
  const auto entries = parse_safetensors(as_bytes(file));
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  ASSERT_TRUE(entries.has_value()) << entries.error().message;
  EXPECT_EQ(entries->size(), static_cast<size_t>(kTensors));
  EXPECT_LT(took.count(), 10) << "quadratic?";
  fmt::print("{} tensors ({:.1f} MB of header) in {:.0f} ms\n", kTensors, static_cast<double>(header.size()) / 1e6,
             took.count() * 1e3);
}

}  // namespace
}  // namespace plait
