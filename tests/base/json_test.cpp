#include "base/json.h"

#include <fstream>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

namespace plait::json {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

boost::json::object object(std::string_view text) {
  auto parsed = parse_object(text);
  EXPECT_TRUE(parsed.has_value()) << parsed.error().message;
  return std::move(parsed).value();
}

TEST(Json, RefusesWhatIsNotOneValue) {
  const std::pair<std::string, const char*> kRefused[] = {
      {"", "incomplete"},
      {"{", "incomplete"},
      {"{}x", "extra data"},
      {"{} {}", "extra data"},
      {"{'a':1}", "byte 1"},
      {"{\"a\":01}", "not valid"},
      {"[1,]", "not valid"},
      {"nul", "incomplete"},
      {"NaN", "not valid"},
      {"[Infinity]", "not valid"},
      {"\"\\ud800\"", "not valid"},
      {"\"\xff\"", "not valid"},
      {"\"\xc0\x80\"", "not valid"},
      {"\"a\nb\"", "not valid"},
      {"// x\n1", "not valid"},
      {"\xef\xbb\xbf{}", "not valid"},
      {std::string("1\0", 2), "not valid"},
      {std::string(33, '['), "nested deeper than 32 levels"},
      {std::string(1'000'000, '['), "nested deeper"},
      {std::string(17 << 20, ' '), "17.0 MiB of JSON; at most 16.0 MiB"}};
  for (const auto& [text, message] : kRefused) {
    const auto parsed = parse(text);
    ASSERT_TRUE(parsed.has_error()) << text.substr(0, 50);
    EXPECT_EQ(parsed.error().kind, ErrorKind::kInvalid);
    EXPECT_THAT(parsed.error().message, HasSubstr(message)) << text.substr(0, 50);
  }
  fmt::print("{} texts refused\n", std::size(kRefused));
}

TEST(Json, DepthIsCountedFromTheOutside) {
  const auto nested = [](size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_TRUE(parse(nested(32)).has_value());
  EXPECT_TRUE(parse(nested(33)).has_error());
  EXPECT_TRUE(parse(nested(5), {.depth = 5}).has_value());
  EXPECT_TRUE(parse(nested(6), {.depth = 5}).has_error());
}

TEST(Json, IntegersAreExact) {
  struct Case {
    const char* text;
    std::optional<int64_t> value;
  };
  const Case kCases[] = {{"0", 0},
                         {"-1", -1},
                         {"9223372036854775807", std::numeric_limits<int64_t>::max()},
                         {"-9223372036854775808", std::numeric_limits<int64_t>::min()},
                         {"9223372036854775808", {}},
                         {"18446744073709551616", {}},
                         {"8.0", 8},
                         {"8e0", 8},
                         {"8.5", {}},
                         {"1e15", 1'000'000'000'000'000},
                         {"1e17", {}},  // may have been another integer
                         {"1e308", {}},
                         {"1e999", {}},
                         {"true", {}},
                         {"\"8\"", {}},
                         {"null", {}},
                         {"[8]", {}}};
  for (const Case& c : kCases) {
    const auto integer = to_integer(parse(c.text).value());
    ASSERT_EQ(integer.has_value(), c.value.has_value()) << c.text;
    if (integer.has_value()) {
      EXPECT_EQ(*integer, *c.value) << c.text;
    }
  }
}

TEST(Json, RangesIncludeTheirEnds) {
  const auto value = [](const char* text) { return parse(text).value(); };
  EXPECT_TRUE(to_integer(value("1"), {1, 8}).has_value());
  EXPECT_TRUE(to_integer(value("8"), {1, 8}).has_value());
  EXPECT_EQ(to_integer(value("9"), {1, 8}).error().message, "must be an integer from 1 to 8, not 9");
  EXPECT_EQ(to_integer(value("0"), {1}).error().message, "must be an integer of at least 1, not 0");
  EXPECT_EQ(to_integer(value("\"a\"")).error().message, "must be an integer, not \"a\"");
  EXPECT_EQ(to_number(value("1.5"), {0, 1}).error().message, "must be a number from 0 to 1, not 1.5");
  EXPECT_EQ(to_number(value("1e999")).error().message, "must be a number, not inf");
  EXPECT_EQ(to_number(value("3")).value(), 3.0);
  EXPECT_EQ(to_boolean(value("0")).error().message, "must be true or false, not 0");
  EXPECT_EQ(to_string(value("{}")).error().message, "must be a string, not an object");
}

TEST(Json, LongValuesAreCutBetweenCharacters) {
  std::string text;
  for (int i = 0; i < 100; ++i) text += "\xc3\xa4";  // two bytes each
  EXPECT_EQ(describe(boost::json::value(text)), "\"" + text.substr(0, 40) + "...\"");
  EXPECT_EQ(describe(boost::json::value("x" + text)), "\"x" + text.substr(0, 38) + "...\"");
}

TEST(JsonFields, AbsentAndNullAreTheSame) {
  const auto source = object(R"({"null": null})");
  const Fields fields(source);
  for (const char* key : {"null", "absent"}) {
    EXPECT_FALSE(fields.has(key));
    EXPECT_FALSE(*fields.integer(key));
    EXPECT_FALSE(*fields.number(key));
    EXPECT_FALSE(*fields.boolean(key));
    EXPECT_FALSE(*fields.string(key));
    EXPECT_FALSE(*fields.object(key));
    EXPECT_FALSE(*fields.integers(key));
    EXPECT_EQ(fields.required_integer(key).error().message, fmt::format("{}: is missing", key));
  }
}

TEST(JsonFields, ErrorsNameThePathAndHaveTheGivenKind) {
  const auto source = object(R"({"outer": {"inner": {"count": 9}}, "stop": [1, "x"]})");
  const Fields fields(source, ErrorKind::kCorrupt);
  const auto inner = (**fields.object("outer")).object("inner");
  const auto count = (**inner).integer("count", {1, 8});
  ASSERT_TRUE(count.has_error());
  EXPECT_EQ(count.error().kind, ErrorKind::kCorrupt);
  EXPECT_EQ(count.error().message, "outer.inner.count: must be an integer from 1 to 8, not 9");
  EXPECT_EQ(fields.integers("stop").error().message, "stop: element 1: must be an integer, not \"x\"");
  EXPECT_EQ(fields.object("stop").error().message, "stop: must be an object, not an array of 2");
}

TEST(JsonFields, ListsOfIntegersMayBeOneInteger) {
  const auto source = object(R"({"one": 7, "many": [1, 2], "none": []})");
  const Fields fields(source);
  EXPECT_THAT(**fields.integers("one"), ElementsAre(7));
  EXPECT_THAT(**fields.integers("many"), ElementsAre(1, 2));
  EXPECT_THAT(**fields.integers("none"), ElementsAre());
  EXPECT_EQ(fields.integers("many", {}, 1).error().message, "many: has 2 elements; at most 1 are read");
}

TEST(JsonFields, OfEqualKeysTheLastCounts) {
  const auto source = object(R"({"a": 1, "a": 2})");
  EXPECT_EQ(Fields(source).required_integer("a").value(), 2);
}

TEST(Json, FilesAreNamedInErrors) {
  const auto folder = std::filesystem::temp_directory_path() / fmt::format("plait_json_{}", getpid());
  std::filesystem::create_directories(folder);
  const auto file = folder / "x.json";
  EXPECT_EQ(read_object_file(file).error().kind, ErrorKind::kNotFound);
  std::filesystem::create_directory(file);
  EXPECT_THAT(read_object_file(file).error().message, HasSubstr("not a regular file"));
  std::filesystem::remove(file);
  std::ofstream(file) << "{\"a\": 1}";
  EXPECT_EQ(read_object_file(file)->at("a").as_int64(), 1);
  EXPECT_THAT(read_object_file(file, {.bytes = 4}).error().message, HasSubstr("of JSON; at most 4 B are read"));
  std::ofstream(file) << "[1]";
  const Error error = read_object_file(file).error();
  EXPECT_EQ(error.kind, ErrorKind::kCorrupt);
  EXPECT_EQ(error.message, file.string() + ": must be a JSON object, not an array of 1");
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace plait::json
