// Tuned tables: their files, and what the chooser makes of them.
#include "kernels/cuda/gemm_table.h"

#include <csignal>
#include <filesystem>
#include <fstream>
#include <random>
#include <set>
#include <sys/resource.h>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/gemm_chooser.h"
#include "tests/jit/folder.h"
#include "tests/support/effort.h"

namespace plait::cuda {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

const DeviceModel& h200() {
  static const DeviceModel device = *find_device("h200");
  return device;
}

GemmShape random_shape(std::mt19937& random) {
  const auto any = [&](int64_t most) { return static_cast<int64_t>(random() % static_cast<uint32_t>(most)) + 1; };
  GemmShape shape{.rows = static_cast<GemmRows>(random() % 3),
                  .format = static_cast<GemmFormat>(random() % 2),
                  .n = 8 * any(4096),
                  .k = 16 * any(1024),
                  .result = static_cast<GemmResult>(random() % 2)};
  if (shape.rows != GemmRows::kDense) shape.groups = static_cast<int>(any(64));
  return shape;
}

// Any kernels for any classes, so that hardly a choice is the model's.
GemmTable random_table(std::mt19937& random, const std::vector<GemmShape>& shapes) {
  GemmTable table{.device = "h200", .gpu = "NVIDIA \"H200\"", .compiler = "nvrtc 13.0.88"};
  for (const GemmShape& shape : shapes) {
    GemmTable::Product product{.shape = shape};
    for (const int64_t rows : rows_classes(1, 9000)) {
      const std::vector<GemmKernel> all = all_candidates(h200(), shape, rows);
      std::vector<GemmKernel> ordered;
      std::ranges::copy_if(all, std::back_inserter(ordered), [&](const GemmKernel& kernel) {
        return summing_order(kernel) == deterministic_order(shape);
      });
      const double seconds = static_cast<double>(1 + random() % 1000000) * 1e-9;
      if (random() % 4 != 0) product.fastest.push_back({rows, all[random() % all.size()], seconds});
      if (random() % 4 != 0) product.deterministic.push_back({rows, ordered[random() % ordered.size()], seconds});
    }
    table.products.push_back(std::move(product));
  }
  return table;
}

DeviceModel with_table(GemmTable table) {
  DeviceModel device = h200();
  device.table = std::make_shared<const GemmTable>(std::move(table));
  return device;
}

// -- Summing orders

const GemmShape kV3Shapes[] = {
    {.n = 2112, .k = 7168},
    {.n = 576, .k = 7168},
    {.n = 24576, .k = 1536},
    {.n = 32768, .k = 512},
    {.n = 7168, .k = 16384},
    {.n = 4096, .k = 7168},
    {.n = 7168, .k = 2048},
    {.format = GemmFormat::kBf16, .n = 129280, .k = 7168},
    {.format = GemmFormat::kBf16, .n = 576, .k = 64},
    {.format = GemmFormat::kBf16, .n = 256, .k = 7168, .result = GemmResult::kF32},
    {.rows = GemmRows::kContiguous, .n = 4096, .k = 7168, .groups = 32},
    {.rows = GemmRows::kMasked, .n = 7168, .k = 2048, .groups = 32},
};

std::set<std::string> orders_of(const DeviceModel& device, const GemmShape& shape) {
  std::set<std::string> orders;
  for (int64_t rows = 1; rows <= 8192; ++rows) orders.insert(describe(summing_order(choose_gemm(device, shape, rows))));
  return orders;
}

TEST(DeterministicChoice, SumsInOneOrderWhateverTheRowCount) {
  std::mt19937 random(5);
  std::vector<GemmShape> shapes(std::begin(kV3Shapes), std::end(kV3Shapes));
  for (int64_t i = 0; i < repetitions(8); ++i) shapes.push_back(random_shape(random));
  int64_t tried = 0;
  for (const GemmShape& shape : shapes)
    for (DeviceModel device : {h200(), *find_device("h20"), with_table(random_table(random, {shape}))}) {
      device.deterministic = true;
      EXPECT_THAT(orders_of(device, shape), ::testing::ElementsAre(describe(deterministic_order(shape))))
          << describe(shape);
      tried += 8192;
    }
  fmt::print("{} row counts of {} products on three devices, one with a random table: one order each\n", tried,
             shapes.size());
}

// Else the test above could not fail.
TEST(DeterministicChoice, OtherwiseOrdersDependOnRows) {
  EXPECT_GT(orders_of(h200(), kV3Shapes[1]).size(), 1U);
  std::mt19937 random(6);
  EXPECT_GT(orders_of(with_table(random_table(random, {kV3Shapes[0]})), kV3Shapes[0]).size(), 1U);
}

TEST(SummingOrder, SaysWhereSumsLeaveTheTensorCores) {
  const GemmShape fp8{.n = 576, .k = 7168}, bf16{.format = GemmFormat::kBf16, .n = 576, .k = 7168};
  const NarrowGemmConfig split{.tokens = 8, .split = 4}, whole{.tokens = 8, .split = 1};
  EXPECT_EQ(summing_order({fp8, GemmConfig{.block_n = 256, .waves = 2}}), (SummingOrder{128, 1}));
  EXPECT_EQ(summing_order({fp8, whole}), (SummingOrder{128, 1}));
  EXPECT_EQ(summing_order({fp8, split}), (SummingOrder{128, 4}));
  EXPECT_EQ(summing_order({bf16, GemmConfig{}}), (SummingOrder{7168, 1}));
  EXPECT_EQ(summing_order({bf16, whole}), (SummingOrder{64, 1}));
  EXPECT_EQ(describe(SummingOrder{64, 2}), "sums of 64 products, k in 2 parts");
}

// -- Choices with a table

TEST(TableChoice, IsTheTablesWhereItHasTheClassAndElseTheModels) {
  std::mt19937 random(3);
  int64_t measured = 0, modelled = 0;
  for (int64_t round = 0; round < repetitions(16); ++round) {
    const std::vector<GemmShape> shapes = {random_shape(random), random_shape(random)};
    const GemmTable table = random_table(random, shapes);
    for (const bool deterministic : {false, true}) {
      DeviceModel with = with_table(table), without = h200();
      with.deterministic = without.deterministic = deterministic;
      for (const GemmShape& shape : {shapes[0], shapes[1], random_shape(random)})
        for (int i = 0; i < 200; ++i) {
          const int64_t rows = 1 + random() % 12000;
          const GemmKernel* expected = nullptr;
          for (const GemmTable::Product& product : table.products)
            for (const GemmTable::Choice& choice : deterministic ? product.deterministic : product.fastest)
              if (product.shape == shape && choice.rows == rows_class(rows)) expected = &choice.kernel;
          const GemmKernel chosen = choose_gemm(with, shape, rows);
          ASSERT_EQ(chosen, expected != nullptr ? *expected : choose_gemm(without, shape, rows)) << describe(shape);
          ++(expected != nullptr ? measured : modelled);
        }
    }
  }
  fmt::print("{} choices of tables, {} of the model\n", measured, modelled);
  EXPECT_GT(measured, 1000 / (kSanitized ? 8 : 1));
  EXPECT_GT(modelled, 1000 / (kSanitized ? 8 : 1));
}

TEST(TableChoice, EveryRowCountMeetsAListedKernel) {
  std::mt19937 random(4);
  int64_t tried = 0;
  for (int64_t round = 0; round < repetitions(40); ++round) {
    const GemmShape shape = random_shape(random);
    DeviceModel device = with_table(random_table(random, {shape}));
    device.deterministic = round % 2 == 0;
    const int64_t most = 1 + random() % 20000;
    const std::vector<GemmChoice> choices = gemm_choices(device, shape, most);
    ASSERT_EQ(choices.front().first_rows, 1);
    ASSERT_EQ(choices.back().last_rows, most);
    for (int i = 0; i < 200; ++i, ++tried) {
      const int64_t rows = 1 + random() % static_cast<uint32_t>(most);
      const auto choice = std::ranges::find_if(
          choices, [&](const GemmChoice& c) { return c.first_rows <= rows && rows <= c.last_rows; });
      ASSERT_NE(choice, choices.end());
      ASSERT_EQ(choice->kernel, choose_gemm(device, shape, rows));
    }
  }
  fmt::print("{} row counts with random tables: all listed\n", tried);
}

TEST(TableChoice, WidthsOfTheChooserAreAmongAll) {
  std::mt19937 random(8);
  for (int64_t i = 0; i < repetitions(300); ++i) {
    const GemmShape shape = random_shape(random);
    const int64_t rows = rows_class(1 + random() % 9000);
    const std::vector<GemmKernel> all = all_candidates(h200(), shape, rows);
    std::set<std::string> names;
    for (const GemmKernel& kernel : all) {
      EXPECT_TRUE(names.insert(name_of(kernel)).second) << name_of(kernel) << " stands there twice";
      EXPECT_FALSE(std::visit([&](const auto& config) { return validate(shape, config).has_error(); }, kernel.config));
      EXPECT_EQ(find_candidate(h200(), shape, rows, name_of(kernel)), kernel);
    }
    for (const GemmKernel& kernel : usual_candidates(h200(), shape, rows))
      EXPECT_TRUE(names.contains(name_of(kernel))) << name_of(kernel);
  }
}

// -- Files

void expect_equal(const GemmTable& a, const GemmTable& b) {
  const auto expect_choices = [](const auto& left, const auto& right) {
    ASSERT_EQ(left.size(), right.size());
    for (size_t i = 0; i < left.size(); ++i) {
      EXPECT_EQ(left[i].rows, right[i].rows);
      EXPECT_EQ(left[i].kernel, right[i].kernel);
      EXPECT_NEAR(left[i].seconds, right[i].seconds, 1e-9);
    }
  };
  EXPECT_EQ(a.device, b.device);
  EXPECT_EQ(a.gpu, b.gpu);
  EXPECT_EQ(a.compiler, b.compiler);
  ASSERT_EQ(a.products.size(), b.products.size());
  for (size_t i = 0; i < a.products.size(); ++i) {
    EXPECT_EQ(a.products[i].shape, b.products[i].shape);
    expect_choices(a.products[i].fastest, b.products[i].fastest);
    expect_choices(a.products[i].deterministic, b.products[i].deterministic);
  }
}

GemmTable some_table() {
  std::mt19937 random(2);
  return random_table(random, {kV3Shapes[0], kV3Shapes[7], kV3Shapes[9], kV3Shapes[10], kV3Shapes[11]});
}

TEST(TableFile, ComesBackAsItWasWritten) {
  const jit::Folder folder;
  const std::filesystem::path file = folder.path() / "new" / "h200.json";
  const GemmTable table = some_table();
  ASSERT_FALSE(write_gemm_table(file, table).has_error());
  const auto read = read_gemm_table(file, h200());
  ASSERT_TRUE(read.has_value()) << read.error().message;
  expect_equal(table, *read);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(file.parent_path()), {}), 1) << "a file is left over";
}

