#include "tests/jit/compilers.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include "base/sha256.h"

namespace plait::jit {

CompiledKernel expected_kernel(const KernelSource& source, const CompilerIdentity& compiler) {
  CompiledKernel kernel;
  kernel.cubin = "machine code " + to_hex(kernel_key(source, compiler));
  kernel.resources = KernelResources{.registers = 40, .shared_bytes = static_cast<int32_t>(source.text.size())};
  kernel.remarks = "of " + source.entry;
  return kernel;
}

FakeCompiler::FakeCompiler(std::string version) : identity_{"fake", std::move(version)} {}

Result<CompiledKernel> FakeCompiler::compile(const KernelSource& source) {
  ++compiles_;
  if (!tally.empty()) {
    const int fd = ::open(tally.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fd < 0 || ::write(fd, "x", 1) != 1) return io_error(tally.string(), errno);
    ::close(fd);
  }
  if (while_compiling) while_compiling();
  if (source.text.find("error") != source.text.npos)
    return invalid("kernel '" + source.name + "' does not compile: the log says so");
  return expected_kernel(source, identity_);
}

KernelSource numbered_source(int number, size_t bytes) {
  KernelSource source;
  source.name = fmt::format("kernel_{}", number);
  source.text = std::string(bytes, ' ') + "body";
  source.entry = "body";
  source.constants = {{"kNumber", number}};
  return source;
}

std::function<void(std::string_view)> Warnings::sink() {
  return [this](std::string_view text) {
    const std::scoped_lock lock(mutex_);
    texts_.emplace_back(text);
  };
}

std::vector<std::string> Warnings::all() const {
  const std::scoped_lock lock(mutex_);
  return texts_;
}

CacheOptions patient_options(const std::filesystem::path& directory) {
  CacheOptions options;
  options.directory = directory;
  options.wait_limit = 2 * kHang;
  options.stale_after = 2 * kHang;
  options.refresh_interval = std::chrono::milliseconds(50);
  options.poll_interval = std::chrono::milliseconds(2);
  return options;
}

}  // namespace plait::jit
