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
    static std::map<std::string, std::string> cubins;
    std::string& cubin = cubins[source.name];
    if (!cubin.empty()) return cubin;
    auto kernel = compiler_->compile(source);
    EXPECT_FALSE(kernel.has_error()) << kernel.error().message;
    return cubin = kernel.value().cubin;
  }

  template <typename T>
  DeviceBuffer on_device(const std::vector<T>& values) {
    auto buffer = DeviceBuffer::allocate(*device_, values.size() * sizeof(T));
    EXPECT_FALSE(buffer.has_error()) << buffer.error().message;
    ok(buffer.value().write(values.data(), values.size() * sizeof(T), *stream_));
    ok(stream_->wait());
    return std::move(buffer).value();
  }

 private:
  std::unique_ptr<Device> device_;
  std::unique_ptr<jit::Compiler> compiler_;
  std::optional<Stream> stream_;
};

}  // namespace plait::cuda::testing
