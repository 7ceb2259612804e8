// Every kernel that a rank can ever run: a pure function of the model, the parallel layout, the limits and the device.
//
// What start-up builds before anything runs (kernel_build.h), `plait plan --kernels` prints and `plait compile` puts
// into a cache: all three ask kernels_of_ranks what manifest_question makes of their flags. Needs config.json only: no
// weights, no GPU, no compiler. Values; any thread.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "engine/rank_calls.h"
#include "jit/manifest.h"
#include "kernels/cuda/device_model.h"

namespace plait {

struct EngineOptions;

// The kernels of `calls`, by going through everything that the chooser can answer for their row counts. kUnsupported:
// there are no kernels for that architecture; the message names those that there are.
Result<jit::KernelManifest> kernel_manifest(std::span<const RankCall> calls, const cuda::DeviceModel& device,
                                            const std::string& architecture);

struct ManifestQuestion {
  ParallelConfig parallel;  // as judge() has forced it with the model's facts
  CallLimits limits;
  cuda::DeviceModel device;
  std::string architecture = "sm_90a";
};
// As these options want a device's kernels chosen: by which table, and whether only of one summing order. Errors: those
// of use_gemm_table.
Status choose_kernels_by(const EngineOptions& options, cuda::DeviceModel& device);
// That of an engine with these options, whose ranks run on `device`. `parallel`: options.parallel as judge() forced it.
ManifestQuestion manifest_question(const EngineOptions& options, ParallelConfig parallel, cuda::DeviceModel device);

// Ranks whose calls, and so kernels, are the same.
struct RankKernels {
  std::vector<int> ranks;  // ascending
  int pipeline_stage = 0;
  std::vector<RankCall> calls;
  jit::KernelManifest manifest;
};

// Of all ranks of a replica, in the order of their first ranks. Errors: those of make_plan, rank_calls,
// kernel_manifest.
Result<std::vector<RankKernels>> kernels_of_ranks(const ModelConfig& config, const ManifestQuestion& question);

// All kernels of several manifests, each once: what one cache for all ranks holds.
jit::KernelManifest merge_manifests(std::span<const RankKernels> ranks);

}  // namespace plait