std::string error_of(const std::string& text, const DeviceModel& device = h200()) {
  const auto table = parse_gemm_table(text, device);
  return table.has_error() ? table.error().message : "no error";
}

TEST(TableFile, SaysWhichEntryIsWrong) {
  const std::string good = fmt::format(
      R"({{"format": "plait kernel table", "version": 1, "device": "h200", "gpu": "g", "compiler": "c",)"
      R"("kernel_sources": "{}", "products": [{{"rows": "dense", "format": "fp8", "n": 576, "k": 7168, "groups": 1, "result": "bf16",)"
      R"("fastest": [{{"rows": 8, "kernel": "fp8_gemm_narrow_n576_k7168_t8p4s4", "us": 5.5}},)"
      R"({{"rows": 16, "kernel": "fp8_gemm_narrow_n576_k7168_t16p4s4", "us": 6}}],)"
      R"("deterministic": [{{"rows": 8, "kernel": "fp8_gemm_narrow_n576_k7168_t8p1s4", "us": 9}}]}}]}})",
      gemm_sources_digest());
  ASSERT_EQ(error_of(good), "no error");
  const auto changed = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return text.replace(at, from.size(), to);
  };
  struct Case {
    const char *from, *to, *message;
  };
  const Case cases[] = {
      {"\"format\": \"plait kernel table\"", "\"format\": \"x\"", "format: is \"x\": this is no plait kernel table"},
      {"\"version\": 1", "\"version\": 2", "version: the table has version 2, and this program reads 1"},
      {"\"version\": 1", "\"version\": \"1\"", "version: must be an integer"},
      {"\"version\": 1,", "", "version: is missing"},
      {"\"device\": \"h200\"", "\"device\": \"h20\"", "device: the table was measured on h20, and this device is h200"},
      {"\"result\": \"bf16\"", "\"result\": \"fp16\"", "products[0].result: must be one of bf16, f32, not \"fp16\""},
      {"\"gpu\"", "\"gpus\"", "gpus: is no field of a kernel table"},
      {"\"n\": 576", "\"n\": 577", "products[0].n: a product with n = 577"},
      {"\"n\": 576", "\"n\": -8", "products[0].n: must be an integer from 1"},
      {"\"rows\": \"dense\"", "\"rows\": \"sparse\"",
       "products[0].rows: must be one of dense, contiguous, masked, batched, not \"sparse\""},
      {"\"groups\": 1", "\"groups\": 2", "products[0].n: a dense product of 2 groups"},
      {"\"groups\": 1", "\"groups\": 1, \"output\": \"f32\"", "products[0].output: is no field of a kernel table"},
      {"t8p4s4", "t8p4s5",
       "products[0].fastest[0].kernel: there is no kernel \"fp8_gemm_narrow_n576_k7168_t8p4s5\" for 8 rows of fp8 "
       "dense n 576 k 7168 on h200"},
      {"t8p4s4", "t16p4s4", "products[0].fastest[0].kernel: there is no kernel"},
      {"\"us\": 5.5", "\"us\": 0", "products[0].fastest[0].us: must be a number from"},
      {"\"us\": 5.5", "\"us\": 5.5, \"best\": true", "products[0].fastest[0].best: is no field"},
      {"\"rows\": 16", "\"rows\": 17",
       "products[0].fastest[1].rows: 17 is not the largest row count of a class: 24 is"},
      {"{\"rows\": 16, \"kernel\": \"fp8_gemm_narrow_n576_k7168_t16p4s4\"",
       "{\"rows\": 8, \"kernel\": \"fp8_gemm_narrow_n576_k7168_t8p4s4\"",
       "products[0].fastest[1].rows: 8 stands behind 8: classes ascend, and each stands once"},
      {"t8p1s4", "t8p2s4",
       "products[0].deterministic: fp8_gemm_narrow_n576_k7168_t8p2s4 has sums of 128 products, k in 2 parts, the "
       "others of this product sums of 128 products"},
      {"\"fastest\": [", "\"fastest\": [7, ", "products[0].fastest[0]: must be an object, not 7"},
      {"\"products\": [", "\"products\": 1, \"x\": [", "x: is no field of a kernel table"},
      {"\"products\": [", "\"products\": [[], ", "products[0]: must be an object"},
  };
  for (const auto& [from, to, message] : cases)
    EXPECT_THAT(error_of(changed(from, to)), HasSubstr(message)) << from << " -> " << to;
  const size_t begin = good.find("{\"rows\": \"dense\""), end = good.size() - 2;
  const std::string product = good.substr(begin, end - begin);
  EXPECT_THAT(error_of(changed(product, product + "," + product)),
              HasSubstr("products[1]: fp8 dense n 576 k 7168 stands in the table twice"));
  EXPECT_THAT(
      error_of(changed(gemm_sources_digest(), "0123456789abcdef")),
      HasSubstr("kernel_sources: the table was measured with other kernels (0123456789abcdef) than this program"));
}

