// The cache inside one process: what it answers, and what threads share.
#include "jit/cache.h"

#include <random>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "jit/cache_entry.h"
#include "tests/jit/compilers.h"
#include "tests/jit/folder.h"
#include "tests/support/effort.h"

namespace plait::jit {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

TEST(KernelCache, BuildsOnceThenRemembersThenReadsFromDisk) {
  const Folder folder;
  FakeCompiler compiler;
  const KernelSource source = numbered_source(1);
  for (const KernelOrigin first : {KernelOrigin::kBuiltHere, KernelOrigin::kDisk}) {
    KernelCache cache(patient_options(folder.path() / "not" / "there" / "yet"));
    for (const KernelOrigin expected : {first, KernelOrigin::kMemory}) {
      const auto kernel = cache.get_or_build(source, compiler);
      ASSERT_FALSE(kernel.has_error()) << kernel.error().message;
      EXPECT_EQ(kernel.value().origin, expected) << name_of(kernel.value().origin);
      EXPECT_EQ(*kernel.value().kernel, expected_kernel(source, compiler.identity()));
      EXPECT_GE(kernel.value().seconds, 0);
    }
  }
  EXPECT_EQ(compiler.compiles(), 1);
  EXPECT_THAT(names_in(folder.path() / "not/there/yet"), SizeIs(1)) << "a lock or a temporary file was left";
}

TEST(KernelCache, WithoutADirectoryItIsMemory) {
  FakeCompiler compiler;
  KernelCache cache(CacheOptions{});
  EXPECT_EQ(cache.get_or_build(numbered_source(1), compiler).value().origin, KernelOrigin::kBuiltHere);
  EXPECT_EQ(cache.get_or_build(numbered_source(1), compiler).value().origin, KernelOrigin::kMemory);
  EXPECT_FALSE(cache.find(numbered_source(2), compiler.identity()).has_value());
}

TEST(KernelCache, AnotherCompilerVersionIsNeitherUsedNorTouched) {
  const Folder folder;
  FakeCompiler old_compiler("1.0"), new_compiler("1.1");
  const KernelSource source = numbered_source(1);
  (void)KernelCache(patient_options(folder.path())).get_or_build(source, old_compiler);
  const auto names = names_in(folder.path());
  const std::string bytes = read_file(folder.path() / names.at(0));
  KernelCache cache(patient_options(folder.path()));
  EXPECT_EQ(cache.get_or_build(source, new_compiler).value().origin, KernelOrigin::kBuiltHere);
  EXPECT_THAT(names_in(folder.path()), SizeIs(2));
  EXPECT_EQ(read_file(folder.path() / names.at(0)), bytes);
  // Even under the right name it is not what was asked for.
  const std::string new_name = names_in(folder.path())[names_in(folder.path())[0] == names[0] ? 1 : 0];
  write_file(folder.path() / new_name, bytes);
  KernelCache third(patient_options(folder.path()));
  EXPECT_EQ(third.get_or_build(source, new_compiler).value().origin, KernelOrigin::kBuiltHere);
  EXPECT_EQ(third.counters().rejected, 1U);
}

TEST(KernelCache, AKernelThatDoesNotCompileIsAnErrorEachTime) {
  const Folder folder;
  FakeCompiler compiler;
  KernelSource source = numbered_source(1);
  source.text += " error";
  KernelCache cache(patient_options(folder.path()));
  for (int i = 1; i <= 2; ++i) {
    const auto kernel = cache.get_or_build(source, compiler);
    ASSERT_TRUE(kernel.has_error());
    EXPECT_THAT(kernel.error().message, HasSubstr("kernel 'kernel_1' does not compile: the log says so"));
    EXPECT_EQ(compiler.compiles(), i);
  }
  EXPECT_EQ(cache.counters().failed, 2U);
  EXPECT_THAT(names_in(folder.path()), IsEmpty());
  source = numbered_source(1);
  source.entry = "";
  EXPECT_TRUE(cache.get_or_build(source, compiler).has_error());
  EXPECT_EQ(compiler.compiles(), 2) << "an invalid source must not reach the compiler";
}

TEST(KernelCache, FindLooksAndAddPublishes) {
  const Folder folder;
  FakeCompiler compiler;
  const KernelSource source = numbered_source(1);
  const Digest key = kernel_key(source, compiler.identity());
  KernelCache cache(patient_options(folder.path()));
  EXPECT_FALSE(cache.find(source, compiler.identity()).has_value());
  // As another host sends it.
  const std::string sent = encode_entry(key, source, compiler.identity(), expected_kernel(source, compiler.identity()));
  EXPECT_FALSE(cache.add(source, compiler.identity(), decode_entry(sent, key).value()).has_error());
  EXPECT_EQ(cache.find(source, compiler.identity())->origin, KernelOrigin::kMemory);
  KernelCache another(patient_options(folder.path()));
  const auto found = another.find(source, compiler.identity());
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->origin, KernelOrigin::kDisk);
  EXPECT_EQ(*found->kernel, expected_kernel(source, compiler.identity()));
  EXPECT_EQ(another.get_or_build(source, compiler).value().origin, KernelOrigin::kMemory);
  EXPECT_EQ(compiler.compiles(), 0);
  KernelSource elsewhere = source;
  elsewhere.name = "../outside";
  EXPECT_TRUE(cache.add(elsewhere, compiler.identity(), *found->kernel).has_error());
}

