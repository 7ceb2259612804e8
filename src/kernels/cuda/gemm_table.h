// What was measured to be fastest on a device, by shape and class of rows: `plait bench --tune` writes such a table,
// and the chooser asks it before its model.
//
// A value. A table that was read holds only kernels that all_candidates lists for this device, so everything that holds
// for the chooser's own answers holds for a table's. Plain functions; safe from any thread.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/sha256.h"
#include "kernels/cuda/gemm_candidates.h"

namespace plait::cuda {

// To be raised when the form of the file changes, or what rows_class says.
inline constexpr int64_t kGemmTableVersion = 1;

struct GemmTable {
  struct Choice {
    int64_t rows = 0;  // the largest of its class (rows_class)
    GemmKernel kernel;
    double seconds = 0;
  };
  struct Product {
    GemmShape shape;
    // Each ascending by rows; a class that is missing is left to the model.
    std::vector<Choice> fastest;
    std::vector<Choice> deterministic;  // among kernels of the shape's deterministic_order
  };

  std::string device;    // DeviceModel::name
  std::string gpu;       // where it was measured, as the driver says: "NVIDIA H200"
  std::string compiler;  // "nvrtc 13.0.88"
  std::vector<Product> products;

  const Product* find(const GemmShape& shape) const;
  // Of a class of rows; nullptr: the table does not have it.
  const GemmKernel* find(const GemmShape& shape, int64_t largest_rows, bool deterministic) const;
};

// "fp8 dense n 4096 k 7168", "bf16 dense to f32 n 256 k 7168"
std::string describe(const GemmShape& shape);

// Changes with the text of any kernel that a table can name: times of other kernels are no reason to choose.
std::string gemm_sources_digest();

std::string to_json(const GemmTable& table);
// Errors name the entry: kCorrupt: it breaks its format, or has a kernel or class that is none; kUnsupported: it was
// made by another version, or of other kernels; kInvalid: it is another device's.
Result<GemmTable> parse_gemm_table(std::string_view text, const DeviceModel& device);
// Those, and kNotFound or kIo; the message begins with the file's path.
Result<GemmTable> read_gemm_table(const std::filesystem::path& file, const DeviceModel& device);
// Atomically: whoever reads has the old table or the new one. The folder is made if it is not there.
Status write_gemm_table(const std::filesystem::path& file, const GemmTable& table);

// -- Where a table comes from

// Of a device, beside the kernel cache: $XDG_CACHE_HOME/plait/kernel-tables/h200.json. Empty if there is no home.
std::filesystem::path default_gemm_table_file(const DeviceModel& device);
// What --kernel-table says: a file, which must be right; "none"; or "auto": the default file if it is there, and if it
// cannot be used a warning and no table. Afterwards device.table is what the chooser asks.
Status use_gemm_table(const std::string& flag, DeviceModel& device);
// For hosts to agree on: "none", or 64 digits over all that choices depend on.
std::string gemm_table_digest(const DeviceModel& device);

}  // namespace plait::cuda
