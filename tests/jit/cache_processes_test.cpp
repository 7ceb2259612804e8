// Several processes over one directory: who builds, who waits, who is killed, and who may not.
#include <csignal>
#include <random>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <thread>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

#include "jit/cache.h"
#include "jit/process_identity.h"
#include "tests/jit/children.h"
#include "tests/jit/compilers.h"
#include "tests/jit/folder.h"
#include "tests/support/effort.h"

namespace plait::jit {
namespace {

using std::chrono::milliseconds;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr uid_t kNobody = 65534;

// Statuses of children whose answer was not the right one.
constexpr int kWrongKernel = 10, kWrongOrigin = 11, kWrongWarnings = 12, kWrongFiles = 13;

int check(const Result<CachedKernel>& kernel, const KernelSource& source, const Compiler& compiler,
          std::optional<KernelOrigin> origin = std::nullopt) {
  if (kernel.has_error() || *kernel.value().kernel != expected_kernel(source, compiler.identity())) return kWrongKernel;
  return origin && kernel.value().origin != *origin ? kWrongOrigin : kWell;
}

void wait_for_file(const std::filesystem::path& file) {
  const auto deadline = std::chrono::steady_clock::now() + kHang;
  while (!std::filesystem::exists(file) && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(milliseconds(1));
}

class CacheProcesses : public ::testing::Test {
 protected:
  size_t compiles() const { return read_file(tally_).size(); }

  const Folder folder_;
  const std::filesystem::path directory_ = folder_.path() / "kernels", tally_ = folder_.path() / "tally",
                              mark_ = folder_.path() / "mark";
};

TEST_F(CacheProcesses, TwoOnOneKeyCompileOnce) {
  const auto rounds = static_cast<int>(repetitions(40));
  size_t waited = 0;
  for (int round = 0; round < rounds; ++round) {
    Children children;
    const KernelSource source = numbered_source(round);
    const auto mark = [&](const char* what, int i) { return folder_.path() / fmt::format("{}-{}-{}", what, round, i); };
    for (int i = 0; i < 2; ++i) {
      children.start([&, i] {
        FakeCompiler compiler;
        compiler.tally = tally_;
        // Lasts until the other one is about to ask, and a little longer.
        compiler.while_compiling = [&] {
          wait_for_file(mark("asks", 1 - i));
          std::this_thread::sleep_for(milliseconds(20));
        };
        KernelCache cache(patient_options(directory_));
        write_file(mark("asks", i), "");
        const auto kernel = cache.get_or_build(source, compiler);
        if (kernel.has_value() && kernel.value().origin == KernelOrigin::kBuiltElsewhere)
          write_file(mark("waited", i), "");
        return check(kernel, source, compiler);
      });
    }
    ASSERT_TRUE(children.all_well());
    ASSERT_EQ(compiles(), static_cast<size_t>(round) + 1);
    for (int i = 0; i < 2; ++i) waited += std::filesystem::exists(mark("waited", i)) ? 1 : 0;
  }
  EXPECT_GT(waited, 0U) << "no round had two at the same time";
  EXPECT_THAT(names_in(directory_), SizeIs(static_cast<size_t>(rounds)));
  std::printf("kernel cache: %d races of two processes, one compile each; one waited in %zu\n", rounds, waited);
}

TEST_F(CacheProcesses, ManyOnManyKeysCompileEachOnce) {
  constexpr int kProcesses = 6, kKeys = 30;
  const auto rounds = static_cast<int>(repetitions(3));
  for (int round = 0; round < rounds; ++round) {
    Children children;
    for (int i = 0; i < kProcesses; ++i) {
      children.start([&, i] {
        FakeCompiler compiler;
        compiler.tally = tally_;
        std::vector<int> order;
        for (int key = 0; key < kKeys; ++key) order.push_back(round * kKeys + key);
        std::shuffle(order.begin(), order.end(), std::mt19937(static_cast<unsigned>(round * kProcesses + i)));
        KernelCache cache(patient_options(directory_));
        for (const int key : order) {
          const KernelSource source = numbered_source(key, 5000);
          if (const int status = check(cache.get_or_build(source, compiler), source, compiler)) return status;
        }
        return kWell;
      });
    }
    ASSERT_TRUE(children.all_well());
  }
  EXPECT_EQ(compiles(), static_cast<size_t>(rounds * kKeys));
  EXPECT_THAT(names_in(directory_), SizeIs(static_cast<size_t>(rounds * kKeys))) << "locks or temporary files are left";
  std::printf("kernel cache: %d processes, %d keys, %zu compiles\n", kProcesses, rounds * kKeys, compiles());
}

TEST_F(CacheProcesses, AFailureIsAnErrorForTheBuilderAndTheWaiter) {
  Children children;
  KernelSource source = numbered_source(1);
  source.text += " error";
  for (int i = 0; i < 2; ++i) {
    children.start([&] {
      FakeCompiler compiler;
      compiler.while_compiling = [] { std::this_thread::sleep_for(milliseconds(30)); };
      KernelCache cache(patient_options(directory_));
      const auto kernel = cache.get_or_build(source, compiler);
      return kernel.has_error() &&
                     kernel.error().message.find("'kernel_1' does not compile: the log says") != std::string::npos
                 ? kWell
                 : kWrongKernel;
    });
  }
  EXPECT_TRUE(children.all_well());
  EXPECT_THAT(names_in(directory_), IsEmpty());
}

// Files whose renaming is the process's last deed.
class DeadlyRename : public CacheFiles {
 public:
  int rename(const std::filesystem::path&, const std::filesystem::path&) override {
    ::kill(getpid(), SIGKILL);
    return EIO;
  }
};

TEST_F(CacheProcesses, KilledBetweenCompilingAndRenaming) {
  const KernelSource source = numbered_source(1);
  EXPECT_EQ(in_child([&] {
              FakeCompiler compiler;
              CacheOptions options = patient_options(directory_);
              options.files = std::make_shared<DeadlyRename>();
              KernelCache cache(std::move(options));
              (void)cache.get_or_build(source, compiler);
              return kWell;
            }),
            kKilled);
  EXPECT_THAT(names_in(directory_, ".kernel"), IsEmpty());
  EXPECT_THAT(names_in(directory_), SizeIs(2)) << "its lock and its temporary file";
  // The next one does not wait for the dead, and cleans up after it.
  FakeCompiler compiler;
  KernelCache cache(patient_options(directory_));
  EXPECT_EQ(check(cache.get_or_build(source, compiler), source, compiler, KernelOrigin::kBuiltHere), kWell);
  EXPECT_THAT(names_in(directory_, ".kernel"), SizeIs(1));
  EXPECT_THAT(names_in(directory_), SizeIs(1));
}

TEST_F(CacheProcesses, KilledWhileOthersWaitForItsLock) {
  constexpr int kWaiters = 3;
  const KernelSource source = numbered_source(1);
  Children owner, waiters;
  owner.start([&] {
    FakeCompiler compiler;
    compiler.while_compiling = [&] {
      write_file(mark_, "");
      std::this_thread::sleep_for(2 * kHang);
    };
    KernelCache cache(patient_options(directory_));
    (void)cache.get_or_build(source, compiler);
    return kWell;
  });
  wait_for_file(mark_);
  for (int i = 0; i < kWaiters; ++i) {
    waiters.start([&] {
      FakeCompiler compiler;
      compiler.tally = tally_;
      KernelCache cache(patient_options(directory_));
      return check(cache.get_or_build(source, compiler), source, compiler);
    });
  }
  std::this_thread::sleep_for(milliseconds(50));
  EXPECT_EQ(compiles(), 0U) << "a waiter did not wait";
  // Not reaped until the others are done: a dead process whose number is still taken.
  owner.kill(0);
  EXPECT_TRUE(waiters.all_well())
      << "stale_after and wait_limit are longer than a child may take: only its death counts";
  EXPECT_GE(compiles(), 1U);
  EXPECT_EQ(owner.wait(0), kKilled);
  EXPECT_THAT(names_in(directory_), SizeIs(1));
}

// Kills one of several at moments of chance, many times: whatever is left, the next ones are right.
TEST_F(CacheProcesses, KilledAtAnyMoment) {
  const auto rounds = static_cast<int>(repetitions(40));
  std::mt19937 random(7);
  constexpr int kKeys = 4;
  const auto work = [&](int first) {
    FakeCompiler compiler;
    KernelCache cache(patient_options(directory_));
    for (int i = 0; i < kKeys; ++i) {
      const KernelSource source = numbered_source(first + i, 20000);
      if (const int status = check(cache.get_or_build(source, compiler), source, compiler)) return status;
    }
    return kWell;
  };
  int killed = 0;
  for (int round = 0; round < rounds; ++round) {
    Children children;
    const int victim = children.start([&] { return work(round * kKeys); });
    const int other = children.start([&] { return work(round * kKeys); });
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 20000));
    children.kill(victim);
    ASSERT_EQ(children.wait(other), kWell);
    killed += children.wait(victim) == kKilled ? 1 : 0;
  }
  EXPECT_EQ(in_child([&] {
              FakeCompiler compiler;
              KernelCache cache(patient_options(directory_));
              for (int i = 0; i < rounds * kKeys; ++i) {
                const KernelSource source = numbered_source(i, 20000);
                const auto kernel = cache.get_or_build(source, compiler);
                if (const int status = check(kernel, source, compiler, KernelOrigin::kDisk)) return status;
              }
              return kWell;
            }),
            kWell);
  std::printf("kernel cache: %d processes started, %d of them killed before their end\n", rounds, killed);
}

// A file system of 64 KiB of which this process alone knows.
bool mount_small_file_system(const std::filesystem::path& at) {
  std::filesystem::create_directories(at);
  if (::unshare(CLONE_NEWNS) != 0) return false;
  if (::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return false;
  return ::mount("none", at.c_str(), "tmpfs", 0, "size=64k") == 0;
}

int use_full_directory(const std::filesystem::path& directory, const std::function<void()>& make_room) {
  Warnings warnings;
  FakeCompiler compiler;
  CacheOptions options = patient_options(directory);
  options.warn = warnings.sink();
  KernelCache cache(options);
  for (int round = 0; round < 2; ++round) {
    for (int i = 0; i < 5; ++i) {
      KernelSource source = numbered_source(i);
      source.entry = std::string(100, 'e');
      if (const int status = check(cache.get_or_build(source, compiler), source, compiler)) return status;
    }
  }
  const auto size = warnings.all().size();
  if (size != 1 || cache.counters().unpublished != 5 || compiler.compiles() != 5) return kWrongWarnings;
  if (!names_in(directory, ".kernel").empty() || !names_in(directory, ".lock").empty()) return kWrongFiles;
  for (const std::string& name : names_in(directory))
    if (name.starts_with(".tmp-")) return kWrongFiles;
  make_room();
  const KernelSource late = numbered_source(100);
  (void)cache.get_or_build(late, compiler);
  KernelCache another(options);
  return check(another.get_or_build(late, compiler), late, compiler, KernelOrigin::kDisk);
}

TEST_F(CacheProcesses, AFullFileSystem) {
  const int status = in_child([&] {
    if (!mount_small_file_system(directory_)) return kNotPermitted;
    // To the last byte: files, then bytes.
    const auto filler = directory_ / "filler";
    std::ofstream(filler) << std::string(1 << 20, 'x');
    return use_full_directory(directory_, [&] { std::filesystem::remove(filler); });
  });
  if (status == kNotPermitted) GTEST_SKIP() << "SKIPPED: this user may not mount; AFileSizeLimit tries the same";
  EXPECT_EQ(status, kWell);
}

// Locks can be made, and entries cannot: the file is there before its bytes are refused.
TEST_F(CacheProcesses, AFileSizeLimit) {
  EXPECT_EQ(in_child([&] {
              ::signal(SIGXFSZ, SIG_IGN);
              rlimit old{};
              ::getrlimit(RLIMIT_FSIZE, &old);
              const rlimit small{200, old.rlim_max};
              ::setrlimit(RLIMIT_FSIZE, &small);
              return use_full_directory(directory_, [&] { ::setrlimit(RLIMIT_FSIZE, &old); });
            }),
            kWell);
}

// Two users; needs root to become the other.
bool become_nobody() {
  return ::setgroups(0, nullptr) == 0 && ::setresgid(kNobody, kNobody, kNobody) == 0 &&
         ::setresuid(kNobody, kNobody, kNobody) == 0;
}

class CacheUsers : public CacheProcesses {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "SKIPPED: only root can act as two users";
    ASSERT_EQ(::chmod(folder_.path().c_str(), 0755), 0);
  }
  // What the other user gets: kernel 1, and how many entries it rejects.
  static int ask_as_nobody(const std::filesystem::path& directory, KernelOrigin expected, uint64_t rejected) {
    return in_child([&] {
      if (!become_nobody()) return kNotPermitted;
      return ask(directory, expected, rejected);
    });
  }
  static int ask(const std::filesystem::path& directory, KernelOrigin expected, uint64_t rejected) {
    FakeCompiler compiler;
    CacheOptions options = patient_options(directory);
    options.warn = [](std::string_view) {};
    KernelCache cache(std::move(options));
    const KernelSource source = numbered_source(1);
    if (const int status = check(cache.get_or_build(source, compiler), source, compiler, expected)) return status;
    return cache.counters().rejected == rejected ? kWell : kWrongWarnings;
  }
};

TEST_F(CacheUsers, AnothersDirectoryIsReadAndNotWritten) {
  EXPECT_EQ(ask(directory_, KernelOrigin::kBuiltHere, 0), kWell);
  const auto before = names_in(directory_);
  EXPECT_EQ(in_child([&] {
              if (!become_nobody()) return kNotPermitted;
              FakeCompiler compiler;
              Warnings warnings;
              CacheOptions options = patient_options(directory_);
              options.warn = warnings.sink();
              KernelCache cache(std::move(options));
              for (int i = 1; i <= 3; ++i) {
                const KernelSource source = numbered_source(i);
                const auto origin = i == 1 ? KernelOrigin::kDisk : KernelOrigin::kBuiltHere;
                if (const int status = check(cache.get_or_build(source, compiler), source, compiler, origin))
                  return status;
              }
              return warnings.all().size() == 1 ? kWell : kWrongWarnings;
            }),
            kWell);
  EXPECT_EQ(names_in(directory_), before);
}

TEST_F(CacheUsers, EntriesFollowTheUmask) {
  EXPECT_EQ(in_child([&] {
              ::umask(077);
              return ask(directory_, KernelOrigin::kBuiltHere, 0);
            }),
            kWell);
  ASSERT_EQ(::chmod(directory_.c_str(), 0755), 0);
  struct stat status = {};
  ASSERT_EQ(::stat((directory_ / names_in(directory_).at(0)).c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600U);
  EXPECT_EQ(ask_as_nobody(directory_, KernelOrigin::kBuiltHere, 1), kWell) << "there, and not for it to read";
}

TEST_F(CacheUsers, InADirectoryForAnybodyOnlyOwnAndRootsEntriesCount) {
  // Like /tmp.
  std::filesystem::create_directories(directory_);
  ASSERT_EQ(::chmod(directory_.c_str(), 01777), 0);
  EXPECT_EQ(ask_as_nobody(directory_, KernelOrigin::kBuiltHere, 0), kWell);
  EXPECT_EQ(ask_as_nobody(directory_, KernelOrigin::kDisk, 0), kWell) << "its own";
  EXPECT_EQ(ask(directory_, KernelOrigin::kBuiltHere, 1), kWell) << "root uses what nobody wrote";
  EXPECT_EQ(ask(directory_, KernelOrigin::kDisk, 0), kWell) << "root has replaced it";
  EXPECT_EQ(ask_as_nobody(directory_, KernelOrigin::kDisk, 0), kWell) << "root's";
  // Where the owner of the directory alone may write, its entries count, whoever it is.
  const auto theirs = folder_.path() / "theirs";
  std::filesystem::create_directories(theirs);
  ASSERT_EQ(::chown(theirs.c_str(), kNobody, kNobody), 0);
  EXPECT_EQ(ask_as_nobody(theirs, KernelOrigin::kBuiltHere, 0), kWell);
  EXPECT_EQ(ask(theirs, KernelOrigin::kDisk, 0), kWell);
}

TEST_F(CacheUsers, AnEndedOwnersLockInAStickyDirectoryHoldsNobodyUp) {
  std::filesystem::create_directories(directory_);
  ASSERT_EQ(::chmod(directory_.c_str(), 01777), 0);
  const KernelSource source = numbered_source(1);
  const FakeCompiler compiler;
  ProcessIdentity dead = this_process();
  dead.start_ticks -= 1;
  const auto lock = directory_ / (source.name + "-" + to_hex(kernel_key(source, compiler.identity())) + ".lock");
  write_file(lock, to_token(dead) + " 1\nhost here, process 1\n");
  // Root's, so the other user can neither remove nor rename it, and has to build beside it.
  EXPECT_EQ(ask_as_nobody(directory_, KernelOrigin::kBuiltHere, 0), kWell);
  EXPECT_EQ(ask_as_nobody(directory_, KernelOrigin::kDisk, 0), kWell);
}

}  // namespace
}  // namespace plait::jit
