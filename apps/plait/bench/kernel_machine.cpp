#include "bench/kernel_machine.h"

#include "jit/nvrtc.h"

namespace plait {
namespace {

constexpr int kHopper = 90;

}  // namespace

std::string KernelMachine::compiler_text() const {
  return fmt::format("{} {}", compiler->identity().name, compiler->identity().version);
}

Result<KernelMachine> open_kernel_machine(const std::filesystem::path& cache_directory, const TimerOptions& options) {
  KernelMachine machine;
  auto device = cuda::Device::open(0);
  if (device.has_error())
    return std::move(device).error().within(
        "kernels are measured on a GPU, and none can be used here; `plait plan --kernels` needs none");
  machine.device = std::move(*device);
  const cuda::DeviceProperties& properties = machine.device->properties();
  if (properties.compute_capability != kHopper)
    return unsupported(
        fmt::format("{} has compute capability {}.{}; plait's kernels are for Hopper, which has 9.0: "
                    "make an H100, H200 or H20 the first of CUDA_VISIBLE_DEVICES",
                    properties.name, properties.compute_capability / 10, properties.compute_capability % 10));
  machine.model = cuda::describe_device(properties);
  PLAIT_ASSIGN_OR_RETURN(machine.compiler, jit::load_nvrtc());
  machine.cache = std::make_unique<jit::KernelCache>(jit::CacheOptions{.directory = cache_directory});
  PLAIT_ASSIGN_OR_RETURN(machine.timer,
                         KernelTimer::create(*machine.device, *machine.compiler, *machine.cache, options));
  return machine;
}

}  // namespace plait