TEST(KernelCache, ThreadsOnOneKeyShareABuildAndItsError) {
  const Folder folder;
  for (const bool fails : {false, true}) {
    constexpr int kThreads = 6;
    FakeCompiler compiler;
    KernelSource source = numbered_source(1);
    if (fails) source.text += " error";
    KernelCache cache(patient_options(folder.path()));
    // Compiling lasts until all the others have asked: the last of them is let in when it is about to.
    std::atomic<int> asking{0};
    compiler.while_compiling = [&] {
      const auto deadline = std::chrono::steady_clock::now() + kHang;
      while (asking < kThreads && std::chrono::steady_clock::now() < deadline)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    };
    std::vector<std::thread> threads;
    std::atomic<int> right{0};
    for (int i = 0; i < kThreads; ++i) {
      threads.emplace_back([&] {
        ++asking;
        const auto kernel = cache.get_or_build(source, compiler);
        if (fails ? kernel.has_error() && kernel.error().message.find("the log says so") != std::string::npos
                  : kernel.has_value() && *kernel.value().kernel == expected_kernel(source, compiler.identity()))
          ++right;
      });
    }
    for (auto& thread : threads) thread.join();
    EXPECT_EQ(right, kThreads);
    // One that came after a failure tries for itself.
    if (!fails) {
      EXPECT_EQ(compiler.compiles(), 1);
    }
  }
}

TEST(KernelCache, ManyThreadsManyKeysSeveralCaches) {
  const Folder folder;
  constexpr int kKeys = 12, kThreads = 4, kCaches = 2;
  FakeCompiler compiler;
  compiler.while_compiling = [] { std::this_thread::sleep_for(std::chrono::milliseconds(1)); };
  const auto rounds = static_cast<int>(repetitions(24));
  std::vector<std::unique_ptr<KernelCache>> caches;
  for (int i = 0; i < kCaches; ++i) caches.push_back(std::make_unique<KernelCache>(patient_options(folder.path())));
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      std::mt19937 random(static_cast<unsigned>(i));
      for (int round = 0; round < rounds * kKeys; ++round) {
        const KernelSource source = numbered_source(static_cast<int>(random() % kKeys));
        const auto kernel = caches[static_cast<size_t>(i % kCaches)]->get_or_build(source, compiler);
        if (kernel.has_error() || *kernel.value().kernel != expected_kernel(source, compiler.identity())) ++wrong;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(compiler.compiles(), kKeys);
  uint64_t answers = 0;
  for (const auto& cache : caches) {
    const CacheCounters c = cache->counters();
    answers += c.memory + c.disk + c.built_here + c.built_elsewhere;
  }
  EXPECT_EQ(answers, static_cast<uint64_t>(rounds * kKeys * kThreads));
  EXPECT_THAT(names_in(folder.path()), SizeIs(kKeys));
}

TEST(KernelCache, TheUsualDirectory) {
  const auto with = [](const char* cache, const char* home) {
    cache != nullptr ? ::setenv("XDG_CACHE_HOME", cache, 1) : ::unsetenv("XDG_CACHE_HOME");
    home != nullptr ? ::setenv("HOME", home, 1) : ::unsetenv("HOME");
    return default_cache_directory();
  };
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  const std::string kept_cache = cache != nullptr ? cache : "", kept_home = home != nullptr ? home : "";
  EXPECT_EQ(with("/var/cache/me", "/home/me"), "/var/cache/me/plait/kernels");
  EXPECT_EQ(with("relative", "/home/me"), "/home/me/.cache/plait/kernels");
  EXPECT_EQ(with(nullptr, "/home/me"), "/home/me/.cache/plait/kernels");
  EXPECT_EQ(with(nullptr, nullptr), "");
  with(cache != nullptr ? kept_cache.c_str() : nullptr, home != nullptr ? kept_home.c_str() : nullptr);
}

// Serving with everything that the manifest named: what is there is used, what is missing is built and counted.
TEST(KernelCache, CompilesThatNobodyExpectsAreDoneAndCounted) {
  const Folder folder;
  FakeCompiler compiler;
  {
    KernelCache earlier(patient_options(folder.path()));
    ASSERT_FALSE(earlier.get_or_build(numbered_source(1), compiler).has_error());
  }
  KernelCache cache(patient_options(folder.path()));
  ASSERT_FALSE(cache.get_or_build(numbered_source(2), compiler).has_error());
  EXPECT_EQ(cache.counters().unexpected, 0u);
  cache.expect_no_builds();
  ASSERT_FALSE(cache.get_or_build(numbered_source(1), compiler).has_error());
  ASSERT_FALSE(cache.get_or_build(numbered_source(2), compiler).has_error());
  EXPECT_EQ(cache.counters().unexpected, 0u);
  ASSERT_FALSE(cache.get_or_build(numbered_source(3), compiler).has_error());
  EXPECT_EQ(cache.counters().unexpected, 1u);
}

}  // namespace
}  // namespace plait::jit
