#include "jit/cache_entry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/jit/compilers.h"
#include "tests/jit/folder.h"
#include "tests/support/effort.h"

namespace plait::jit {
namespace {

using ::testing::HasSubstr;

struct SmallEntry {
  FakeCompiler compiler;
  KernelSource source = numbered_source(1, 0);
  Digest key = kernel_key(source, compiler.identity());
  CompiledKernel kernel = expected_kernel(source, compiler.identity());
  std::string bytes = encode_entry(key, source, compiler.identity(), kernel);
};

TEST(CacheEntry, ComesBackAsItWas) {
  SmallEntry entry;
  EXPECT_EQ(decode_entry(entry.bytes, entry.key).value(), entry.kernel);
  entry.kernel.resources.reset();
  entry.kernel.cubin = std::string("\0\xff\n", 3);
  entry.bytes = encode_entry(entry.key, entry.source, entry.compiler.identity(), entry.kernel);
  EXPECT_EQ(decode_entry(entry.bytes, entry.key).value(), entry.kernel);
}

TEST(CacheEntry, EveryChangedByteIsFound) {
  const SmallEntry entry;
  size_t tried = 0;
  const int step = kSanitized ? 15 : 1;
  for (size_t i = 0; i < entry.bytes.size(); ++i) {
    for (int change = 1; change < 256; change += step, ++tried) {
      std::string damaged = entry.bytes;
      damaged[i] = static_cast<char>(damaged[i] ^ change);
      ASSERT_TRUE(decode_entry(damaged, entry.key).has_error()) << "byte " << i << " changed by " << change;
    }
  }
  std::printf("cache entry: %zu changes of a byte, %zu bytes\n", tried, entry.bytes.size());
}

TEST(CacheEntry, EveryOtherLengthIsFound) {
  const SmallEntry entry;
  for (size_t bytes = 0; bytes < entry.bytes.size(); ++bytes)
    ASSERT_TRUE(decode_entry(entry.bytes.substr(0, bytes), entry.key).has_error()) << bytes << " bytes";
  EXPECT_TRUE(decode_entry(entry.bytes + '\0', entry.key).has_error());
  EXPECT_TRUE(decode_entry(entry.bytes + entry.bytes, entry.key).has_error());
}

TEST(CacheEntry, AnotherKeysEntryIsRefused) {
  const SmallEntry entry;
  Digest other = entry.key;
  other[31] ^= 1;
  EXPECT_THAT(decode_entry(entry.bytes, other).error().message, HasSubstr("another key"));
}

// The same through a cache: what is damaged is built again, and put right on disk.
TEST(CacheEntry, DamagedFilesAreBuiltAgain) {
  const Folder folder;
  SmallEntry entry;
  entry.compiler.tally = folder.path() / "tally";
  const auto directory = folder.path() / "kernels";
  const auto ask = [&](KernelOrigin expected, uint64_t rejected) {
    Warnings warnings;
    CacheOptions options = patient_options(directory);
    options.warn = warnings.sink();
    KernelCache cache(std::move(options));
    const auto got = cache.get_or_build(entry.source, entry.compiler);
    ASSERT_FALSE(got.has_error()) << got.error().message;
    ASSERT_EQ(got.value().origin, expected);
    ASSERT_EQ(*got.value().kernel, entry.kernel);
    ASSERT_EQ(cache.counters().rejected, rejected);
    ASSERT_EQ(warnings.all().size(), rejected);
  };
  ask(KernelOrigin::kBuiltHere, 0);
  const auto names = names_in(directory);
  ASSERT_EQ(names.size(), 1U);
  EXPECT_THAT(names[0], ::testing::StartsWith("kernel_1-"));
  EXPECT_THAT(names[0], ::testing::EndsWith(".kernel"));
  const auto file = directory / names[0];
  ASSERT_EQ(read_file(file), entry.bytes);

  size_t tried = 0;
  const size_t step = kSanitized ? 8 : 1;
  for (size_t i = 0; i < entry.bytes.size(); i += step, ++tried) {
    std::string damaged = entry.bytes;
    damaged[i] = static_cast<char>(damaged[i] ^ (1 << (i % 8)));
    write_file(file, damaged);
    ASSERT_NO_FATAL_FAILURE(ask(KernelOrigin::kBuiltHere, 1)) << "byte " << i;
    ASSERT_EQ(read_file(file), entry.bytes);
  }
  for (size_t bytes = 0; bytes < entry.bytes.size(); bytes += step, ++tried) {
    write_file(file, entry.bytes.substr(0, bytes));
    ASSERT_NO_FATAL_FAILURE(ask(KernelOrigin::kBuiltHere, 1)) << bytes << " bytes";
    ASSERT_EQ(read_file(file), entry.bytes);
  }
  ask(KernelOrigin::kDisk, 0);
  EXPECT_EQ(read_file(entry.compiler.tally).size(), tried + 1);
  EXPECT_EQ(names_in(directory), names);
  std::printf("kernel cache: %zu damaged files, all built again\n", tried);
}

}  // namespace
}  // namespace plait::jit
