#include "tests/model/tensor_set.h"

#include <fstream>

#include <boost/json.hpp>

#include "base/assert.h"

namespace plait::testing {
namespace {

constexpr int64_t kBlock = 128;
constexpr float kE4m3Max = 448;

template <typename T>
T load_as(const std::byte* data, int64_t index) {
  T value;
  std::memcpy(&value, data + index * sizeof(T), sizeof(T));
  return value;
}

float element(const TestTensor& tensor, int64_t i) {
  switch (tensor.dtype) {
    case DType::kF32:
      return load_as<float>(tensor.data.data(), i);
    case DType::kBF16:
      return static_cast<float>(load_as<BFloat16>(tensor.data.data(), i));
    case DType::kF16:
      return half_to_float(load_as<uint16_t>(tensor.data.data(), i));
    case DType::kF8E4M3:
      return e4m3_to_float(load_as<uint8_t>(tensor.data.data(), i));
    default:
      PLAIT_ASSERT(false, "not a float tensor");
  }
}

std::string scale_name(const std::string& name) {
  return name + "_scale_inv";
}

}  // namespace

int64_t TestTensor::count() const {
  int64_t count = 1;
  for (const int64_t extent : shape) count *= extent;
  return count;
}

std::vector<float> TestTensor::floats() const {
  std::vector<float> values(count());
  for (int64_t i = 0; i < count(); ++i) values[i] = element(*this, i);
  return values;
}

std::vector<int32_t> TestTensor::ints() const {
  PLAIT_ASSERT(dtype == DType::kI32, "not an I32 tensor");
  std::vector<int32_t> values(count());
  std::memcpy(values.data(), data.data(), data.size());
  return values;
}

TensorSet TensorSet::read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  PLAIT_ASSERT(file, "cannot open " + path.string());
  uint64_t header_bytes = 0;
  file.read(reinterpret_cast<char*>(&header_bytes), sizeof(header_bytes));
  std::string header(header_bytes, '\0');
  file.read(header.data(), static_cast<std::streamsize>(header_bytes));

  TensorSet set;
  const auto parsed = boost::json::parse(header);
  for (const auto& [name, entry] : parsed.as_object()) {
    if (name == "__metadata__") continue;
    TestTensor tensor;
    PLAIT_ASSERT(parse_dtype(entry.at("dtype").as_string(), tensor.dtype), "unknown dtype");
    tensor.shape = boost::json::value_to<std::vector<int64_t>>(entry.at("shape"));
    const auto range = boost::json::value_to<std::vector<int64_t>>(entry.at("data_offsets"));
    tensor.data.resize(range[1] - range[0]);
    file.seekg(static_cast<std::streamoff>(sizeof(header_bytes) + header_bytes + range[0]));
    file.read(reinterpret_cast<char*>(tensor.data.data()), static_cast<std::streamsize>(tensor.data.size()));
    set.tensors_.emplace(std::string(name), std::move(tensor));
  }
  return set;
}

const TestTensor& TensorSet::get(const std::string& name) const {
  const auto found = tensors_.find(name);
  PLAIT_ASSERT(found != tensors_.end(), "no tensor " + name);
  return found->second;
}

void TensorSet::put(const std::string& name, std::vector<int64_t> shape, std::span<const float> values, DType dtype) {
  TestTensor tensor{dtype, std::move(shape), {}};
  PLAIT_ASSERT(tensor.count() == static_cast<int64_t>(values.size()), "shape and values differ");
  tensor.data.resize(values.size() * size_of(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    std::byte* const to = tensor.data.data() + i * size_of(dtype);
    const BFloat16 bfloat(values[i]);
    const uint16_t half = float_to_half(values[i]);
    if (dtype == DType::kF32) std::memcpy(to, &values[i], sizeof(float));
    if (dtype == DType::kBF16) std::memcpy(to, &bfloat, sizeof(bfloat));
    if (dtype == DType::kF16) std::memcpy(to, &half, sizeof(half));
  }
  tensors_.insert_or_assign(name, std::move(tensor));
}

void TensorSet::put_fp8(const std::string& name, int64_t rows, int64_t cols, std::span<const float> values,
                        bool power_of_two_scales) {
  const int64_t grid_rows = (rows + kBlock - 1) / kBlock, grid_cols = (cols + kBlock - 1) / kBlock;
  std::vector<float> scales(grid_rows * grid_cols, 0);
  const auto scale_of = [&](int64_t i, int64_t j) -> float& { return scales[i / kBlock * grid_cols + j / kBlock]; };
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j)
      scale_of(i, j) = std::max(scale_of(i, j), std::abs(values[i * cols + j]) / kE4m3Max);
  if (power_of_two_scales)
    for (float& scale : scales) scale = std::exp2(std::ceil(std::log2(scale)));

  TestTensor tensor{DType::kF8E4M3, {rows, cols}, {}};
  tensor.data.resize(rows * cols);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j)
      tensor.data[i * cols + j] = static_cast<std::byte>(float_to_e4m3(values[i * cols + j] / scale_of(i, j)));
  tensors_.insert_or_assign(name, std::move(tensor));
  put(scale_name(name), {grid_rows, grid_cols}, scales, DType::kF32);
}

std::vector<double> TensorSet::values(const std::string& name) const {
  const TestTensor& tensor = get(name);
  const std::vector<float> stored = tensor.floats();
  std::vector<double> values(stored.begin(), stored.end());
  if (!has(scale_name(name))) return values;
  const std::vector<float> scales = get(scale_name(name)).floats();
  const int64_t cols = tensor.shape[1], grid_cols = (cols + kBlock - 1) / kBlock;
  // The product of an e4m3 and a float32 number, rounded to float32: what dequantising means in every implementation.
  for (int64_t i = 0; i < tensor.count(); ++i)
    values[i] = stored[i] * scales[i / cols / kBlock * grid_cols + i % cols / kBlock];
  return values;
}

Status TensorSet::load(Model& model) const {
  PLAIT_RETURN_IF_ERROR(load(model.weight_requests()));
  return model.finish_loading();
}

Status TensorSet::load(std::span<const WeightRequest> requests) const {
  for (const WeightRequest& request : requests) {
    if (!has(request.name)) return corrupt("missing tensor " + request.name);
    const TestTensor& tensor = get(request.name);
    if (tensor.shape != request.shape) return corrupt("wrong shape of " + request.name);
    WeightSource source;
    source.dtype = tensor.dtype;
    source.rows = tensor.shape.size() == 2 ? tensor.shape[0] : 1;
    source.cols = tensor.shape.back();
    source.data = tensor.data.data();
    if (has(scale_name(request.name))) {
      source.scales = get(scale_name(request.name)).data.data();
      source.block = kBlock;
    }
    if (!request.write) continue;
    if (auto status = request.write(source); status.has_error()) return std::move(status).error().within(request.name);
  }
  return {};
}

}  // namespace plait::testing