TEST(TableFile, IsRefusedWhereverItIsCutOff) {
  const std::string text = to_json(some_table());
  ASSERT_EQ(error_of(text), "no error");
  std::mt19937 random(9);
  int64_t cuts = 0;
  for (; cuts < repetitions(400); ++cuts) {
    // The last byte is a newline.
    const auto table = parse_gemm_table(std::string_view(text).substr(0, random() % (text.size() - 1)), h200());
    ASSERT_TRUE(table.has_error());
    ASSERT_EQ(table.error().kind, ErrorKind::kCorrupt);
  }
  fmt::print("{} truncated tables: all refused\n", cuts);
}

TEST(TableFile, ADamagedByteIsRefusedOrHarmless) {
  const std::string text = to_json(some_table());
  std::mt19937 random(10);
  int64_t refused = 0, read = 0;
  for (int64_t i = 0; i < repetitions(400); ++i) {
    std::string damaged = text;
    damaged[random() % damaged.size()] = static_cast<char>(random() % 256);
    const auto table = parse_gemm_table(damaged, h200());
    ++(table.has_error() ? refused : read);
    if (table.has_error()) continue;
    for (const GemmTable::Product& product : table->products)
      for (const GemmTable::Choice& choice : product.deterministic)
        ASSERT_EQ(summing_order(choice.kernel), deterministic_order(product.shape));
  }
  fmt::print("{} damaged tables refused, {} with another time or spelling read\n", refused, read);
  EXPECT_GT(refused, 0);
}

