// Compiles every kernel of the documented layouts, without a GPU: how many, how long, and what each takes of a
// multiprocessor. Where there is no libnvrtc these tests are skipped, or fail if PLAIT_REQUIRE_NVRTC is set, as
// scripts/test does.
#include <chrono>
#include <map>
#include <mutex>
#include <thread>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <time.h>

#include "engine/kernel_manifest.h"
#include "jit/nvrtc.h"
#include "tests/engine/manifest_layouts.h"
#include "tests/support/effort.h"

namespace plait {
namespace {

constexpr int kThreads = 2;
constexpr int kMostRegisters = 255;  // of a thread

// Of the calling thread: on a machine that others use too, what a compile costs and not how long it waited.
double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

struct Compiled {
  const jit::ManifestEntry* entry = nullptr;
  double seconds = 0;  // of processor time
  Result<jit::CompiledKernel> kernel = invalid("not compiled");
};

// Each once, on kThreads threads.
std::map<Digest, Compiled> compile_all(jit::Compiler& compiler, const std::vector<jit::KernelManifest>& manifests) {
  std::map<Digest, Compiled> all;
  for (const jit::KernelManifest& manifest : manifests)
    for (const jit::ManifestEntry& entry : manifest.kernels)
      all.try_emplace(kernel_key(entry.source, compiler.identity())).first->second.entry = &entry;
  // Under a sanitizer a few of each kind are enough.
  size_t index = 0;
  std::erase_if(all, [&](const auto&) { return kSanitized && index++ % 16 != 0; });

  std::mutex mutex;
  auto next = all.begin();
  const auto work = [&] {
    for (;;) {
      Compiled* mine = nullptr;
      {
        const std::lock_guard lock(mutex);
        if (next == all.end()) return;
        mine = &next++->second;
      }
      const double begin = cpu_seconds();
      mine->kernel = compiler.compile(mine->entry->source);
      mine->seconds = cpu_seconds() - begin;
    }
  };
  std::vector<std::jthread> threads;
  for (int i = 0; i < kThreads; ++i) threads.emplace_back(work);
  threads.clear();
  return all;
}

// What is said of some kernels in a line of the report.
struct Summary {
  int64_t kernels = 0;
  double expected_seconds = 0, seconds = 0, slowest_seconds = 0;
  std::string slowest;
  int registers = 0;
  int64_t shared_bytes = 0;
  int64_t spill_bytes = 0;

  void add(const Compiled& compiled) {
    const jit::KernelSource& source = compiled.entry->source;
    ++kernels;
    expected_seconds += compiled.entry->compile_seconds;
    seconds += compiled.seconds;
    if (compiled.seconds > slowest_seconds) slowest = source.name;
    slowest_seconds = std::max(slowest_seconds, compiled.seconds);
    const jit::KernelResources& resources = *compiled.kernel->resources;
    registers = std::max(registers, static_cast<int>(resources.registers));
    const auto dynamic = source.constants.find("SHARED_BYTES");
    shared_bytes =
        std::max(shared_bytes, resources.shared_bytes + (dynamic == source.constants.end() ? 0 : dynamic->second));
    spill_bytes += resources.spill_store_bytes + resources.spill_load_bytes + resources.stack_bytes;
  }
  std::string text() const {
    return fmt::format(
        "{} kernels, {:.1f} s of one core ({:.1f} s expected), {:.3f} s each, slowest {} {:.3f} s; up to {} "
        "registers and {} KB of shared memory, {} bytes spilled",
        kernels, seconds, expected_seconds, seconds / static_cast<double>(kernels), slowest, slowest_seconds, registers,
        shared_bytes / 1024, spill_bytes);
  }
};

// "fp8_gemm_dense" of "fp8_gemm_dense_n7168_..."
std::string kind_of(const jit::KernelSource& source) {
  const size_t sizes = std::min(source.name.find("_n"), source.name.find("_k"));
  const size_t narrow = source.name.find("_narrow");
  return source.name.substr(0, narrow == std::string::npos ? sizes : narrow + 7);
}

TEST(ManifestKernels, CompileWithoutSpills) {
  auto compiler = jit::load_nvrtc();
  if (compiler.has_error()) {
    ASSERT_EQ(std::getenv("PLAIT_REQUIRE_NVRTC"), nullptr) << compiler.error().message;
    GTEST_SKIP() << "SKIPPED: " << compiler.error().message;
  }
  const cuda::DeviceModel device = *cuda::find_device("h200");
  std::vector<jit::KernelManifest> manifests;
  for (const testing::ManifestLayout& layout : testing::manifest_layouts()) {
    const auto ranks = kernels_of_ranks(layout.config, {.parallel = layout.parallel, .device = device});
    ASSERT_FALSE(ranks.has_error()) << ranks.error().message;
    manifests.push_back(merge_manifests(*ranks));
  }
  const auto begin = std::chrono::steady_clock::now();
  const std::map<Digest, Compiled> all = compile_all(**compiler, manifests);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;

  Summary everything;
  std::map<std::string, Summary> kinds;
  for (const auto& [key, compiled] : all) {
    SCOPED_TRACE(compiled.entry->source.name);
    ASSERT_FALSE(compiled.kernel.has_error()) << compiled.kernel.error().message;
    ASSERT_TRUE(compiled.kernel->resources.has_value());
    const jit::KernelResources& resources = *compiled.kernel->resources;
    EXPECT_EQ(resources.spill_store_bytes, 0);
    EXPECT_EQ(resources.spill_load_bytes, 0);
    EXPECT_EQ(resources.stack_bytes, 0);
    EXPECT_LT(resources.registers, kMostRegisters) << "as many as there are: on the brink of spilling";
    EXPECT_EQ(compiled.kernel->remarks, "");
    everything.add(compiled);
    kinds[kind_of(compiled.entry->source)].add(compiled);
  }
  EXPECT_LE(everything.shared_bytes, device.shared_bytes_per_block);
  for (const auto& [kind, summary] : kinds) fmt::print("{:<28} {}\n", kind, summary.text());
  size_t listed = 0;
  for (size_t i = 0; i < manifests.size(); ++i) {
    listed += manifests[i].kernels.size();
    Summary summary;
    for (const jit::ManifestEntry& entry : manifests[i].kernels)
      if (const auto found = all.find(kernel_key(entry.source, (*compiler)->identity())); found != all.end())
        summary.add(found->second);
    fmt::print("{:<28} {}\n", testing::manifest_layouts()[i].name, summary.text());
  }
  fmt::print("{:<28} {}; of {} in the lists of all models, equal ones compiled once; {:.1f} s on {} threads\n",
             kSanitized ? "some of them" : "all of them", everything.text(), listed, took.count(), kThreads);
}

}  // namespace
}  // namespace plait
