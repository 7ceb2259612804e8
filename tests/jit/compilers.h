// Compilers that tests can count, slow down and stop, and what the cache is tried with.
#pragma once

#include <chrono>
#include <filesystem>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "jit/cache.h"

namespace plait::jit {

// What a compiler gives for a source: depends on everything that the key does.
CompiledKernel expected_kernel(const KernelSource& source, const CompilerIdentity& compiler);

// "Compiles" by writing down what it was asked. A text that holds "error" does not compile.
class FakeCompiler : public Compiler {
 public:
  explicit FakeCompiler(std::string version = "1.0");

  const CompilerIdentity& identity() const override { return identity_; }
  Result<CompiledKernel> compile(const KernelSource& source) override;
  int compiles() const { return compiles_.load(); }

  // Every compile adds a byte to this file, so that several processes count together.
  std::filesystem::path tally;
  std::function<void()> while_compiling;

 private:
  const CompilerIdentity identity_;
  std::atomic<int> compiles_{0};
};

// Sources that differ by `number`; about `bytes` of text.
KernelSource numbered_source(int number, size_t bytes = 64);

// Collects what a cache warns of.
class Warnings {
 public:
  std::function<void(std::string_view)> sink();
  std::vector<std::string> all() const;

 private:
  mutable std::mutex mutex_;
  std::vector<std::string> texts_;
};

// Bounds that only tell a hang from slowness.
inline constexpr std::chrono::seconds kHang{60};

// For `directory`, with waits of a length that a loaded machine does not exceed by accident.
CacheOptions patient_options(const std::filesystem::path& directory);

}  // namespace plait::jit
