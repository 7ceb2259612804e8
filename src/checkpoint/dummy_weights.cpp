// load_dummy_weights of weight_loader.h: random weights without a checkpoint, at the speed at which they can be copied.
//
// Matrices are windows into one block of random bits, made once: a value depends only on the tensor's name and the
// position. Every dtype gets magnitudes from 2^-7 to 2^-5 with a random sign (root mean square 0.019, about the 0.02
// that such models are initialised with), because a random sign, lowest exponent bit and mantissa under a fixed
// exponent are two logical operations for eight bytes.
#include <numeric>

#include "base/assert.h"
#include "checkpoint/load_jobs.h"
#include "checkpoint/weight_loader.h"
#include "tensor/buffer.h"

namespace plait {
namespace {

struct BitsRow {
  DType dtype;
  uint64_t random;  // which bits of eight bytes are random
  uint64_t fixed;   // the rest: the exponent
};
constexpr BitsRow kBits[] = {
    {DType::kF32, 0x80ffffff80ffffff, 0x3c0000003c000000},
    {DType::kBF16, 0x80ff80ff80ff80ff, 0x3c003c003c003c00},
    {DType::kF16, 0x87ff87ff87ff87ff, 0x2000200020002000},
    {DType::kF8E4M3, 0x8f8f8f8f8f8f8f8f, 0x4040404040404040},  // 2 to 8, times a scale of 2^-8
};
constexpr float kFp8Scale = 1.0F / 256;

constexpr size_t kOffsetUnit = 64;  // windows begin at multiples of it
constexpr size_t kOffsets = 16384;  // and at one of so many places
constexpr size_t kFillBytes = size_t{4} << 20;

// SplitMix64's output function: every input bit changes about half of the output bits.
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

uint64_t hash(std::string_view name) {
  uint64_t value = 0xcbf29ce484222325;  // FNV-1a
  for (const char c : name) value = (value ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return mix(value);
}

int64_t elements_of(const WeightRequest& request) {
  return std::accumulate(request.shape.begin(), request.shape.end(), int64_t{1}, std::multiplies<>());
}

struct RandomBlock {
  RandomBlock(DType dtype, size_t largest_bytes)
      : bits(*std::find_if(std::begin(kBits), std::end(kBits), [&](const BitsRow& row) { return row.dtype == dtype; })),
        buffer(largest_bytes == 0 ? 0 : (largest_bytes + kOffsetUnit * kOffsets + 7) / 8 * 8) {}

  // Fills bytes [begin, begin + kFillBytes).
  void fill(size_t begin) {
    const size_t end = std::min(begin + kFillBytes, buffer.size_bytes()) / 8;
    auto* words = buffer.as<uint64_t>();
    for (size_t i = begin / 8; i < end; ++i) words[i] = (mix(i) & bits.random) | bits.fixed;
  }
  const std::byte* window(std::string_view name) const {
    return buffer.as<std::byte>() + hash(name) % kOffsets * kOffsetUnit;
  }

  const BitsRow& bits;
  Buffer buffer;
};

Status fill_blocks(std::span<RandomBlock* const> blocks, int threads) {
  std::vector<std::pair<RandomBlock*, size_t>> pieces;
  for (RandomBlock* block : blocks)
    for (size_t begin = 0; begin < block->buffer.size_bytes(); begin += kFillBytes) pieces.emplace_back(block, begin);
  const std::vector<size_t> piece_bytes(pieces.size(), kFillBytes);
  return run_load_jobs(piece_bytes, threads, {}, [&](size_t i) -> Status {
    pieces[i].first->fill(pieces[i].second);
    return {};
  });
}

// Norms are about 1, the gate's correction bias about 0; both are small.
std::vector<float> vector_values(const WeightRequest& request) {
  const float centre = request.name.ends_with("e_score_correction_bias") ? 0.0F : 1.0F;
  const uint64_t seed = hash(request.name);
  std::vector<float> values(static_cast<size_t>(elements_of(request)));
  for (size_t i = 0; i < values.size(); ++i) {
    const auto uniform = static_cast<float>(static_cast<double>(mix(seed + i) >> 11) * 0x1p-53);  // [0, 1)
    values[i] = centre + 0.05F * (uniform - 0.5F);
  }
  return values;
}

Status write_vector(const WeightRequest& request, DType dtype) {
  const std::vector<float> values = vector_values(request);
  WeightSource source{.dtype = DType::kF32, .rows = 1, .cols = static_cast<int64_t>(values.size())};
  source.data = reinterpret_cast<const std::byte*>(values.data());
  // Published checkpoints keep the bias in F32 whatever the rest is.
  if (dtype == DType::kF32 || request.name.ends_with("e_score_correction_bias")) return request.write(source);
  std::vector<uint16_t> narrow;
  for (const float value : values) narrow.push_back(dtype == DType::kF16 ? float_to_half(value) : BFloat16(value).bits);
  source.dtype = dtype;
  source.data = reinterpret_cast<const std::byte*>(narrow.data());
  return request.write(source);
}

Status write_matrix(const WeightRequest& request, const RandomBlock& block, int64_t fp8_block) {
  WeightSource source{.dtype = block.bits.dtype, .rows = request.shape.front(), .cols = request.shape.back()};
  source.data = block.window(request.name);
  if (source.dtype != DType::kF8E4M3) return request.write(source);
  const auto blocks_of = [&](int64_t size) { return (size + fp8_block - 1) / fp8_block; };
  const std::vector<float> scales(static_cast<size_t>(blocks_of(source.rows) * blocks_of(source.cols)), kFp8Scale);
  source.scales = reinterpret_cast<const std::byte*>(scales.data());
  source.block = fp8_block;
  return request.write(source);
}

}  // namespace

Result<LoadReport> load_dummy_weights(std::span<const WeightRequest> all_requests, DType dtype, int64_t fp8_block,
                                      const LoadOptions& options) {
  const auto begin = std::chrono::steady_clock::now();
  std::vector<WeightRequest> requests(all_requests.begin(), all_requests.end());
  std::erase_if(requests, [](const WeightRequest& request) { return !request.write; });
  if (dtype != DType::kF32 && dtype != DType::kBF16 && dtype != DType::kF16)
    return unsupported(fmt::format("dummy weights in {}; only BF16, F16 and F32", name_of(dtype)));
  const auto is_fp8 = [&](const WeightRequest& request) {
    return fp8_block > 0 && request.may_be_quantised && request.shape.size() == 2;
  };

  LoadReport report;
  std::vector<size_t> job_bytes;
  size_t largest_bytes = 0, largest_fp8_bytes = 0;  // of the matrices
  for (const WeightRequest& request : requests) {
    const auto bytes = static_cast<size_t>(elements_of(request) * (is_fp8(request) ? 1 : size_of(dtype)));
    job_bytes.push_back(bytes);
    report.bytes += bytes;
    size_t& largest = is_fp8(request) ? largest_fp8_bytes : largest_bytes;
    if (request.shape.size() == 2) largest = std::max(largest, bytes);
  }
  report.tensors = requests.size();
  RandomBlock plain(dtype, largest_bytes), fp8(DType::kF8E4M3, largest_fp8_bytes);
  PLAIT_RETURN_IF_ERROR(fill_blocks(std::array{&plain, &fp8}, options.threads));

  PLAIT_RETURN_IF_ERROR(run_load_jobs(job_bytes, options.threads, options.progress, [&](size_t i) -> Status {
    const WeightRequest& request = requests[i];
    Status status = request.shape.size() == 1 ? write_vector(request, dtype)
                                              : write_matrix(request, is_fp8(request) ? fp8 : plain, fp8_block);
    if (status.has_error()) return std::move(status).error().within(fmt::format("dummy tensor {}", request.name));
    return {};
  }));
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return report;
}

}  // namespace plait