TEST(TableFile, StaysAsItWasWhenItCannotBeWritten) {
  const jit::Folder folder;
  const std::filesystem::path file = folder.path() / "h200.json";
  GemmTable table = some_table();
  ASSERT_FALSE(write_gemm_table(file, table).has_error());

  // A disk that is full after 4 KiB.
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &limit), 0);
  const rlimit small{4096, limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  GemmTable other = table;
  other.gpu = "another";
  const Status status = write_gemm_table(file, other);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  std::signal(SIGXFSZ, old_handler);

  ASSERT_TRUE(status.has_error());
  EXPECT_THAT(status.error().message,
              AllOf(StartsWith(file.string()), HasSubstr("cannot be written"), HasSubstr("File too large")));
  expect_equal(table, *read_gemm_table(file, h200()));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1) << "a file is left over";

  const Status nowhere = write_gemm_table(file / "below-a-file.json", table);
  ASSERT_TRUE(nowhere.has_error());
  EXPECT_EQ(nowhere.error().kind, ErrorKind::kIo);
}

TEST(TableFile, IsFoundAsTheFlagSays) {
  const jit::Folder folder;
  ASSERT_EQ(setenv("XDG_CACHE_HOME", folder.path().c_str(), /*overwrite=*/1), 0);
  DeviceModel device = h200();
  ASSERT_FALSE(use_gemm_table("auto", device).has_error());
  EXPECT_EQ(device.table, nullptr) << "there is none";
  EXPECT_EQ(gemm_table_digest(device), "none");

  const std::filesystem::path usual = default_gemm_table_file(device);
  EXPECT_EQ(usual, folder.path() / "plait" / "kernel-tables" / "h200.json");
  ASSERT_FALSE(write_gemm_table(usual, some_table()).has_error());
  ASSERT_FALSE(use_gemm_table("auto", device).has_error());
  ASSERT_NE(device.table, nullptr);
  const std::string digest = gemm_table_digest(device);
  EXPECT_EQ(digest.size(), 64U);
  GemmTable other = some_table();
  other.products.pop_back();
  EXPECT_NE(gemm_table_digest(with_table(other)), digest);

  ASSERT_FALSE(use_gemm_table("none", device).has_error());
  EXPECT_EQ(device.table, nullptr);
  // One that was named must be right; the usual one is left alone if it is not.
  std::ofstream(usual) << "{";
  ASSERT_FALSE(use_gemm_table("auto", device).has_error());
  EXPECT_EQ(device.table, nullptr);
  const Status named = use_gemm_table(usual.string(), device);
  ASSERT_TRUE(named.has_error());
  EXPECT_THAT(named.error().message, StartsWith("--kernel-table: " + usual.string()));
  EXPECT_EQ(use_gemm_table(folder.path() / "nowhere.json", device).error().kind, ErrorKind::kNotFound);
}

