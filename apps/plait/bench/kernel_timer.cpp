#include "bench/kernel_timer.h"

#include <algorithm>

#include "base/round.h"
#include "base/thread_pool.h"
#include "kernels/cuda/gemm_chooser.h"

namespace plait {
namespace {

using cuda::DeviceBuffer;
using cuda::GemmFormat;
using cuda::GemmKernel;
using cuda::GemmOperands;
using cuda::GemmRows;
using cuda::GemmShape;

constexpr size_t kAlignment = 1024;
constexpr double kCaches = 2.5;                 // sets of operands together, over the second-level cache
constexpr size_t kLeastRotated = 256ULL << 20;  // bytes, where no cache is known
constexpr int kMostSets = 64, kLeastSets = 2;
constexpr double kShareOfMemory = 0.8;
constexpr size_t kBusyBytes = 512ULL << 20;  // 0.15 ms on an H200
constexpr int kBusyWrites = 4;
constexpr int kMostLaunches = 128, kLeastLaunches = 4;
constexpr int kUntimedShare = 16;  // one more launch before so many timed ones
constexpr int kCheckedQuantizedRows = 4;

// Places of GemmOperands in parts_.
enum { kA, kB, kAScales, kBScales, kD, kCounts, kBlockGroups, kPartCount };
// Of QuantizeOperands.
enum { kX, kQ, kScales, kQuantizeCounts, kQuantizePartCount };

size_t bytes(int64_t count, int64_t each) {
  return static_cast<size_t>(count * each);
}

}  // namespace

Result<std::unique_ptr<KernelTimer>> KernelTimer::create(const cuda::Device& device, jit::Compiler& compiler,
                                                         jit::KernelCache& cache, const TimerOptions& options) {
  PLAIT_ASSIGN_OR_RETURN(cuda::Stream stream, cuda::Stream::create(device));
  std::unique_ptr<KernelTimer> timer(new KernelTimer(device, compiler, cache, options, std::move(stream)));
  PLAIT_ASSIGN_OR_RETURN(timer->busy_, DeviceBuffer::allocate(device, kBusyBytes));
  for (const GemmFormat format : {GemmFormat::kFp8, GemmFormat::kBf16})
    timer->patterns_[format] = std::make_unique<GemmPatterns>(format, options.seed);
  return timer;
}

Status KernelTimer::prepare(std::span<const jit::KernelSource> sources) {
  std::vector<Status> failures(sources.size());
  ThreadPool(/*threads=*/0).parallel_for(std::ssize(sources), /*grain=*/1, [&](int64_t at, int64_t, int) {
    const auto i = static_cast<size_t>(at);
    auto kernel = cache_.get_or_build(sources[i], compiler_);
    if (kernel.has_error()) failures[i] = std::move(kernel).error();
  });
  for (Status& failure : failures) PLAIT_RETURN_IF_ERROR(std::move(failure));
  return {};
}

Result<std::string> KernelTimer::cubin_of(const jit::KernelSource& source) {
  PLAIT_ASSIGN_OR_RETURN(const jit::CachedKernel cached, cache_.get_or_build(source, compiler_));
  return cached.kernel->cubin;
}

// -- Operands

// Decides where parts lie in a set and how many sets there are, and fills them.
Status KernelTimer::place(std::vector<Part>& parts) {
  set_bytes_ = 0;
  for (Part& part : parts) {
    part.at = set_bytes_;
    set_bytes_ += round_up(part.bytes + 1, kAlignment);
  }
  const auto& properties = device_.properties();
  const auto wanted = std::max(static_cast<size_t>(kCaches * static_cast<double>(properties.l2_bytes)), kLeastRotated);
  const auto room = static_cast<size_t>(kShareOfMemory * static_cast<double>(properties.memory_bytes));
  sets_ = static_cast<int>(std::clamp<size_t>(ceil_div(wanted, set_bytes_), kLeastSets, kMostSets));
  while (sets_ > kLeastSets && static_cast<size_t>(sets_) * set_bytes_ > room) --sets_;
  const size_t all = static_cast<size_t>(sets_) * set_bytes_;
  if (arena_.size_bytes() < all) {
    arena_ = {};
    PLAIT_ASSIGN_OR_RETURN(arena_, DeviceBuffer::allocate(device_, all));
  }
  for (int set = 0; set < sets_; ++set) PLAIT_RETURN_IF_ERROR(fill(parts, static_cast<size_t>(set) * set_bytes_));
  parts_ = parts;
  return stream_.wait();  // what is copied from belongs to the caller
}

Status KernelTimer::fill(const std::vector<Part>& parts, size_t set_begin) {
  for (const Part& part : parts) {
    const size_t begin = set_begin + part.at;
    if (part.host != nullptr) PLAIT_RETURN_IF_ERROR(arena_.write(part.host, part.bytes, stream_, begin));
    if (part.pattern == nullptr) continue;
    const std::vector<uint8_t>& pattern = part.pattern->bytes();
    PLAIT_RETURN_IF_ERROR(arena_.write(pattern.data(), std::min(pattern.size(), part.bytes), stream_, begin));
    for (size_t done = pattern.size(); done < part.bytes; done += pattern.size())
      PLAIT_RETURN_IF_ERROR(arena_.copy(begin + done, begin, std::min(pattern.size(), part.bytes - done), stream_));
  }
  return {};
}

cuda::DevicePointer KernelTimer::pointer(const Part& part, int set) const {
  return arena_.pointer() + static_cast<size_t>(set) * set_bytes_ + part.at;
}

Status KernelTimer::begin(const GemmShape& shape, int64_t rows, int64_t room) {
  if (shape.rows == GemmRows::kBatched) return unsupported("batched products are not measured");
  const int64_t element = element_bytes(shape.format), blocks_k = ceil_div(shape.k, 128);
  shape_ = shape;
  layout_ = lay_out(shape.rows, shape.groups, rows, room > 0 ? room : usual_room(rows), options_.seed);
  const GemmPatterns& patterns = *patterns_.at(shape.format);
  const int64_t rooms = shape.rows == GemmRows::kMasked ? shape.groups : 1;
  const bool scaled = shape.format == GemmFormat::kFp8;
  std::vector<Part> parts(kPartCount);
  parts[kA] = {.bytes = bytes(layout_.rows * shape.k, element), .pattern = &patterns.a};
  parts[kB] = {.bytes = bytes(shape.groups * shape.n * shape.k, element), .pattern = &patterns.b};
  if (scaled) {
    parts[kAScales] = {.bytes = bytes(rooms * blocks_k * round_up(layout_.m, 4), 4), .pattern = &patterns.a_scales};
    parts[kBScales] = {.bytes = bytes(shape.groups * ceil_div(shape.n, 128) * blocks_k, 4),
                       .pattern = &patterns.b_scales};
  }
  parts[kD] = {.bytes = bytes(layout_.rows * shape.n, element_bytes(shape.result))};
  parts[kCounts] = {.bytes = layout_.counts.size() * 4, .host = layout_.counts.data()};
  parts[kBlockGroups] = {.bytes = layout_.block_groups.size() * 4, .host = layout_.block_groups.data()};
  PLAIT_RETURN_IF_ERROR(place(parts));
  expected_ = expected_rows(shape, layout_, patterns, options_.seed + 17);
  bits_.clear();
  unequal_.clear();
  return {};
}

GemmOperands KernelTimer::operands(int set) const {
  return {.a = pointer(parts_[kA], set),
          .a_scales = pointer(parts_[kAScales], set),
          .scale_rows = round_up(layout_.m, 4),
          .b = pointer(parts_[kB], set),
          .b_scales = pointer(parts_[kBScales], set),
          .d = pointer(parts_[kD], set),
          .m = layout_.m,
          .row_counts = pointer(parts_[kCounts], set),
          .block_groups = pointer(parts_[kBlockGroups], set)};
}

// -- Checks

Status KernelTimer::check(const Launch& launch, const GemmKernel& kernel) {
  PLAIT_RETURN_IF_ERROR(arena_.fill(kUnwritten, stream_, parts_[kD].at, parts_[kD].bytes));
  PLAIT_RETURN_IF_ERROR(launch(0));
  std::vector<uint8_t> bits;
  const int64_t row_bytes = shape_.n * element_bytes(shape_.result);
  for (const ExpectedRow& expected : expected_) {
    std::vector<uint8_t> row(static_cast<size_t>(row_bytes));
    PLAIT_RETURN_IF_ERROR(arena_.read(row.data(), row.size(), stream_, parts_[kD].at + bytes(expected.row, row_bytes)));
    PLAIT_RETURN_IF_ERROR(stream_.wait());
    PLAIT_RETURN_IF_ERROR(check_row(shape_.result, expected, row));
    bits.insert(bits.end(), row.begin(), row.end());
  }
  const auto [known, first] = bits_.try_emplace(describe(summing_order(kernel)), bits);
  if (first) return {};
  ++compared_;
  if (known->second != bits) unequal_.push_back(name_of(kernel));
  return {};
}

Status KernelTimer::check(const Launch& launch, const cuda::QuantizeShape& shape) {
  PLAIT_RETURN_IF_ERROR(arena_.fill(kUnwritten, stream_, parts_[kQ].at, parts_[kQ].bytes));
  PLAIT_RETURN_IF_ERROR(arena_.fill(kUnwritten, stream_, parts_[kScales].at, parts_[kScales].bytes));
  PLAIT_RETURN_IF_ERROR(launch(0));
  const int64_t blocks = ceil_div(shape.k, 128), scale_rows = round_up(layout_.m, 4);
  std::vector<uint8_t> q(static_cast<size_t>(shape.k));
  std::vector<float> scales(static_cast<size_t>(blocks));
  const size_t runs = layout_.first.size();
  for (int i = 0; i < kCheckedQuantizedRows; ++i) {
    const size_t run = runs * static_cast<size_t>(i) / kCheckedQuantizedRows;
    const int64_t row = i % 2 == 0 ? layout_.first[run] : layout_.last[run], group = row / layout_.m;
    PLAIT_RETURN_IF_ERROR(arena_.read(q.data(), q.size(), stream_, parts_[kQ].at + bytes(row, shape.k)));
    for (int64_t block = 0; block < blocks; ++block)
      PLAIT_RETURN_IF_ERROR(
          arena_.read(&scales[static_cast<size_t>(block)], 4, stream_,
                      parts_[kScales].at + bytes((group * blocks + block) * scale_rows + row % layout_.m, 4)));
    PLAIT_RETURN_IF_ERROR(stream_.wait());
    PLAIT_RETURN_IF_ERROR(check_quantized_row(shape, patterns_.at(GemmFormat::kBf16)->a, row, q, scales));
  }
  return {};
}

// -- Times

Result<double> KernelTimer::time(const Launch& launch) {
  PLAIT_ASSIGN_OR_RETURN(const cuda::Event begin, cuda::Event::create(device_));
  PLAIT_ASSIGN_OR_RETURN(const cuda::Event end, cuda::Event::create(device_));
  std::vector<double> seconds;
  int launches = kLeastLaunches, set = 0;
  // The first batch warms up, and says how long a launch takes.
  for (int batch = 0; batch <= options_.batches; ++batch) {
    for (int i = 0; i < kBusyWrites; ++i) PLAIT_RETURN_IF_ERROR(busy_.fill(static_cast<uint8_t>(batch), stream_));
    const auto launch_some = [&](int count) -> Status {
      for (int i = 0; i < count; ++i, set = (set + 1) % sets_) PLAIT_RETURN_IF_ERROR(launch(set));
      return {};
    };
    // What the writes left in the cache has to go back to memory first.
    PLAIT_RETURN_IF_ERROR(launch_some(launches / kUntimedShare + 1));
    PLAIT_RETURN_IF_ERROR(begin.record(stream_));
    PLAIT_RETURN_IF_ERROR(launch_some(launches));
    PLAIT_RETURN_IF_ERROR(end.record(stream_));
    PLAIT_RETURN_IF_ERROR(end.wait());
    PLAIT_ASSIGN_OR_RETURN(const double total, end.seconds_since(begin));
    const double each = total / launches;
    if (batch > 0) seconds.push_back(each);
    if (batch == 0)
      launches =
          static_cast<int>(std::clamp(options_.batch_seconds / each, double{kLeastLaunches}, double{kMostLaunches}));
  }
  const auto middle = seconds.begin() + static_cast<int64_t>(seconds.size() / 2);
  std::ranges::nth_element(seconds, middle);
  return *middle;
}

Result<KernelTimer::Launch> KernelTimer::load(const GemmKernel& kernel) {
  PLAIT_ASSIGN_OR_RETURN(const std::string cubin, cubin_of(source_of(kernel)));
  // A std::function is copied: the kernel is shared by the copies.
  if (const auto* narrow = std::get_if<cuda::NarrowGemmConfig>(&kernel.config)) {
    PLAIT_ASSIGN_OR_RETURN(cuda::NarrowGemm gemm, cuda::NarrowGemm::load(device_, kernel.shape, *narrow, cubin));
    return Launch([this, gemm = std::make_shared<const cuda::NarrowGemm>(std::move(gemm))](int set) {
      return gemm->launch(operands(set), stream_);
    });
  }
  PLAIT_ASSIGN_OR_RETURN(cuda::Gemm gemm,
                         cuda::Gemm::load(device_, kernel.shape, std::get<cuda::GemmConfig>(kernel.config), cubin));
  return Launch([this, gemm = std::make_shared<const cuda::Gemm>(std::move(gemm))](int set) {
    return gemm->launch(operands(set), stream_);
  });
}

Result<double> KernelTimer::time(const GemmKernel& kernel) {
  PLAIT_ASSIGN_OR_RETURN(const Launch launch, load(kernel));
  PLAIT_RETURN_IF_ERROR(check(launch, kernel));
  return time(launch);
}

Result<double> KernelTimer::time(const cuda::QuantizeShape& shape, int64_t rows, int64_t room) {
  const bool masked = shape.groups > 0;
  layout_ = lay_out(masked ? GemmRows::kMasked : GemmRows::kDense, std::max(shape.groups, 1), rows,
                    room > 0 ? room : usual_room(rows), options_.seed);
  const int64_t scale_rows = round_up(layout_.m, 4);
  std::vector<Part> parts(kQuantizePartCount);
  parts[kX] = {.bytes = bytes(layout_.rows * shape.k, shape.gated ? 4 : 2),
               .pattern = &patterns_.at(GemmFormat::kBf16)->a};
  parts[kQ] = {.bytes = bytes(layout_.rows, shape.k)};
  parts[kScales] = {.bytes = bytes(ceil_div(shape.k, 128) * scale_rows * std::max(shape.groups, 1), 4)};
  parts[kQuantizeCounts] = {.bytes = layout_.counts.size() * 4, .host = layout_.counts.data()};
  PLAIT_RETURN_IF_ERROR(place(parts));
  PLAIT_ASSIGN_OR_RETURN(const std::string cubin, cubin_of(quantize_source(shape)));
  PLAIT_ASSIGN_OR_RETURN(const cuda::Quantize kernel, cuda::Quantize::load(device_, shape, cubin));
  const Launch launch = [&](int set) {
    return kernel.launch({.x = pointer(parts_[kX], set),
                          .q = pointer(parts_[kQ], set),
                          .scales = pointer(parts_[kScales], set),
                          .scale_rows = scale_rows,
                          .m = layout_.m,
                          .row_counts = pointer(parts_[kQuantizeCounts], set)},
                         stream_);
  };
  PLAIT_RETURN_IF_ERROR(check(launch, shape));
  return time(launch);
}

}  // namespace plait
