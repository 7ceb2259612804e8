// The products and quantisations that `plait bench --kernels` and `--tune` measure: those of a model's ranks, or those
// that DeepGEMM's own tests measure. Values and pure functions.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "engine/kernel_manifest.h"
#include "kernels/cuda/gemm_tuner.h"

namespace plait {

struct KernelCase {
  std::string label;  // "attention.q_b, dense.gate_up": matrices that have this operation
  std::variant<cuda::GemmShape, cuda::QuantizeShape> operation;
  std::vector<int64_t> rows;  // as choose_gemm counts them
  int64_t room = 0;           // of a masked group; 0: what is usual for the rows
};

// Of all ranks, each operation once. `rows`: those of them that can come, and where none can, the most that can; empty:
// the usual ones.
std::vector<KernelCase> model_cases(std::span<const RankKernels> ranks, std::span<const int64_t> rows);
// `rows`: only those of them; empty: all that are measured there.
std::vector<KernelCase> deepgemm_cases(cuda::GemmFormat format, std::span<const int64_t> rows);

// Every product of all ranks with every class of rows that can come, up to `most_rows`.
std::vector<cuda::TuneTask> tune_tasks(std::span<const RankKernels> ranks, int64_t most_rows);

// DeepSeek-V3 as it was published, and the layout in which its kernels are measured if nothing else is asked for.
Result<ModelConfig> deepseek_v3_config();
ParallelConfig deepseek_v3_layout();

}  // namespace plait
