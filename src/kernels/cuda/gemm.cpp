#include "kernels/cuda/gemm.h"

#include "kernels/cuda/gemm_maps.h"

namespace plait::cuda {

Result<Gemm> Gemm::load(const Device& device, const GemmShape& shape, const GemmConfig& config,
                        const std::string& cubin) {
  PLAIT_RETURN_IF_ERROR(validate(shape, config));
  PLAIT_ASSIGN_OR_RETURN(LoadedKernel kernel,
                         LoadedKernel::load(device, cubin, "gemm", static_cast<int>(shared_bytes_of(shape, config))));
  return Gemm(device, shape, config, std::move(kernel));
}

Status Gemm::launch(const GemmOperands& operands, const Stream& stream) const {
  if (operands.m == 0) return {};
  const GemmBoxes boxes = {.a_rows = config_.block_m / (config_.share == GemmShare::kRows ? 2 : 1),
                           .b_rows = config_.block_n / (config_.share == GemmShare::kWeights ? 2 : 1),
                           .scale_rows = config_.block_m};
  PLAIT_ASSIGN_OR_RETURN(GemmMaps maps, gemm_maps(device_->driver(), shape_, operands, boxes));
  DevicePointer b_scales = operands.b_scales, d = operands.d, counts = operands.row_counts,
                groups = operands.block_groups;
  int m = static_cast<int>(operands.m);
  void* const arguments[] = {&maps.a, &maps.b, &maps.a_scales, &b_scales, &d, &m, &counts, &groups};
  const int cluster = cluster_of(config_);
  return kernel_.launch({.x = device_->properties().multiprocessors / cluster * cluster}, threads_of(config_),
                        arguments, stream);
}

}  // namespace plait::cuda
