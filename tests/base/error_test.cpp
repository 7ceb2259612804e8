#include "base/error.h"

#include <cerrno>
#include <memory>
#include <set>
#include <stdexcept>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/assert.h"

namespace plait {
namespace {

using testing::HasSubstr;

Result<int> half(int value) {
  if (value % 2 != 0) return invalid(fmt::format("{} is odd", value));
  return value / 2;
}

Result<int> quarter(int value) {
  PLAIT_ASSIGN_OR_RETURN(const int first, half(value));
  PLAIT_ASSIGN_OR_RETURN(const int second, half(first));
  return second;
}

Status check_quarter(int value) {
  PLAIT_RETURN_IF_ERROR(quarter(value));
  return {};
}

TEST(Error, MacrosPassValuesAndErrorsOn) {
  EXPECT_EQ(quarter(8).value(), 2);
  EXPECT_EQ(quarter(6).error().message, "3 is odd");
  EXPECT_EQ(quarter(7).error().message, "7 is odd");
  EXPECT_TRUE(check_quarter(8).has_value());
  EXPECT_EQ(check_quarter(6).error().kind, ErrorKind::kInvalid);
}

TEST(Error, ResultsMayHoldWhatCanOnlyBeMoved) {
  const auto make = []() -> Result<std::unique_ptr<int>> { return std::make_unique<int>(7); };
  const auto use = [&]() -> Result<int> {
    PLAIT_ASSIGN_OR_RETURN(const std::unique_ptr<int> pointer, make());
    return *pointer;
  };
  EXPECT_EQ(use().value(), 7);
}

TEST(Error, ContextStandsBeforeTheMessage) {
  const Error error = corrupt("a gap").within("model.safetensors").within("/models/x");
  EXPECT_EQ(error.kind, ErrorKind::kCorrupt);
  EXPECT_EQ(error.message, "/models/x: model.safetensors: a gap");
}

TEST(Error, OperatingSystemErrorsSayWhy) {
  const Error error = io_error("config.json: cannot be opened", EACCES);
  EXPECT_EQ(error.kind, ErrorKind::kIo);
  EXPECT_EQ(error.message, "config.json: cannot be opened: Permission denied");
}

TEST(Error, EveryKindHasItsOwnName) {
  std::set<std::string> names;
  for (const Error& error : {invalid(""), not_found(""), unsupported(""), corrupt(""), exhausted(""),
                             deadline_exceeded(""), cancelled(""), unavailable(""), io_error("", 0), internal("")})
    names.insert(name_of(error.kind));
  EXPECT_EQ(names.size(), 10U);
  EXPECT_FALSE(names.contains("?"));
}

TEST(Error, AnErrorThatNobodyLookedAtIsOurMistake) {
  try {
    (void)half(3).value();
    FAIL() << "value() of an error must throw";
  } catch (const std::logic_error& error) {
    EXPECT_THAT(error.what(), HasSubstr("error_test.cpp"));
    EXPECT_THAT(error.what(), HasSubstr("3 is odd"));
  }
}

TEST(AssertDeathTest, SaysWhereAndWhatAndAborts) {
  EXPECT_DEATH(PLAIT_ASSERT(1 + 1 == 3, "arithmetic"),
               "error_test.cpp:[0-9]+: assertion failed: 1 \\+ 1 == 3: arithmetic");
}

}  // namespace
}  // namespace plait
