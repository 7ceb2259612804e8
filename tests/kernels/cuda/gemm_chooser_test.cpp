#include "kernels/cuda/gemm_chooser.h"

#include <random>
#include <set>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/effort.h"

namespace plait::cuda {
namespace {

using ::testing::HasSubstr;

TEST(RowsClass, ClassesFollowEachOtherWithoutGaps) {
  int64_t classes = 0;
  for (int64_t rows = 1; rows <= 200000; ++rows) {
    const int64_t last = rows_class(rows);
    ASSERT_GE(last, rows);
    ASSERT_EQ(rows_class(last), last);
    ASSERT_TRUE(rows == 1 || rows_class(rows - 1) == last || rows_class(rows - 1) == rows - 1) << rows;
    classes += last == rows;
  }
  fmt::print("{} classes of up to 200000 rows\n", classes);
  EXPECT_LT(classes, 120);
}

TEST(Devices, AreFoundByName) {
  EXPECT_EQ(find_device("h20")->multiprocessors, 78);
  EXPECT_THAT(find_device("b200").error().message, HasSubstr("no device 'b200' is known; there are: h200, h100"));
}

GemmShape random_shape(std::mt19937& random) {
  const auto any = [&](int64_t most) { return static_cast<int64_t>(random() % static_cast<uint32_t>(most)) + 1; };
  GemmShape shape{.rows = static_cast<GemmRows>(random() % 4),
                  .format = static_cast<GemmFormat>(random() % 2),
                  .n = 8 * any(4096),
                  .k = 16 * any(2048)};
  if (shape.rows != GemmRows::kDense) shape.groups = static_cast<int>(any(64));
  if (shape.rows == GemmRows::kBatched) {
    shape.format = GemmFormat::kBf16;
    shape.k = 64 * any(512);
  }
  return shape;
}

// Whatever row count comes, its kernel is one of those that were listed before, and it can be compiled.
TEST(Chooser, EveryRowCountMeetsAListedKernel) {
  std::mt19937 random(11);
  int64_t cases = 0, kernels = 0, shapes = 0, most = 0;
  for (; shapes < repetitions(200); ++shapes) {
    const DeviceModel& device = known_devices()[random() % known_devices().size()];
    const GemmShape shape = random_shape(random);
    const int64_t most_rows = 1 + random() % 20000;
    const auto choices = gemm_choices(device, shape, most_rows);
    std::set<std::string> names;
    for (const GemmChoice& choice : choices) {
      EXPECT_FALSE(std::visit([&](const auto& c) { return validate(shape, c).has_error(); }, choice.kernel.config));
      names.insert(name_of(choice.kernel));
    }
    ASSERT_EQ(choices.front().first_rows, 1);
    ASSERT_EQ(choices.back().last_rows, most_rows);
    for (int i = 0; i < 500; ++i, ++cases) {
      const int64_t rows = 1 + random() % static_cast<uint32_t>(most_rows);
      const auto choice = std::ranges::find_if(
          choices, [&](const GemmChoice& c) { return c.first_rows <= rows && rows <= c.last_rows; });
      ASSERT_NE(choice, choices.end());
      ASSERT_EQ(choice->kernel, choose_gemm(device, shape, rows)) << rows;
    }
    kernels += std::ssize(names);
    most = std::max(most, std::ssize(names));
  }
  fmt::print("{} row counts of {} shapes: all listed; {:.1f} kernels a shape, at most {}\n", cases, shapes,
             static_cast<double>(kernels) / static_cast<double>(shapes), most);
  EXPECT_LE(most, 12);
}

}  // namespace
}  // namespace plait::cuda
