// NVRTC itself, without a GPU. Where there is no libnvrtc these tests are skipped, or fail if PLAIT_REQUIRE_NVRTC is
// set, as scripts/test does.
#include "jit/nvrtc.h"

#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "jit/build_farm.h"
#include "jit/cache.h"
#include "jit/cubin.h"
#include "jit/nvrtc_library.h"
#include "tests/jit/children.h"
#include "tests/jit/farm_links.h"
#include "tests/jit/folder.h"
#include "tests/jit/kernels.h"

namespace plait::jit {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

class NvrtcTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    const double begin = now_seconds();
    auto loaded = load_nvrtc();
    if (loaded.has_error()) {
      why_not_ = loaded.error().message;
      return;
    }
    compiler_ = std::move(loaded).value();
    std::printf("nvrtc: %s, loaded in %.3f s\n", compiler_->identity().version.c_str(), now_seconds() - begin);
  }
  static void TearDownTestSuite() { compiler_.reset(); }
  void SetUp() override {
    if (compiler_) return;
    ASSERT_EQ(std::getenv("PLAIT_REQUIRE_NVRTC"), nullptr) << why_not_;
    GTEST_SKIP() << "SKIPPED: " << why_not_;
  }

  static CompiledKernel compile(const KernelSource& source) {
    auto kernel = compiler_->compile(source);
    EXPECT_FALSE(kernel.has_error()) << kernel.error().message;
    return kernel.has_error() ? CompiledKernel() : std::move(kernel).value();
  }

  static inline std::unique_ptr<Compiler> compiler_;
  static inline std::string why_not_;
};

TEST_F(NvrtcTest, ItsIdentityHasTheWholeRelease) {
  EXPECT_EQ(compiler_->identity().name, "nvrtc");
  EXPECT_THAT(compiler_->identity().version, ::testing::MatchesRegex("[0-9]+\\.[0-9]+\\.[0-9]+"));
}

TEST_F(NvrtcTest, MakesMachineCodeForTheArchitecture) {
  for (const KernelSource& source : {scale_kernel(), wgmma_kernel()}) {
    const CompiledKernel kernel = compile(source);
    EXPECT_EQ(architecture_of_cubin(kernel.cubin), 90);
    EXPECT_EQ(functions_of_cubin(kernel.cubin), std::vector<std::string>{source.entry});
    // Cut anywhere, it is looked at without harm.
    for (size_t bytes = 0; bytes < kernel.cubin.size(); bytes += 7)
      (void)functions_of_cubin(std::string_view(kernel.cubin).substr(0, bytes));
    EXPECT_EQ(kernel.remarks, "");
    ASSERT_TRUE(kernel.resources.has_value());
    EXPECT_GT(kernel.resources->registers, 0);
    EXPECT_EQ(kernel.resources->spill_store_bytes, 0);
  }
  EXPECT_EQ(compile(wgmma_kernel()).resources->shared_bytes, 2 * 64 * 32);
}

TEST_F(NvrtcTest, ConstantsHaveTheirValuesAndTypes) {
  KernelSource source = scale_kernel();
  source.constants["kBig"] = int64_t{1} << 31;
  source.constants["kMin"] = std::numeric_limits<int64_t>::min();
  source.constants["kIntMin"] = std::numeric_limits<int>::min();
  source.text +=
      "static_assert(sizeof(kScale) == 4 && sizeof(kIntMin) == 4 && sizeof(kBig) == 8);\n"
      "static_assert(kBig == 2147483648u && kIntMin < -2147483647 && kMin < -9223372036854775807ll && kScale == 3);\n";
  compile(source);
}

TEST_F(NvrtcTest, TheSameSourceGivesTheSameBytes) {
  const CompiledKernel first = compile(wgmma_kernel());
  EXPECT_EQ(first, compile(wgmma_kernel()));
  KernelSource renamed = wgmma_kernel();
  renamed.name = "another_name";
  EXPECT_EQ(first, compile(renamed)) << "the name is no part of the key, so it must not be in the code";
  const Folder folder;
  const auto file = folder.path() / "cubin";
  ASSERT_EQ(in_child([&] {
              write_file(file, compile(wgmma_kernel()).cubin);
              return kWell;
            }),
            kWell);
  EXPECT_TRUE(read_file(file) == first.cubin) << "another process gives other bytes";
}

