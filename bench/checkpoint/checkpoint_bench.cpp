// Checkpoints: opening, loading from the page cache, dummy weights. Bytes per second; BM_MemoryCopy is the ceiling of
// everything that copies (one read and one write for each byte, like a load whose writer copies).
#include <cstring>
#include <map>

#include <benchmark/benchmark.h>

#include "base/thread_pool.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/weight_loader.h"
#include "tensor/buffer.h"
#include "tests/checkpoint/checkpoint_files.h"

namespace plait {
namespace {

using testing_files::safetensors_file;
using testing_files::TemporaryFolder;
using testing_files::TensorSpec;

constexpr int64_t kRows = 2048, kCols = 4096;
constexpr int kTensors = 64;  // 512 MiB in FP8, 1 GiB in BF16

// Copies every weight to memory of its own, as a packed layout would.
struct Sink {
  std::map<std::string, Buffer> copies;

  std::vector<WeightRequest> requests() {
    std::vector<WeightRequest> result;
    for (int i = 0; i < kTensors; ++i) {
      Buffer& copy = copies[fmt::format("layer.{}.weight", i)];
      copy = Buffer(static_cast<size_t>(kRows * kCols * 2));
      std::memset(copy.data(), 1, copy.size_bytes());  // backed by pages before the clock runs
      result.push_back(
          {fmt::format("layer.{}.weight", i), {kRows, kCols}, true, [&copy](const WeightSource& source) -> Status {
             std::memcpy(copy.data(), source.data, source.size_bytes());
             return {};
           }});
    }
    return result;
  }
};

void BM_MemoryCopy(benchmark::State& state) {
  const auto bytes = static_cast<size_t>(kTensors * kRows * kCols);
  Buffer from(bytes), to(bytes);
  std::memset(from.data(), 1, bytes);
  std::memset(to.data(), 1, bytes);
  ThreadPool pool(0);
  for (auto _ : state) {
    pool.parallel_for(static_cast<int64_t>(bytes), 1 << 20, [&](int64_t begin, int64_t end, int) {
      std::memcpy(to.as<std::byte>() + begin, from.as<std::byte>() + begin, static_cast<size_t>(end - begin));
    });
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(bytes));
}
BENCHMARK(BM_MemoryCopy)->UseRealTime()->Unit(benchmark::kMillisecond);

void BM_LoadFromPageCache(benchmark::State& state) {
  const bool fp8 = state.range(0) != 0;
  const auto elements = static_cast<size_t>(kRows * kCols);
  const std::string data(elements * (fp8 ? 1 : 2), '\x35');
  const std::string scales =
      testing_files::bytes_of(std::vector<float>(static_cast<size_t>(kRows / 128 * kCols / 128), 1.0F));
  std::vector<TensorSpec> tensors;
  for (int i = 0; i < kTensors; ++i) {
    const std::string name = fmt::format("layer.{}.weight", i);
    tensors.push_back({name, fp8 ? "F8_E4M3" : "BF16", {kRows, kCols}, data});
    if (fp8) tensors.push_back({name + "_scale_inv", "F32", {kRows / 128, kCols / 128}, scales});
  }
  const TemporaryFolder folder;
  folder.write("model.safetensors", safetensors_file(tensors));
  tensors.clear();
  Sink sink;
  const auto requests = sink.requests();
  size_t bytes = 0;
  for (auto _ : state) {
    const auto checkpoint = Checkpoint::open(folder.path());
    const auto report = load_weights(*checkpoint, requests, {});
    if (report.has_error()) return state.SkipWithError(report.error().message.c_str());
    bytes += report->bytes;
  }
  state.SetBytesProcessed(static_cast<int64_t>(bytes));
}
BENCHMARK(BM_LoadFromPageCache)->ArgName("fp8")->Arg(0)->Arg(1)->UseRealTime()->Unit(benchmark::kMillisecond);

void BM_DummyWeights(benchmark::State& state) {
  Sink sink;
  const auto requests = sink.requests();
  size_t bytes = 0;
  for (auto _ : state) bytes += load_dummy_weights(requests, DType::kBF16, state.range(0) ? 128 : 0, {})->bytes;
  state.SetBytesProcessed(static_cast<int64_t>(bytes));
}
BENCHMARK(BM_DummyWeights)->ArgName("fp8")->Arg(0)->Arg(1)->UseRealTime()->Unit(benchmark::kMillisecond);

// The header of DeepSeek-V3 in one file: 92,000 tensors.
void BM_ParseHeader(benchmark::State& state) {
  constexpr int kEntries = 92'000;
  std::string header = "{";
  for (int i = 0; i < kEntries; ++i)
    header += fmt::format(
        R"({}"model.layers.{}.mlp.experts.{}.gate_proj.weight":{{"dtype":"U8","shape":[1,1],"data_offsets":[{},{}]}})",
        i ? "," : "", i % 61, i, i, i + 1);
  const std::string file = safetensors_file(header + "}", std::string(kEntries, 'x'));
  for (auto _ : state) benchmark::DoNotOptimize(parse_safetensors(testing_files::as_bytes(file))->size());
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(header.size()));
  state.SetItemsProcessed(state.iterations() * kEntries);
}
BENCHMARK(BM_ParseHeader)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace plait
