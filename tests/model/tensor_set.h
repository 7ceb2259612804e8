// Named tensors in memory, for tests: read from a safetensors file of this repository or made by the test itself, and
// handed to a model without the loader in between.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "model/model.h"
#include "tensor/dtype.h"

namespace plait::testing {

struct TestTensor {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::vector<std::byte> data;

  int64_t count() const;
  // Elements as stored: no scales.
  std::vector<float> floats() const;
  std::vector<int32_t> ints() const;  // kI32 only
};

class TensorSet {
 public:
  // Trusts the file: it is part of the repository.
  static TensorSet read(const std::filesystem::path& file);

  bool has(const std::string& name) const { return tensors_.contains(name); }
  const TestTensor& get(const std::string& name) const;
  // Stores `values` rounded to `dtype` (F32, BF16, F16).
  void put(const std::string& name, std::vector<int64_t> shape, std::span<const float> values, DType dtype);
  // Stores `values` [rows, cols] as e4m3 with 128x128 scales beside it.
  void put_fp8(const std::string& name, int64_t rows, int64_t cols, std::span<const float> values,
               bool power_of_two_scales = false);
  void erase(const std::string& name) { tensors_.erase(name); }

  // What the tensor stands for, scales included.
  std::vector<double> values(const std::string& name) const;

  // Does the loader's work, on one thread: every request is written from the tensor of its name.
  Status load(Model& model) const;
  Status load(std::span<const WeightRequest> requests) const;

 private:
  std::map<std::string, TestTensor> tensors_;
};

}  // namespace plait::testing