TEST_F(NvrtcTest, SpillsAreReported) {
  // Sixty-four numbers that are all needed at once, and thirty-two registers.
  KernelSource source = scale_kernel();
  source.text = R"cuda(
extern "C" __global__ void __launch_bounds__(1024, 2) scale(float* y, const float* x) {
  float v[64];
  for (int i = 0; i < 64; ++i) v[i] = x[i * 1024 + threadIdx.x];
  for (int round = 0; round < 64; ++round)
    for (int i = 0; i < 64; ++i) v[i] = v[i] * v[(i + 1) % 64] + kScale;
  for (int i = 0; i < 64; ++i) y[i * 1024 + threadIdx.x] = v[i];
}
)cuda";
  const CompiledKernel kernel = compile(source);
  ASSERT_TRUE(kernel.resources.has_value());
  EXPECT_LE(kernel.resources->registers, 32);
  EXPECT_GT(kernel.resources->spill_store_bytes, 0);
  EXPECT_GT(kernel.resources->spill_load_bytes, 0);
}

TEST_F(NvrtcTest, BrokenKernelsSayWhereAndWhy) {
  KernelSource source = scale_kernel();
  source.name = "scale_broken";
  source.text =
      "__device__ int unused_function_with_warning() { int a; return 0; }\n"
      "extern \"C\" __global__ void scale(float* y) { y[0] = undeclared; }\n";
  const auto wrong = compiler_->compile(source);
  ASSERT_TRUE(wrong.has_error());
  EXPECT_EQ(wrong.error().kind, ErrorKind::kInvalid);
  EXPECT_THAT(wrong.error().message, AllOf(HasSubstr("'scale_broken' does not compile for sm_90a"),
                                           HasSubstr("\nscale.cu(2): error: identifier \"undeclared\" is undefined")));

  // What only the assembler finds.
  source = scale_kernel();
  source.text = "extern \"C\" __global__ void scale(float* y) { asm(\"no.such.instruction;\"); }\n";
  EXPECT_THAT(compiler_->compile(source).error().message,
              AllOf(HasSubstr("'scale_128'"), HasSubstr("Not a name of any known instruction: 'no'")));

  // NVRTC compiles a text without that kernel well enough.
  source = scale_kernel();
  source.entry = "no_such_kernel";
  const auto missing = compiler_->compile(source);
  ASSERT_TRUE(missing.has_error());
  EXPECT_THAT(missing.error().message, AllOf(HasSubstr("'scale_128'"), HasSubstr("no_such_kernel")));
}

TEST_F(NvrtcTest, UnknownArchitecturesAndOptionsAreNamed) {
  KernelSource source = scale_kernel();
  source.architecture = "sm_20";
  const auto old = compiler_->compile(source);
  ASSERT_TRUE(old.has_error());
  EXPECT_EQ(old.error().kind, ErrorKind::kUnsupported);
  EXPECT_THAT(old.error().message,
              AllOf(HasSubstr("does not know sm_20"), HasSubstr("it knows sm_"), HasSubstr("sm_90")));
  source = scale_kernel();
  source.options = {"--no-such-option"};
  EXPECT_THAT(compiler_->compile(source).error().message, HasSubstr("--no-such-option"));
}

TEST_F(NvrtcTest, SeveralThreadsCompileAtOnce) {
  constexpr int kKernels = 8;
  std::vector<KernelSource> sources;
  for (int i = 0; i < kKernels; ++i) sources.push_back(wgmma_kernel(i + 1));
  std::vector<CompiledKernel> alone(kKernels), together(kKernels);
  const auto compile_share = [&](std::vector<CompiledKernel>& kernels, int first, int step) {
    for (int i = first; i < kKernels; i += step)
      kernels[static_cast<size_t>(i)] = compile(sources[static_cast<size_t>(i)]);
  };
  const double begin = now_seconds();
  compile_share(alone, 0, 1);
  const double one_thread = now_seconds() - begin;
  std::thread other(compile_share, std::ref(together), 1, 2);
  compile_share(together, 0, 2);
  other.join();
  const double two_threads = now_seconds() - begin - one_thread;
  EXPECT_EQ(alone, together);
  std::printf("nvrtc: %d kernels, %.3f s each; two threads are %.2f times as fast as one\n", kKernels,
              one_thread / kKernels, one_thread / two_threads);
}

TEST_F(NvrtcTest, ThroughTheCache) {
  const Folder folder;
  CacheOptions options;
  options.directory = folder.path() / "kernels";
  double cold = 0, warm = 0;
  for (const KernelOrigin expected : {KernelOrigin::kBuiltHere, KernelOrigin::kDisk}) {
    KernelCache cache(options);
    for (int i = 1; i <= 4; ++i) {
      const auto kernel = cache.get_or_build(wgmma_kernel(i), *compiler_);
      ASSERT_FALSE(kernel.has_error()) << kernel.error().message;
      EXPECT_EQ(kernel.value().origin, expected);
      (expected == KernelOrigin::kDisk ? warm : cold) += kernel.value().seconds;
    }
  }
  std::printf("nvrtc through the cache: %.3f s a kernel cold, %.4f s from disk\n", cold / 4, warm / 4);
}

