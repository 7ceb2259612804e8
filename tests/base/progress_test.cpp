#include "base/progress.h"

#include <algorithm>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace plait {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr size_t kMiB = size_t{1} << 20;

TEST(FormatProgress, SaysShareBytesTimesAndRate) {
  EXPECT_EQ(format_progress("Loading", 256 * kMiB, 1024 * kMiB, 2, 70),
            "Loading:  25% Completed | 256.0 MiB/1.00 GiB [00:02<00:06, 134.2 MB/s]");
  EXPECT_EQ(format_progress("Loading", 256 * kMiB, 1024 * kMiB, 2, 79),
            "Loading:  25% Completed |##      | 256.0 MiB/1.00 GiB [00:02<00:06, 134.2 MB/s]");
}

TEST(FormatProgress, EdgesAreShownAsTheyAre) {
  EXPECT_THAT(format_progress("x", 0, 100, 0, 50), HasSubstr("  0% Completed | 0 B/100 B [00:00<?, 0.0 KB/s]"));
  EXPECT_THAT(format_progress("x", 999, 1000, 1, 60), HasSubstr(" 99% Completed"));  // not rounded to 100
  EXPECT_THAT(format_progress("x", 1000, 1000, 1, 60), HasSubstr("100% Completed"));
  EXPECT_THAT(format_progress("x", 0, 0, 1, 60), HasSubstr("100% Completed"));
  EXPECT_THAT(format_progress("x", 1, 10000, 7, 60), HasSubstr("[00:07<19:26:33"));
}

TEST(FormatProgress, NeverExceedsTheColumns) {
  int tried = 0;
  for (int columns = -1; columns <= 200; ++columns) {
    for (const size_t done : {size_t{0}, size_t{1}, kMiB, 999 * kMiB, 1000 * kMiB}) {
      const std::string line = format_progress("Loading safetensors checkpoint", done, 1000 * kMiB, 3, columns);
      EXPECT_LE(line.size(), static_cast<size_t>(std::max(columns, 0)));
      ++tried;
    }
  }
  fmt::print("{} widths tried\n", tried);
}

// A terminal or a file, with a clock that stands still unless the test moves it.
struct FakeOutput {
  double now = 100;
  std::vector<std::string> written;

  ProgressBar::Output output(bool is_terminal) {
    return {is_terminal, [] { return 81; }, [this](std::string_view text) { written.emplace_back(text); },
            [this] { return now; }};
  }
};

TEST(ProgressBar, RedrawsTerminalsAtMostTenTimesASecond) {
  FakeOutput fake;
  {
    ProgressBar bar("Loading", fake.output(true));
    for (int i = 0; i < 1000; ++i) {
      bar.update(static_cast<size_t>(i), 1000);
      fake.now += 0.001;
    }
    EXPECT_GE(fake.written.size(), 9U);
    EXPECT_LE(fake.written.size(), 10U);
    for (const std::string& line : fake.written) EXPECT_THAT(line, testing::MatchesRegex("\rLoading: .*\x1b\\[K"));
    bar.update(1000, 1000);
    EXPECT_THAT(fake.written.back(), testing::EndsWith("\x1b[K\n"));
    fake.written.clear();
    bar.update(1000, 1000);  // once is enough
  }
  EXPECT_THAT(fake.written, IsEmpty());
}

TEST(ProgressBar, EndsItsLineWhenTheWorkIsGivenUp) {
  FakeOutput fake;
  {
    ProgressBar bar("Loading", fake.output(true));
    bar.update(1, 10);
  }
  ASSERT_EQ(fake.written.size(), 2U);
  EXPECT_EQ(fake.written.back(), "\n");
}

TEST(ProgressBar, WritesPlainLinesElsewhere) {
  FakeOutput fake;
  {
    ProgressBar bar("Loading", fake.output(false));
    for (int i = 0; i < 120; ++i) {
      bar.update(static_cast<size_t>(i), 120);
      fake.now += 0.1;
    }
    bar.update(120, 120);
  }
  ASSERT_EQ(fake.written.size(), 3U);  // after 5 s, after 10 s, at the end
  for (const std::string& line : fake.written)
    EXPECT_THAT(line, testing::AllOf(testing::StartsWith("Loading: "), testing::EndsWith("]\n")));
}

TEST(ProgressBar, ShortWorkIsOnePlainLine) {
  FakeOutput fake;
  {
    ProgressBar bar("Loading", fake.output(false));
    bar.update(0, 10);
    bar.update(5, 10);
    bar.update(10, 10);
  }
  EXPECT_EQ(fake.written.size(), 1U);
}

}  // namespace
}  // namespace plait