// -- Devices

TEST(Devices, AreKnownByTheDriversNamesAndElseDescribed) {
  DeviceProperties properties{.name = "NVIDIA H200", .compute_capability = 90, .multiprocessors = 132};
  EXPECT_EQ(describe_device(properties).name, "h200");
  properties = {.name = "NVIDIA H200 MIG 3g.71gb",
                .compute_capability = 90,
                .multiprocessors = 60,
                .shared_bytes_per_block = 232448,
                .clock_hz = 1.98e9,
                .memory_bandwidth = 2.4e12};
  const DeviceModel part = describe_device(properties);
  EXPECT_EQ(part.name, "nvidia-h200-mig-3g-71gb");
  EXPECT_EQ(part.multiprocessors, 60);
  EXPECT_NEAR(part.fp8_flops, 60 * 1.98e9 * 8192, 1e9);
  EXPECT_EQ(part.read_bandwidth, 2.4e12);
  properties.clock_hz = properties.memory_bandwidth = 0;
  EXPECT_GT(describe_device(properties).fp8_flops, 1e14);
  EXPECT_GT(describe_device(properties).read_bandwidth, 1e12);
  // The model has an answer for it.
  EXPECT_FALSE(gemm_choices(part, kV3Shapes[0], 4096).empty());
}

}  // namespace
}  // namespace plait::cuda
