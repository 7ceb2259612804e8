#include "checkpoint/weight_loader.h"

#include <atomic>
#include <cmath>
#include <map>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint/tensor_names.h"
#include "tests/checkpoint/checkpoint_files.h"

namespace plait {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing_files::bytes_of;
using testing_files::safetensors_file;
using testing_files::TemporaryFolder;

const std::filesystem::path kSource = PLAIT_SOURCE_DIR;

bool is_scale(std::string_view name) {
  return name.ends_with("_scale_inv");
}

// Requests for all tensors of a checkpoint but scales, which come with their weights.
std::vector<WeightRequest> requests_for(const Checkpoint& checkpoint,
                                        const std::function<Status(const std::string&, const WeightSource&)>& write) {
  std::vector<WeightRequest> requests;
  for (const auto& [name, tensor] : checkpoint.tensors())
    if (!is_scale(name))
      requests.push_back(
          {name, tensor.shape, true, [write, name = name](const WeightSource& source) { return write(name, source); }});
  return requests;
}

// A checkpoint of one file, and the folder it lies in.
struct Written {
  explicit Written(const std::vector<testing_files::TensorSpec>& tensors) {
    folder.write("model.safetensors", safetensors_file(tensors));
    auto opened = Checkpoint::open(folder.path());
    if (opened.has_error()) throw std::runtime_error(opened.error().message);
    checkpoint.emplace(std::move(opened).value());
  }
  TemporaryFolder folder;
  std::optional<Checkpoint> checkpoint;
};

Status accept(const WeightSource&) {
  return {};
}

TEST(WeightLoader, EveryByteIsHandedOutExactlyOnce) {
  size_t tensors = 0;
  for (const char* folder : {"tests/data/goldens/v2-lite", "tests/data/goldens/v3", "models/demo-fp8"}) {
    const auto checkpoint = Checkpoint::open(kSource / folder);
    ASSERT_TRUE(checkpoint.has_value()) << checkpoint.error().message;
    for (const int threads : {1, 4}) {
      std::mutex mutex;
      std::map<const std::byte*, size_t> ranges;  // begin -> bytes
      const auto requests =
          requests_for(*checkpoint, [&](const std::string& name, const WeightSource& source) -> Status {
            const StoredTensor& tensor = *checkpoint->find(name);
            EXPECT_EQ(source.dtype, tensor.dtype);
            EXPECT_EQ(source.rows, tensor.shape.size() == 1 ? 1 : tensor.shape.front());
            EXPECT_EQ(source.cols, tensor.shape.back());
            const std::lock_guard lock(mutex);
            EXPECT_TRUE(ranges.emplace(source.data, source.size_bytes()).second) << name;
            if (source.scales) {
              const StoredTensor& scales = *checkpoint->find(name + "_scale_inv");
              EXPECT_TRUE(ranges.emplace(source.scales, scales.size_bytes).second) << name;
            }
            return {};
          });
      const auto report = load_weights(*checkpoint, requests, {.threads = threads});
      ASSERT_TRUE(report.has_value()) << report.error().message;
      size_t bytes = 0;
      const std::byte* end = nullptr;
      for (const auto& [data, size] : ranges) {
        EXPECT_GE(data, end) << "overlap";
        end = data + size;
        bytes += size;
      }
      EXPECT_EQ(bytes, checkpoint->total_bytes());
      EXPECT_EQ(report->bytes, checkpoint->total_bytes());
      EXPECT_EQ(report->tensors, checkpoint->tensors().size());
      EXPECT_THAT(report->unexpected, IsEmpty());
      tensors += ranges.size();
    }
  }
  fmt::print("{} tensors loaded, each byte once\n", tensors);
}

TEST(WeightLoader, ReadsFilesFromBeginningToEnd) {
  const auto checkpoint = Checkpoint::open(kSource / "tests/data/goldens/v3");
  std::vector<const std::byte*> order;
  const auto requests = requests_for(*checkpoint, [&](const std::string&, const WeightSource& source) -> Status {
    order.push_back(source.data);
    return {};
  });
  ASSERT_TRUE(load_weights(*checkpoint, requests, {.threads = 1}).has_value());
  EXPECT_TRUE(std::is_sorted(order.begin(), order.end()));
}

TEST(WeightLoader, WhatNobodyAskedForIsListed) {
  const auto checkpoint = Checkpoint::open(kSource / "models/demo-fp8");
  auto requests = requests_for(*checkpoint, [](const std::string&, const WeightSource&) -> Status { return {}; });
  std::erase_if(requests, [](const WeightRequest& request) {
    return is_mtp_tensor(request.name, 6) || request.name == "model.norm.weight" ||
           request.name == "model.layers.2.self_attn.o_proj.weight";
  });
  const auto report = load_weights(*checkpoint, requests, {.num_hidden_layers = 6});
  ASSERT_TRUE(report.has_value()) << report.error().message;
  const auto checked = check_weights(*checkpoint, requests, 6);
  ASSERT_TRUE(checked.has_value());
  EXPECT_EQ(checked->tensors, report->tensors);
  EXPECT_EQ(checked->bytes, report->bytes);
  EXPECT_EQ(checked->unexpected, report->unexpected);
  EXPECT_EQ(checked->set_aside, report->set_aside);
  EXPECT_THAT(report->unexpected, ElementsAre("model.layers.2.self_attn.o_proj.weight",
                                              "model.layers.2.self_attn.o_proj.weight_scale_inv", "model.norm.weight"));
  EXPECT_FALSE(report->set_aside.empty());
  for (const std::string& name : report->set_aside) EXPECT_THAT(name, testing::StartsWith("model.layers.6."));
}

// Two shards that want some of the tensors, both or none of them: one pass over the file serves both.
TEST(WeightLoader, MergedRequestsOfShardsReadOnce) {
  const auto checkpoint = Checkpoint::open(kSource / "models/demo-fp8");
  std::atomic<int> writes = 0;
  const auto count = [&](const WeightSource&) -> Status {
    ++writes;
    return {};
  };
  std::vector<std::vector<WeightRequest>> shards(2);
  int expected_writes = 0;
  size_t wanted_tensors = 0, index = 0;
  for (const auto& [name, tensor] : checkpoint->tensors()) {
    if (is_scale(name)) continue;
    const bool first = index % 2 == 0, second = index % 3 == 0;
    ++index;
    shards[0].push_back({name, tensor.shape, true, first ? count : std::function<Status(const WeightSource&)>()});
    shards[1].push_back({name, tensor.shape, true, second ? count : std::function<Status(const WeightSource&)>()});
    expected_writes += first + second;
    if (first || second) wanted_tensors += checkpoint->find(name + "_scale_inv") ? 2 : 1;
  }
  const std::vector<WeightRequest> merged = merge_requests(std::move(shards));
  EXPECT_EQ(merged.size(), index);
  const auto report = load_weights(*checkpoint, merged, {.threads = 2});
  ASSERT_TRUE(report.has_value()) << report.error().message;
  EXPECT_EQ(writes, expected_writes);
  EXPECT_EQ(report->tensors, wanted_tensors);
  EXPECT_LT(report->bytes, checkpoint->total_bytes());
  EXPECT_THAT(report->unexpected, IsEmpty());  // what no shard wants is expected all the same
}

TEST(WeightLoader, RotaryTablesOfOldExportersAreSetAside) {
  const Written written({{"a", "F32", {1}, bytes_of<float>({1})},
                         {"model.layers.0.self_attn.rotary_emb.inv_freq", "F32", {1}, bytes_of<float>({1})}});
  const std::vector<WeightRequest> requests = {{"a", {1}, false, accept}};
  const auto report = load_weights(*written.checkpoint, requests, {.num_hidden_layers = 1});
  ASSERT_TRUE(report.has_value()) << report.error().message;
  EXPECT_THAT(report->set_aside, ElementsAre("model.layers.0.self_attn.rotary_emb.inv_freq"));
  EXPECT_THAT(report->unexpected, IsEmpty());
}

TEST(WeightLoader, OneErrorNamesEverythingThatDoesNotFit) {
  const Written written({
      {"shape", "F32", {2, 3}, std::string(24, '\0')},
      {"rank", "F32", {6}, std::string(24, '\0')},
      {"integer", "I8", {2}, std::string(2, '\0')},
      {"e5m2", "F8_E5M2", {2}, std::string(2, '\0')},
      {"quantised", "F8_E4M3", {1, 2}, std::string(2, '\0')},
      {"no_scale", "F8_E4M3", {1, 2}, std::string(2, '\0')},
      {"bf16", "BF16", {1, 2}, std::string(4, '\0')},
      {"bf16_scale_inv", "F32", {1, 1}, std::string(4, '\0')},
      {"scale_shape", "F8_E4M3", {129, 2}, std::string(258, '\0')},
      {"scale_shape_scale_inv", "F32", {1, 2}, std::string(8, '\0')},
      {"scale_dtype", "F8_E4M3", {1, 2}, std::string(2, '\0')},
      {"scale_dtype_scale_inv", "BF16", {1, 1}, std::string(2, '\0')},
  });
  std::atomic<int> written_tensors = 0;
  const auto write = [&](const WeightSource&) -> Status {
    ++written_tensors;
    return {};
  };
  const std::vector<WeightRequest> requests = {
      {"shape", {3, 2}, false, write},
      {"rank", {1, 6}, false, write},
      {"integer", {2}, false, write},
      {"e5m2", {2}, true, write},
      {"quantised", {1, 2}, false, write},
      {"no_scale", {1, 2}, true, write},
      {"bf16", {1, 2}, true, write},
      {"scale_shape", {129, 2}, true, write},
      {"scale_dtype", {1, 2}, true, write},
      {"model.layers.0.absent", {1}, false, write},
      {"model.layers.1.absent", {1}, false, write},
  };
  const auto report = load_weights(*written.checkpoint, requests, {});
  ASSERT_TRUE(report.has_error());
  EXPECT_EQ(report.error().kind, ErrorKind::kCorrupt);
  for (const char* line :
       {"shape [2, 3] instead of [3, 2]: shape", "shape [6] instead of [1, 6]: rank",
        "dtype I8 instead of BF16, F16, F32 or F8_E4M3: integer",
        "dtype F8_E5M2 instead of BF16, F16, F32 or F8_E4M3: e5m2",
        "dtype F8_E4M3, but this kind of weight is never quantised: quantised", "missing: no_scale_scale_inv",
        "dtype BF16 although it has scales: bf16", "shape [1, 2] instead of [2, 1]: scale_shape_scale_inv",
        "dtype BF16 instead of F32: scale_dtype_scale_inv", "missing: model.layers.{0-1}.absent (2 tensors)"})
    EXPECT_THAT(report.error().message, HasSubstr(line));
  EXPECT_EQ(written_tensors, 0) << "nothing is written before everything fits";
  const auto checked = check_weights(*written.checkpoint, requests, 0);
  ASSERT_TRUE(checked.has_error());
  EXPECT_EQ(checked.error().message, report.error().message);
}

TEST(WeightLoader, NanInFp8WeightsIsRefusedWithItsPosition) {
  // In every position of a few strides of the search, both signs.
  int refused = 0;
  for (const uint8_t nan : {0x7f, 0xff}) {
    for (size_t position = 0; position < 3 * 67; ++position) {
      std::vector<uint8_t> values(3 * 67, 0x7e);
      values[position] = nan;
      const Written written(
          {{"w", "F8_E4M3", {3, 67}, bytes_of(values)}, {"w_scale_inv", "F32", {1, 1}, bytes_of<float>({1})}});
      const std::vector<WeightRequest> requests = {{"w", {3, 67}, true, accept}};
      const auto report = load_weights(*written.checkpoint, requests, {.threads = 1});
      ASSERT_TRUE(report.has_error()) << position;
      EXPECT_EQ(report.error().message,
                fmt::format("model.safetensors: tensor w: NaN at [{}, {}]", position / 67, position % 67));
      ++refused;
    }
  }
  fmt::print("{} positions of NaN found\n", refused);
}

TEST(WeightLoader, AllOtherFp8BytesAreAccepted) {
  std::vector<uint8_t> values;
  for (int byte = 0; byte < 256; ++byte)
    if ((byte & 0x7f) != 0x7f) values.push_back(static_cast<uint8_t>(byte));
  const auto count = static_cast<int64_t>(values.size());
  const Written written(
      {{"w", "F8_E4M3", {1, count}, bytes_of(values)}, {"w_scale_inv", "F32", {1, 2}, bytes_of<float>({1, 1})}});
  const std::vector<WeightRequest> requests = {{"w", {1, count}, true, accept}};
  EXPECT_TRUE(load_weights(*written.checkpoint, requests, {}).has_value());
}

TEST(WeightLoader, ScalesMustBeFiniteAndPositive) {
  for (const float bad : {0.0F, -0.0F, -1.0F, std::numeric_limits<float>::infinity(), std::nanf("")}) {
    const Written written({{"w", "F8_E4M3", {130, 1}, std::string(130, '\0')},
                           {"w_scale_inv", "F32", {2, 1}, bytes_of<float>({1, bad})}});
    const std::vector<WeightRequest> requests = {{"w", {130, 1}, true, accept}};
    const auto report = load_weights(*written.checkpoint, requests, {});
    ASSERT_TRUE(report.has_error()) << bad;
    EXPECT_THAT(report.error().message, HasSubstr("at [1, 0] of w_scale_inv; scales are finite and positive"));
  }
}

// A checkpoint of `count` tensors t.0, t.1, ... of one element.
std::vector<testing_files::TensorSpec> small_tensors(int count) {
  std::vector<testing_files::TensorSpec> tensors;
  for (int i = 0; i < count; ++i) tensors.push_back({fmt::format("t.{}", i), "F32", {1}, bytes_of<float>({1})});
  return tensors;
}

TEST(WeightLoader, TheFirstFailureStopsTheRest) {
  constexpr int kTensors = 2000;
  const Written written(small_tensors(kTensors));
  for (const bool throws : {false, true}) {
    std::atomic<int> calls = 0;
    std::vector<WeightRequest> requests;
    for (int i = 0; i < kTensors; ++i) {
      requests.push_back({fmt::format("t.{}", i), {1}, false, [&calls, throws, i](const WeightSource&) -> Status {
                            ++calls;
                            if (i != 7) {
                              std::this_thread::sleep_for(std::chrono::microseconds(200));
                              return {};
                            }
                            if (throws) throw std::runtime_error("a writer threw");
                            return internal("a writer failed");
                          }});
    }
    const auto report = load_weights(*written.checkpoint, requests, {.threads = 4});
    ASSERT_TRUE(report.has_error());
    EXPECT_THAT(report.error().message, HasSubstr(throws ? "a writer threw" : "tensor t.7: a writer failed"));
    EXPECT_LT(calls.load(), kTensors / 2);  // on a busy machine others go on for a while
  }
}

TEST(WeightLoader, ProgressComesFromTheCallersThreadAndEndsAtTheTotal) {
  constexpr int kTensors = 30;
  const Written written(small_tensors(kTensors));
  std::vector<WeightRequest> requests;
  for (int i = 0; i < kTensors; ++i)
    requests.push_back({fmt::format("t.{}", i), {1}, false, [](const WeightSource&) -> Status {
                          std::this_thread::sleep_for(std::chrono::milliseconds(20));
                          return {};
                        }});
  const auto caller = std::this_thread::get_id();
  std::vector<size_t> seen;
  LoadOptions options{.threads = 2};
  options.progress = [&](size_t done_bytes, size_t total_bytes) {
    EXPECT_EQ(std::this_thread::get_id(), caller);
    EXPECT_EQ(total_bytes, kTensors * sizeof(float));
    seen.push_back(done_bytes);
  };
  ASSERT_TRUE(load_weights(*written.checkpoint, requests, options).has_value());
  ASSERT_FALSE(seen.empty());
  EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
  EXPECT_EQ(seen.back(), kTensors * sizeof(float));
}

TEST(WeightLoader, NothingToLoadIsNotAnError) {
  const Written written(small_tensors(1));
  const auto report = load_weights(*written.checkpoint, {}, {});
  ASSERT_TRUE(report.has_value()) << report.error().message;
  EXPECT_EQ(report->bytes, 0U);
  EXPECT_THAT(report->unexpected, ElementsAre("t.0"));
}

TEST(TensorNames, FoldIsExact) {
  const std::vector<std::string> names = {"model.layers.3.mlp.experts.0.up_proj.weight",
                                          "model.layers.3.mlp.experts.1.up_proj.weight",
                                          "model.layers.4.mlp.experts.0.up_proj.weight",
                                          "model.layers.4.mlp.experts.1.up_proj.weight",
                                          "model.layers.6.mlp.experts.1.up_proj.weight",
                                          "model.layers.6.mlp.experts.3.up_proj.weight",
                                          "model.layers.07.x",
                                          "model.norm.weight"};
  EXPECT_THAT(fold_tensor_names(names),
              ElementsAre("model.layers.07.x", "model.layers.6.mlp.experts.{1,3}.up_proj.weight (2 tensors)",
                          "model.layers.{3-4}.mlp.experts.{0-1}.up_proj.weight (4 tensors)", "model.norm.weight"));
  EXPECT_THAT(fold_tensor_names({}), IsEmpty());
}

TEST(TensorNames, MtpLayersAreTheOnesBehindTheLast) {
  EXPECT_TRUE(is_mtp_tensor("model.layers.61.eh_proj.weight", 61));
  EXPECT_TRUE(is_mtp_tensor("model.layers.62.mlp.gate.weight", 61));
  EXPECT_FALSE(is_mtp_tensor("model.layers.60.mlp.gate.weight", 61));
  EXPECT_FALSE(is_mtp_tensor("model.layers.x.mlp.gate.weight", 61));
  EXPECT_FALSE(is_mtp_tensor("model.layers.99999999999999999999.mlp", 61));
  EXPECT_FALSE(is_mtp_tensor("model.norm.weight", 61));
  EXPECT_FALSE(is_mtp_tensor("model.layers.61.eh_proj.weight", 0));
}

std::vector<WeightRequest> dummy_requests(std::map<std::string, std::vector<float>>& loaded, std::mutex& mutex) {
  const std::pair<const char*, std::vector<int64_t>> kShapes[] = {
      {"model.embed_tokens.weight", {512, 96}},
      {"model.norm.weight", {96}},
      {"model.layers.0.mlp.gate.e_score_correction_bias", {16}},
      {"model.layers.0.mlp.gate.weight", {16, 96}},
      {"model.layers.0.mlp.experts.0.up_proj.weight", {130, 200}},
      {"model.layers.0.mlp.experts.1.up_proj.weight", {130, 200}}};
  std::vector<WeightRequest> requests;
  for (const auto& [name, shape] : kShapes) {
    requests.push_back({name, shape, std::string_view(name).find("experts") != std::string_view::npos,
                        [&loaded, &mutex, name = std::string(name)](const WeightSource& source) -> Status {
                          std::vector<float> values(static_cast<size_t>(source.rows * source.cols));
                          for (int64_t i = 0; i < source.rows; ++i)
                            source.decode_row(i, values.data() + i * source.cols);
                          const std::lock_guard lock(mutex);
                          loaded[name] = std::move(values);
                          return {};
                        }});
  }
  return requests;
}

TEST(DummyWeights, AreReproducibleAndLikeAFreshModel) {
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    for (const int64_t fp8_block : {0, 128}) {
      std::mutex mutex;
      std::map<std::string, std::vector<float>> first, second;
      auto requests = dummy_requests(first, mutex);
      const auto report = load_dummy_weights(requests, dtype, fp8_block, {.threads = 3});
      ASSERT_TRUE(report.has_value()) << report.error().message;
      EXPECT_EQ(report->tensors, requests.size());
      // Other threads, another order, the same values.
      requests = dummy_requests(second, mutex);
      std::reverse(requests.begin(), requests.end());
      ASSERT_TRUE(load_dummy_weights(requests, dtype, fp8_block, {.threads = 1}).has_value());
      EXPECT_EQ(first, second);

      for (const auto& [name, values] : first) {
        double sum = 0, squares = 0;
        for (const float value : values) {
          ASSERT_TRUE(std::isfinite(value)) << name;
          sum += value;
          squares += static_cast<double>(value) * value;
        }
        const auto count = static_cast<double>(values.size());
        const double mean = sum / count, rms = std::sqrt(squares / count);
        if (name.ends_with("norm.weight")) {
          EXPECT_NEAR(mean, 1, 0.02) << name;
        } else if (name.ends_with("bias")) {
          EXPECT_LT(rms, 0.03) << name;
        } else {
          EXPECT_NEAR(mean, 0, 0.002) << name;
          EXPECT_NEAR(rms, 0.0187, 0.001) << name;
        }
        EXPECT_GT(std::set<float>(values.begin(), values.end()).size(), 8U) << name;
      }
      EXPECT_NE(first["model.layers.0.mlp.experts.0.up_proj.weight"],
                first["model.layers.0.mlp.experts.1.up_proj.weight"]);
    }
  }
}

TEST(DummyWeights, QuantisableRequestsGetFp8WithScales) {
  std::set<std::string> quantised;
  std::vector<WeightRequest> requests;
  for (const bool may_be_quantised : {false, true})
    for (const int64_t rank : {1, 2})
      requests.push_back(
          {fmt::format("{}d.{}", rank, may_be_quantised), std::vector<int64_t>(static_cast<size_t>(rank), 200),
           may_be_quantised,
           [&, name = fmt::format("{}d.{}", rank, may_be_quantised)](const WeightSource& source) -> Status {
             if (source.dtype == DType::kF8E4M3) {
               EXPECT_EQ(source.block, 128);
               EXPECT_GT(source.at(199, 199) * source.at(199, 199), 0);
               quantised.insert(name);
             }
             return {};
           }});
  ASSERT_TRUE(load_dummy_weights(requests, DType::kBF16, 128, {.threads = 1}).has_value());
  EXPECT_THAT(quantised, ElementsAre("2d.true"));
  EXPECT_EQ(load_dummy_weights(requests, DType::kI8, 0, {}).error().kind, ErrorKind::kUnsupported);
}

}  // namespace
}  // namespace plait
