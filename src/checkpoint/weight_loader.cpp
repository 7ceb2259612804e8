#include "checkpoint/weight_loader.h"

#include <set>
#include <unordered_map>

#include <fmt/ranges.h>

#include "base/assert.h"
#include "checkpoint/load_jobs.h"
#include "checkpoint/mapped_file.h"
#include "checkpoint/tensor_names.h"

namespace plait {
namespace {

constexpr int64_t kFp8Block = 128;  // the only size that model_config accepts
constexpr const char* kScaleSuffix = "_scale_inv";
// Of a tensor that comes soon; the kernel's own sequential read-ahead takes over from there.
constexpr size_t kReadAheadBytes = size_t{32} << 20;

struct Job {
  const WeightRequest* request = nullptr;
  const StoredTensor* tensor = nullptr;
  const StoredTensor* scales = nullptr;  // of FP8 weights
  WeightSource source;

  size_t size_bytes() const { return tensor->size_bytes + (scales ? scales->size_bytes : 0); }
};

// What keeps a checkpoint from filling a model, all of it.
class Mismatches {
 public:
  void missing(std::string name) { missing_.push_back(std::move(name)); }
  void wrong(const std::string& name, std::string how) { wrong_[std::move(how)].push_back(name); }

  Status status() const {
    if (missing_.empty() && wrong_.empty()) return {};
    std::string text = "the checkpoint does not fit the model that config.json describes:";
    append("missing", missing_, text);
    for (const auto& [how, names] : wrong_) append(how, names, text);
    return corrupt(std::move(text));
  }

 private:
  static void append(std::string_view what, std::span<const std::string> names, std::string& text) {
    for (const std::string& folded : fold_tensor_names(names)) text += fmt::format("\n  {}: {}", what, folded);
  }

