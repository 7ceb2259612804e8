// Farms whose builders are processes: one is killed in the middle of a compile.
#include <csignal>
#include <thread>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "jit/build_farm.h"
#include "tests/jit/children.h"
#include "tests/jit/compilers.h"
#include "tests/jit/farm_links.h"
#include "tests/jit/folder.h"

namespace plait::jit {
namespace {

using namespace std::chrono_literals;

constexpr int kKernels = 24;
constexpr int kNotBuilt = 10, kIncomplete = 11;

KernelManifest some_kernels() {
  KernelManifest manifest;
  for (int i = 0; i < kKernels; ++i) manifest.kernels.push_back({numbered_source(i), 0.02, {}});
  return manifest;
}

// One builder of several; `dies`: in its third compile, holding two locks.
int run_builder(SocketMesh& mesh, int builder, int builders, const std::filesystem::path& directory, bool dies,
                const std::filesystem::path& tally) {
  FakeCompiler compiler;
  compiler.tally = tally;
  compiler.while_compiling = [&] {
    std::this_thread::sleep_for(20ms);
    if (dies && compiler.compiles() >= 3) ::raise(SIGKILL);
  };
  const auto link = mesh.take(builder);
  KernelCache cache(patient_options(directory));
  const KernelManifest manifest = some_kernels();
  BuildFarm farm(cache, compiler, link.get(), {.cores = 2, .progress = {}});
  const auto report = farm.build(std::vector<std::vector<KernelManifest>>(static_cast<size_t>(builders), {manifest}));
  if (report.has_error()) return kNotBuilt;
  for (const ManifestEntry& entry : manifest.kernels) {
    const auto found = cache.find(entry.source, compiler.identity());
    if (!found || *found->kernel != expected_kernel(entry.source, compiler.identity())) return kIncomplete;
  }
  return kWell;
}

TEST(FarmProcesses, TheOthersFinishWhenABuilderIsKilled) {
  constexpr int kBuilders = 3;
  for (const bool shares_files : {true, false}) {
    const Folder folder;
    const auto directory_of = [&](int builder) {
      return folder.path() / (shares_files ? "kernels" : fmt::format("kernels-{}", builder));
    };
    const auto tally = folder.path() / "tally";
    const auto begin = std::chrono::steady_clock::now();
    SocketMesh mesh(kBuilders);
    Children children;
    for (int builder = 0; builder < kBuilders; ++builder)
      children.start(
          [&, builder] { return run_builder(mesh, builder, kBuilders, directory_of(builder), builder == 1, tally); });
    // The sockets of this process would keep the dead one's open.
    { SocketMesh closed(std::move(mesh)); }
    EXPECT_EQ(children.wait(0), kWell);
    EXPECT_EQ(children.wait(1), kKilled);
    EXPECT_EQ(children.wait(2), kWell);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    std::printf("one of 3 builders killed, %s: the others done after %.2f s, %zu compiles for %d kernels\n",
                shares_files ? "one directory" : "a directory each", seconds.count(), read_file(tally).size(),
                kKernels);
  }
}

// Servers side by side, or `plait compile` twice: nobody knows of the other, only the directory is shared.
TEST(FarmProcesses, StrangersShareADirectory) {
  const Folder folder;
  const auto tally = folder.path() / "tally";
  Children children;
  for (int i = 0; i < 2; ++i)
    children.start([&] {
      SocketMesh alone(1);
      return run_builder(alone, 0, 1, folder.path() / "kernels", false, tally);
    });
  EXPECT_TRUE(children.all_well());
  std::printf("two processes with the same %d kernels: %zu compiles\n", kKernels, read_file(tally).size());
  EXPECT_LT(read_file(tally).size(), static_cast<size_t>(2 * kKernels));
}

}  // namespace
}  // namespace plait::jit
