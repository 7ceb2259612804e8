// How `plait bench --kernels` prints: a table, a line per row, or JSON.
#pragma once

#include <cstdio>
#include <string>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>

#include "bench/bench.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/device_model.h"

namespace plait {

struct KernelRow {
  std::string label;          // what multiplies so: "attention.q_b"
  std::string operation;      // "fp8 dense n 24576 k 1536"
  std::string kernel;         // its name
  int64_t rows = 0;           // as the chooser counts them
  int64_t existing_rows = 0;  // in all groups
  bool chosen = false;
  std::string wrong;  // what is wrong with its results; there is no time then
  double seconds = 0;
  double expected_seconds = 0;  // of a product: by the cost model
  double flops = 0, bytes = 0;
  double ceiling_seconds = 0;  // the arithmetic at its peak or the bytes at full bandwidth, whichever takes longer

  double share_of_ceiling() const { return ceiling_seconds / seconds; }
};

struct KernelRun {
  cuda::DeviceProperties gpu;
  cuda::DeviceModel device;  // with its table, if there is one
  std::string compiler;
  std::string sizes;
  uint32_t seed = 0;
};

class KernelReport {
 public:
  KernelReport(BenchOptions::Format format, std::FILE* out) : format_(format), out_(out) {}

  void begin(const KernelRun& run);
  void row(const KernelRow& row);
  // Of all kernels that were timed for some rows; `chosen_seconds` 0: the chosen one was not among them.
  void best(const KernelRow& row, double chosen_seconds);
  void note(const std::string& text);
  // `compared`: kernels whose bits were compared with others'.
  void finish(size_t compared);

 private:
  BenchOptions::Format format_;
  std::FILE* out_;
  std::string label_;
  double log_regrets_ = 0;
  int64_t regrets_ = 0;
  boost::json::object document_;
  boost::json::array rows_, bests_, notes_;
};

}  // namespace plait
