// A test that needs a Hopper GPU, with what every such test has: the device, a stream, compiled kernels. Where there is
// none it is skipped, or fails if PLAIT_REQUIRE_GPU is set, as scripts/test-gpu does.
#pragma once

#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "jit/nvrtc.h"
#include "kernels/cuda/device.h"
#include "tests/kernels/cuda/all_cores.h"

namespace plait::cuda::testing {

class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto device = Device::open(0);
    if (device.has_error()) {
      ASSERT_EQ(std::getenv("PLAIT_REQUIRE_GPU"), nullptr) << device.error().message;
      GTEST_SKIP() << "SKIPPED: " << device.error().message;
    }
    device_ = std::move(device).value();
    if (device_->properties().compute_capability != 90) {
      const std::string why = device_->properties().name + " is not of the Hopper generation";
      ASSERT_EQ(std::getenv("PLAIT_REQUIRE_GPU"), nullptr) << why;
      GTEST_SKIP() << "SKIPPED: " << why;
    }
    auto compiler = jit::load_nvrtc();
    ASSERT_FALSE(compiler.has_error()) << compiler.error().message;
    compiler_ = std::move(compiler).value();
    stream_.emplace(Stream::create(*device_).value());
  }

  const Device& device() const { return *device_; }
  const Stream& stream() const { return *stream_; }

  static void ok(const Status& status) { ASSERT_FALSE(status.has_error()) << status.error().message; }

  // Compiled once for all tests of the program.
  const std::string& cubin_of(const jit::KernelSource& source) {
    if (!cubins().contains(source.name)) compile({source});
    return cubins()[source.name];
  }
  // Those that no test has had before, on all cores.
  void compile(const std::vector<jit::KernelSource>& sources) {
    std::vector<const jit::KernelSource*> missing;
    for (const jit::KernelSource& source : sources)
      if (cubins().try_emplace(source.name).second) missing.push_back(&source);
    std::vector<Result<jit::CompiledKernel>> kernels(missing.size(), invalid("not compiled"));
    const auto work = [&](int64_t begin, int64_t) {
      const auto i = static_cast<size_t>(begin);
      kernels[i] = compiler_->compile(*missing[i]);
    };
    on_all_cores(std::ssize(missing), work, 1);
    for (size_t i = 0; i < missing.size(); ++i) {
      EXPECT_FALSE(kernels[i].has_error()) << missing[i]->name << ": " << kernels[i].error().message;
      if (!kernels[i].has_error()) cubins()[missing[i]->name] = std::move(kernels[i]).value().cubin;
    }
  }

 private:
  static std::map<std::string, std::string>& cubins() {
    static std::map<std::string, std::string> all;  // by the kernel's name
    return all;
  }

  std::unique_ptr<Device> device_;
  std::unique_ptr<jit::Compiler> compiler_;
  std::optional<Stream> stream_;
};

}  // namespace plait::cuda::testing