TEST(NvrtcLibrary, WhatWasGivenIsMeant) {
  const Folder folder;
  const auto missing = load_nvrtc(folder.path());
  ASSERT_TRUE(missing.has_error());
  EXPECT_EQ(missing.error().kind, ErrorKind::kNotFound);
  EXPECT_THAT(missing.error().message,
              AllOf(HasSubstr((folder.path() / "libnvrtc.so.13").string()),
                    HasSubstr((folder.path() / "nvidia/cu13/lib/libnvrtc.so.13").string()),
                    HasSubstr("pip install nvidia-cuda-nvrtc"), Not(HasSubstr("/usr/local/cuda"))));
  const auto text_file = folder.path() / "libnvrtc.so.12";
  write_file(text_file, "no library");
  EXPECT_THAT(load_nvrtc(text_file).error().message, AllOf(HasSubstr(text_file.string()), HasSubstr("too short")));
  const auto another = load_nvrtc("libm.so.6");
  ASSERT_TRUE(another.has_error());
  EXPECT_EQ(another.error().kind, ErrorKind::kUnsupported);
  EXPECT_THAT(another.error().message, HasSubstr("libm.so.6 has no function nvrtcVersion"));
}

// Two stages on two hosts of one core each: real compiles, whose costs only a compile can tell.
TEST_F(NvrtcTest, AFarmTakesItsWorkThroughAllCores) {
  std::vector<std::vector<KernelManifest>> manifests(2);
  double work = 0;
  for (int host = 0; host < 2; ++host) {
    KernelManifest manifest;
    for (int i = 0; i < (host == 0 ? 2 : 6); ++i) {
      KernelSource source = wgmma_kernel(2 + 10 * host + i);
      const double begin = now_seconds();
      compile(source);
      manifest.kernels.push_back({source, now_seconds() - begin, {}});
      work += manifest.kernels.back().compile_seconds;
    }
    manifests[static_cast<size_t>(host)].push_back(manifest);
  }
  MemoryHub hub(2);
  std::vector<std::thread> threads;
  std::vector<FarmReport> reports(2);
  const double begin = now_seconds();
  for (int host = 0; host < 2; ++host)
    threads.emplace_back([&, host] {
      const auto link = hub.link(host);
      KernelCache cache({});
      BuildFarm farm(cache, *compiler_, link.get(), {.cores = 1, .progress = {}});
      auto report = farm.build(manifests);
      ASSERT_FALSE(report.has_error()) << report.error().message;
      reports[static_cast<size_t>(host)] = std::move(report).value();
      for (const ManifestEntry& entry : manifests[static_cast<size_t>(host)].front().kernels)
        EXPECT_TRUE(cache.find(entry.source, compiler_->identity())) << entry.source.name;
    });
  for (std::thread& thread : threads) thread.join();
  const double seconds = now_seconds() - begin;
  std::printf(
      "8 kernels of two unequal stages, NVRTC, 2 hosts of one core: %.3f s; work / cores %.3f s, ratio %.2f; "
      "built %llu and %llu\n",
      seconds, work / 2, seconds / (work / 2), static_cast<unsigned long long>(reports[0].built),
      static_cast<unsigned long long>(reports[1].built));
  EXPECT_GE(reports[0].built, 3u) << "the host with few kernels did not take some of the other one's";
}

TEST(NvrtcLibrary, TheUsualPlacesInTheirOrder) {
  const char* named = std::getenv("PLAIT_NVRTC");
  const std::string kept = named != nullptr ? named : "";
  ::unsetenv("PLAIT_NVRTC");
  std::string places;
  for (const auto& file : nvrtc_candidates({})) places += file.string() + "\n";
  const Folder folder;
  ::setenv("PLAIT_NVRTC", folder.path().c_str(), 1);
  const auto by_variable = nvrtc_candidates({});
  kept.empty() ? ::unsetenv("PLAIT_NVRTC") : ::setenv("PLAIT_NVRTC", kept.c_str(), 1);

  size_t after = 0;
  for (const char* place : {"libnvrtc.so.13\n", "libnvrtc.so.12\n", "/lib/libnvrtc.so.13\n",
                            "/usr/local/cuda/lib64/libnvrtc.so.13\n", "/usr/local/cuda/lib64/libnvrtc.so.12\n"}) {
    const size_t at = places.find(place, after);
    ASSERT_NE(at, places.npos) << place << "is not after the ones before it in\n" << places;
    after = at;
  }
  EXPECT_EQ(by_variable.front(), folder.path() / "libnvrtc.so.13");
  EXPECT_THAT(by_variable, ::testing::Each(::testing::ResultOf([](auto& file) { return file.string(); },
                                                               ::testing::StartsWith(folder.path().string()))));
}

}  // namespace
}  // namespace plait::jit