  std::vector<std::string> missing_;
  std::map<std::string, std::vector<std::string>> wrong_;  // what is wrong -> names
};

std::string format_shape(std::span<const int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

std::vector<int64_t> scale_shape(std::span<const int64_t> shape) {
  std::vector<int64_t> blocks;
  for (const int64_t size : shape) blocks.push_back((size + kFp8Block - 1) / kFp8Block);
  return blocks;
}

bool check_shape(const std::string& name, const StoredTensor& tensor, const std::vector<int64_t>& expected,
                 Mismatches& mismatches) {
  if (tensor.shape == expected) return true;
  mismatches.wrong(name, fmt::format("shape {} instead of {}", format_shape(tensor.shape), format_shape(expected)));
  return false;
}

// Finds the scales of an FP8 weight and checks their shape and dtype.
const StoredTensor* find_scales(const Checkpoint& checkpoint, const WeightRequest& request, Mismatches& mismatches) {
  const std::string name = request.name + kScaleSuffix;
  const StoredTensor* scales = checkpoint.find(name);
  if (!scales) {
    mismatches.missing(name);
    return nullptr;
  }
  if (!check_shape(name, *scales, scale_shape(request.shape), mismatches)) return nullptr;
  if (scales->dtype == DType::kF32) return scales;
  mismatches.wrong(name, fmt::format("dtype {} instead of F32", name_of(scales->dtype)));
  return nullptr;
}

bool check_dtype(const Checkpoint& checkpoint, const WeightRequest& request, const StoredTensor& tensor,
                 Mismatches& mismatches) {
  const bool is_fp8 = tensor.dtype == DType::kF8E4M3;
  const bool is_float = tensor.dtype == DType::kF32 || tensor.dtype == DType::kBF16 || tensor.dtype == DType::kF16;
  if (is_fp8 && !request.may_be_quantised) {
    mismatches.wrong(request.name, "dtype F8_E4M3, but this kind of weight is never quantised");
    return false;
  }
  if (!is_fp8 && !is_float) {
    mismatches.wrong(request.name, fmt::format("dtype {} instead of BF16, F16, F32 or F8_E4M3", name_of(tensor.dtype)));
    return false;
  }
  if (!is_fp8 && checkpoint.find(request.name + kScaleSuffix)) {
    mismatches.wrong(request.name, fmt::format("dtype {} although it has scales", name_of(tensor.dtype)));
    return false;
  }
  return true;
}

void plan_request(const Checkpoint& checkpoint, const WeightRequest& request, Mismatches& mismatches,
                  std::vector<Job>& jobs) {
  Job job{.request = &request, .tensor = checkpoint.find(request.name)};
  if (!job.tensor) return mismatches.missing(request.name);
  if (!check_shape(request.name, *job.tensor, request.shape, mismatches)) return;
  if (!check_dtype(checkpoint, request, *job.tensor, mismatches)) return;
  job.source.dtype = job.tensor->dtype;
  job.source.rows = request.shape.size() == 1 ? 1 : request.shape.front();
  job.source.cols = request.shape.back();
  job.source.data = job.tensor->data;
  if (job.tensor->dtype == DType::kF8E4M3) {
    job.scales = find_scales(checkpoint, request, mismatches);
    if (!job.scales) return;
    job.source.scales = job.scales->data;
    job.source.block = kFp8Block;
  }
  jobs.push_back(job);
}

// In the order in which the bytes lie in the files, so that every file is read from its beginning to its end.
Result<std::vector<Job>> plan_jobs(const Checkpoint& checkpoint, std::span<const WeightRequest> requests) {
  Mismatches mismatches;
  std::vector<Job> jobs;
  jobs.reserve(requests.size());
  for (const WeightRequest& request : requests) plan_request(checkpoint, request, mismatches, jobs);
  PLAIT_RETURN_IF_ERROR(mismatches.status());
  std::sort(jobs.begin(), jobs.end(), [](const Job& a, const Job& b) {
    return std::tie(a.tensor->file, a.tensor->data) < std::tie(b.tensor->file, b.tensor->data);
  });
  return jobs;
}

// The first byte of `data` that is an e4m3 NaN (0x7f or 0xff).
std::optional<size_t> find_e4m3_nan(std::span<const std::byte> data) {
  constexpr uint64_t kLow7 = 0x7f7f7f7f7f7f7f7f, kOnes = 0x0101010101010101, kHigh = 0x8080808080808080;
  constexpr size_t kStride = 32;
  size_t i = 0;
  for (; i + kStride <= data.size(); i += kStride) {
    std::array<uint64_t, kStride / 8> words;
    std::memcpy(words.data(), data.data() + i, kStride);
    uint64_t carries = 0;  // adding 1 to seven set bits carries into the eighth, and never further
    for (const uint64_t word : words) carries |= (word & kLow7) + kOnes;
    if (carries & kHigh) break;
  }
  for (; i < data.size(); ++i)
    if ((data[i] & std::byte{0x7f}) == std::byte{0x7f}) return i;
  return std::nullopt;
}

Status check_fp8_values(const Job& job) {
  const WeightSource& source = job.source;
  if (const auto at = find_e4m3_nan({source.data, source.size_bytes()})) {
    const auto index = static_cast<int64_t>(*at);
    return corrupt(fmt::format("NaN at [{}, {}]", index / source.cols, index % source.cols));
  }
  const int64_t scale_cols = (source.cols + source.block - 1) / source.block;
  for (size_t i = 0; i < job.scales->size_bytes / sizeof(float); ++i) {
    float scale = 0;
    std::memcpy(&scale, job.scales->data + i * sizeof(float), sizeof(float));
    if (std::isfinite(scale) && scale > 0) continue;
    const auto index = static_cast<int64_t>(i);
    return corrupt(fmt::format("scale {} at [{}, {}] of {}{}; scales are finite and positive", scale,
                               index / scale_cols, index % scale_cols, job.request->name, kScaleSuffix));
  }
  return {};
}

Status run_job(const Job& job) {
  if (job.scales) PLAIT_RETURN_IF_ERROR(check_fp8_values(job));
  return job.request->write(job.source);
}

void read_ahead(const Job& job) {
  MappedFile::will_read({job.tensor->data, std::min(job.tensor->size_bytes, kReadAheadBytes)});
}

LoadReport report_of(const Checkpoint& checkpoint, const std::vector<Job>& jobs, int64_t num_hidden_layers) {
  LoadReport report;
  std::set<const StoredTensor*> used;
  for (const Job& job : jobs) {
    used.insert({job.tensor, job.scales});
    if (!job.request->write) continue;
    report.bytes += job.size_bytes();
    report.tensors += job.scales ? 2 : 1;
  }
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    if (used.contains(&tensor)) continue;
    const bool known = is_mtp_tensor(name, num_hidden_layers) || is_rotary_table(name);
    (known ? report.set_aside : report.unexpected).push_back(name);
  }
  return report;
}

}  // namespace

std::vector<WeightRequest> merge_requests(std::vector<std::vector<WeightRequest>> of_shards) {
  if (of_shards.size() == 1) return std::move(of_shards.front());
  using Writes = std::vector<std::function<Status(const WeightSource&)>>;
  std::vector<WeightRequest> merged;
  std::vector<Writes> writes;
  std::unordered_map<std::string, size_t> index_of;
  for (std::vector<WeightRequest>& requests : of_shards)
    for (WeightRequest& request : requests) {
      const auto [entry, is_new] = index_of.try_emplace(request.name, merged.size());
      const size_t index = entry->second;
      if (is_new) {
        writes.emplace_back();
        merged.push_back({request.name, request.shape, request.may_be_quantised, {}});
      }
      PLAIT_ASSERT(merged[index].shape == request.shape, "shards of one model expect the same tensors");
      if (request.write) writes[index].push_back(std::move(request.write));
    }
  for (size_t i = 0; i < merged.size(); ++i) {
    if (writes[i].empty()) continue;
    merged[i].write = [all = std::move(writes[i])](const WeightSource& source) -> Status {
      for (const auto& write : all) PLAIT_RETURN_IF_ERROR(write(source));
      return {};
    };
  }
  return merged;
}

Result<LoadReport> check_weights(const Checkpoint& checkpoint, std::span<const WeightRequest> requests,
                                 int64_t num_hidden_layers) {
  PLAIT_ASSIGN_OR_RETURN(const std::vector<Job> jobs, plan_jobs(checkpoint, requests));
  return report_of(checkpoint, jobs, num_hidden_layers);
}

Result<LoadReport> load_weights(const Checkpoint& checkpoint, std::span<const WeightRequest> requests,
                                const LoadOptions& options) {
  const auto begin = std::chrono::steady_clock::now();
  PLAIT_ASSIGN_OR_RETURN(std::vector<Job> jobs, plan_jobs(checkpoint, requests));
  LoadReport report = report_of(checkpoint, jobs, options.num_hidden_layers);
  std::erase_if(jobs, [](const Job& job) { return !job.request->write; });
  std::vector<size_t> job_bytes;
  job_bytes.reserve(jobs.size());
  for (const Job& job : jobs) job_bytes.push_back(job.size_bytes());

  constexpr size_t kReadAheadJobs = 8;
  for (size_t i = 0; i < std::min(kReadAheadJobs, jobs.size()); ++i) read_ahead(jobs[i]);
  PLAIT_RETURN_IF_ERROR(run_load_jobs(job_bytes, options.threads, options.progress, [&](size_t i) -> Status {
    if (i + kReadAheadJobs < jobs.size()) read_ahead(jobs[i + kReadAheadJobs]);
    const Job& job = jobs[i];
    Status status = run_job(job);
    if (status.has_error())
      return std::move(status).error().within(fmt::format("{}: tensor {}", job.tensor->file, job.request->name));
    checkpoint.release(*job.tensor);
    return {};
  }));
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return report;
}

}  // namespace plait
