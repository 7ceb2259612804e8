// A directory that goes wrong, inside one process: what file systems refuse, what others put there, locks of the dead.
#include <cerrno>
#include <map>
#include <mutex>
#include <sys/stat.h>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "jit/cache.h"
#include "jit/process_identity.h"
#include "tests/jit/children.h"
#include "tests/jit/compilers.h"
#include "tests/jit/folder.h"

namespace plait::jit {
namespace {

using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// The real files, but for operations that are told to fail, and for the clock of the file server.
class FaultyFiles : public CacheFiles {
 public:
  enum Operation { kMakeDirectory, kRead, kCreate, kLink, kRename, kSync };

  // The next `times` of `operation` on names that end with `suffix` fail with `problem`.
  void fail(Operation operation, int problem, int times = 1'000'000, std::string suffix = "") {
    faults_[operation] = {problem, times, std::move(suffix)};
  }
  void heal() { faults_.clear(); }
  int64_t server_ahead_s = 0;  // of this host's clock
  int64_t clock_step_s = 0;    // times are rounded down to its multiples

  int make_directory(const std::filesystem::path& directory) override {
    return unless_failing(kMakeDirectory, directory, [&] { return CacheFiles::make_directory(directory); });
  }
  int read(const std::filesystem::path& file, size_t max_bytes, FileContents& contents) override {
    const int problem = unless_failing(kRead, file, [&] { return CacheFiles::read(file, max_bytes, contents); });
    contents.status.st_mtim.tv_sec += server_ahead_s;
    if (clock_step_s != 0) {
      contents.status.st_mtim.tv_sec -= contents.status.st_mtim.tv_sec % clock_step_s;
      contents.status.st_mtim.tv_nsec = 0;
    }
    return problem;
  }
  int create(const std::filesystem::path& file, std::string_view bytes, Durability durability) override {
    return unless_failing(kCreate, file, [&] { return CacheFiles::create(file, bytes, durability); });
  }
  int link(const std::filesystem::path& file, const std::filesystem::path& name) override {
    return unless_failing(kLink, name, [&] { return CacheFiles::link(file, name); });
  }
  int rename(const std::filesystem::path& from, const std::filesystem::path& to) override {
    return unless_failing(kRename, to, [&] { return CacheFiles::rename(from, to); });
  }
  int sync_directory(const std::filesystem::path& directory) override {
    return unless_failing(kSync, directory, [&] { return CacheFiles::sync_directory(directory); });
  }

 private:
  struct Fault {
    int problem = 0, times = 0;
    std::string suffix;
  };
  int fault_of(Operation operation, const std::filesystem::path& file) {
    const std::scoped_lock lock(mutex_);
    const auto at = faults_.find(operation);
    if (at == faults_.end() || at->second.times <= 0 || !file.string().ends_with(at->second.suffix)) return 0;
    --at->second.times;
    return at->second.problem;
  }
  template <typename Real>
  int unless_failing(Operation operation, const std::filesystem::path& file, Real&& real) {
    const int problem = fault_of(operation, file);
    return problem != 0 ? problem : real();
  }

  std::mutex mutex_;
  std::map<Operation, Fault> faults_;
};

class CacheFaults : public ::testing::Test {
 protected:
  // A fresh cache, as of another process, over the same directory.
  std::unique_ptr<KernelCache> open() {
    CacheOptions options = patient_options(directory_);
    options.files = files_;
    options.warn = warnings_.sink();
    options.wait_limit = wait_limit_;
    options.stale_after = stale_after_;
    return std::make_unique<KernelCache>(std::move(options));
  }
  // The kernel is right wherever it comes from; returns from where.
  KernelOrigin ask(KernelCache& cache, int number = 1) {
    const KernelSource source = numbered_source(number);
    const auto kernel = cache.get_or_build(source, compiler_);
    EXPECT_FALSE(kernel.has_error()) << kernel.error().message;
    if (kernel.has_error()) return KernelOrigin::kMemory;
    EXPECT_EQ(*kernel.value().kernel, expected_kernel(source, compiler_.identity()));
    return kernel.value().origin;
  }
  std::filesystem::path path_of(const char* suffix, int number = 1) const {
    const KernelSource source = numbered_source(number);
    return directory_ / (source.name + "-" + to_hex(kernel_key(source, compiler_.identity())) + suffix);
  }
  std::filesystem::path entry(int number = 1) const { return path_of(".kernel", number); }
  // A lock as `owner` writes it, last refreshed `age` ago.
  void plant_lock(const std::string& text, std::chrono::seconds age) {
    std::filesystem::create_directories(directory_);
    write_file(path_of(".lock"), text);
    std::filesystem::last_write_time(path_of(".lock"), std::filesystem::file_time_type::clock::now() - age);
  }
  static std::string lock_of(const ProcessIdentity& owner) {
    return to_token(owner) + " 1\nhost " + owner.host + ", process " + std::to_string(owner.pid) + "\n";
  }
  static ProcessIdentity remote_owner() { return {"far-away", "fedcba9876543210", 4711, 12345}; }

  const Folder folder_;
  const std::filesystem::path directory_ = folder_.path() / "kernels";
  const std::shared_ptr<FaultyFiles> files_ = std::make_shared<FaultyFiles>();
  FakeCompiler compiler_;
  Warnings warnings_;
  milliseconds wait_limit_ = 2 * kHang, stale_after_ = 2 * kHang;
};

struct WriteFault {
  const char* name;
  FaultyFiles::Operation operation;
  int problem;
  const char* advice;
};

// Nothing can be written: kernels are built, kept in memory, and one sentence says so.
TEST_F(CacheFaults, WithoutWritingKernelsStayInMemory) {
  const WriteFault cases[] = {
      {"mounted read-only", FaultyFiles::kCreate, EROFS, "mount it writable"},
      {"another user's", FaultyFiles::kCreate, EACCES, "the right to write"},
      {"full", FaultyFiles::kCreate, ENOSPC, "make room"},
      {"over quota", FaultyFiles::kCreate, EDQUOT, "make room"},
      {"input/output error", FaultyFiles::kCreate, EIO, "see to its file system"},
      {"stale for ever", FaultyFiles::kCreate, ESTALE, "see to its file system"},
      {"refuses to rename", FaultyFiles::kRename, EACCES, "the right to write"},
  };
  ask(*open(), 0);  // something to read
  for (const WriteFault& c : cases) {
    SCOPED_TRACE(c.name);
    const size_t warned_before = warnings_.all().size();
    files_->fail(c.operation, c.problem);
    const auto cache = open();
    EXPECT_EQ(ask(*cache, 0), KernelOrigin::kDisk);
    for (int number = 1; number <= 3; ++number) {
      EXPECT_EQ(ask(*cache, number), KernelOrigin::kBuiltHere);
      EXPECT_EQ(ask(*cache, number), KernelOrigin::kMemory);
    }
    EXPECT_EQ(cache->counters().unpublished, 3U);
    const auto all = warnings_.all();
    ASSERT_EQ(all.size(), warned_before + 1) << "to be said once";
    EXPECT_THAT(all.back(), AllOf(HasSubstr(directory_.string()), HasSubstr("stay in memory"), HasSubstr(c.advice)));
    files_->heal();
    EXPECT_THAT(names_in(directory_), SizeIs(1)) << "something was left behind";
    // When it can be written again, it is.
    EXPECT_EQ(ask(*cache, 4), KernelOrigin::kBuiltHere);
    EXPECT_TRUE(std::filesystem::remove(entry(4)));
  }
}

TEST_F(CacheFaults, ADirectoryThatCannotBeMadeIsMemory) {
  write_file(directory_, "a file where the directory should be");
  const auto cache = open();
  EXPECT_EQ(ask(*cache), KernelOrigin::kBuiltHere);
  EXPECT_EQ(ask(*cache), KernelOrigin::kMemory);
  EXPECT_THAT(warnings_.all(), SizeIs(1));
}

TEST_F(CacheFaults, ADirectoryThatIsDeletedIsMadeAgain) {
  const auto cache = open();
  ask(*cache, 1);
  std::filesystem::remove_all(directory_);
  EXPECT_EQ(ask(*cache, 1), KernelOrigin::kMemory);
  EXPECT_EQ(ask(*cache, 2), KernelOrigin::kBuiltHere);
  EXPECT_TRUE(std::filesystem::exists(entry(2)));
  // Also between the lock and the entry.
  compiler_.while_compiling = [this] { std::filesystem::remove_all(directory_); };
  EXPECT_EQ(ask(*cache, 3), KernelOrigin::kBuiltHere);
  EXPECT_EQ(names_in(directory_), std::vector<std::string>{entry(3).filename().string()});
  EXPECT_THAT(warnings_.all(), IsEmpty());
}

// What network file systems do differently.
TEST_F(CacheFaults, StaleHandlesAreTriedAgain) {
  ask(*open());
  for (const auto operation : {FaultyFiles::kRead, FaultyFiles::kCreate, FaultyFiles::kRename}) {
    files_->fail(operation, ESTALE, 2, operation == FaultyFiles::kCreate ? "" : ".kernel");
    const auto cache = open();
    EXPECT_EQ(ask(*cache), KernelOrigin::kDisk) << operation;
    files_->fail(operation, ESTALE, 2, operation == FaultyFiles::kCreate ? "" : ".kernel");
    EXPECT_EQ(ask(*cache, 2), KernelOrigin::kBuiltHere) << operation;
    EXPECT_EQ(ask(*open(), 2), KernelOrigin::kDisk) << operation;
    std::filesystem::remove(entry(2));
  }
  // For ever: as if it were not there.
  files_->heal();
  files_->fail(FaultyFiles::kRead, ESTALE, 1'000'000, ".kernel");
  EXPECT_EQ(ask(*open()), KernelOrigin::kBuiltHere);
  EXPECT_THAT(warnings_.all(), SizeIs(1));
}

TEST_F(CacheFaults, RenamingOverAFileMayBeRefused) {
  ask(*open());
  write_file(entry(), "damaged");
  files_->fail(FaultyFiles::kRename, EEXIST, 1, ".kernel");
  EXPECT_EQ(ask(*open()), KernelOrigin::kBuiltHere);
  EXPECT_EQ(ask(*open()), KernelOrigin::kDisk);
  EXPECT_THAT(names_in(directory_), SizeIs(1));
}

TEST_F(CacheFaults, WithoutLocksEntriesAreSharedAllTheSame) {
  for (const int problem : {ENOTSUP, ENOLCK, EINVAL}) {
    files_->fail(FaultyFiles::kLink, problem);
    files_->fail(FaultyFiles::kCreate, problem, 1'000'000, ".lock");
    const auto cache = open(), another = open();
    EXPECT_EQ(ask(*cache), KernelOrigin::kBuiltHere);
    EXPECT_EQ(ask(*another), KernelOrigin::kDisk);
    std::filesystem::remove(entry());
  }
  EXPECT_THAT(warnings_.all(), IsEmpty());
  EXPECT_THAT(names_in(directory_), IsEmpty());
}

TEST_F(CacheFaults, WithoutLinksThereAreLocks) {
  files_->fail(FaultyFiles::kLink, EPERM);
  bool locked = false;
  compiler_.while_compiling = [&] { locked = std::filesystem::exists(path_of(".lock")); };
  EXPECT_EQ(ask(*open()), KernelOrigin::kBuiltHere);
  EXPECT_TRUE(locked);
  EXPECT_THAT(names_in(directory_), SizeIs(1));
}

// A server that links, loses its answer, and is asked again.
TEST_F(CacheFaults, ALinkWhoseAnswerWasLostIsOurs) {
  class LostAnswer : public CacheFiles {
   public:
    int link(const std::filesystem::path& file, const std::filesystem::path& name) override {
      return CacheFiles::link(file, name) == 0 ? EEXIST : EIO;
    }
  };
  CacheOptions options = patient_options(directory_);
  options.files = std::make_shared<LostAnswer>();
  KernelCache cache(std::move(options));
  EXPECT_EQ(ask(cache), KernelOrigin::kBuiltHere);
  EXPECT_THAT(names_in(directory_), SizeIs(1));
}

TEST_F(CacheFaults, SyncingADirectoryMayFailAfterTheEntryIsThere) {
  files_->fail(FaultyFiles::kSync, EIO);
  EXPECT_EQ(ask(*open()), KernelOrigin::kBuiltHere);
  EXPECT_THAT(warnings_.all(), SizeIs(1));
  EXPECT_EQ(ask(*open()), KernelOrigin::kDisk);
}

// Locks that nobody holds any more.
TEST_F(CacheFaults, ALockOfAnEndedProcessIsTakenOverAtOnce) {
  Children children;
  const int child = children.start([] { return kWell; });
  ProcessIdentity owner = this_process();
  owner.pid = children.pid(child);
  ASSERT_EQ(children.wait(child), kWell);
  plant_lock(lock_of(owner), std::chrono::seconds(0));
  const auto cache = open();
  EXPECT_EQ(ask(*cache), KernelOrigin::kBuiltHere);
  EXPECT_EQ(cache->counters().taken_over, 1U);
  // A number that was given out again: the process that runs under it began at another time.
  std::filesystem::remove(entry());
  owner = this_process();
  owner.start_ticks -= 1;
  plant_lock(lock_of(owner), std::chrono::seconds(0));
  const auto another = open();
  EXPECT_EQ(ask(*another), KernelOrigin::kBuiltHere);
  EXPECT_EQ(another->counters().taken_over, 1U);
  EXPECT_THAT(names_in(directory_), SizeIs(1));
}

TEST_F(CacheFaults, ALockThatAnotherHostDoesNotRefreshIsTakenOver) {
  for (const int64_t ahead_s : {0, 3600, -3600}) {
    for (const int64_t step_s : {0, 2}) {
      // mtimes are the server's: what was refreshed "now" is now by its clock too.
      files_->server_ahead_s = ahead_s;
      files_->clock_step_s = step_s;
      stale_after_ = 2 * kHang;
      plant_lock(lock_of(remote_owner()), 3 * kHang);
      const auto cache = open();
      EXPECT_EQ(ask(*cache), KernelOrigin::kBuiltHere);
      EXPECT_EQ(cache->counters().taken_over, 1U) << "server ahead by " << ahead_s << " s";
      std::filesystem::remove(entry());
      // One that falls silent while we wait.
      stale_after_ = milliseconds(300);
      plant_lock(lock_of(remote_owner()), std::chrono::seconds(0));
      const auto another = open();
      EXPECT_EQ(ask(*another), KernelOrigin::kBuiltHere);
      EXPECT_EQ(another->counters().taken_over, 1U);
      std::filesystem::remove(entry());
    }
  }
  // Nobody can read what it says, or it says nothing: the same by time.
  for (const char* text : {"", "no lock at all", "fedcba9876543210-x-1 1\n"}) {
    plant_lock(text, std::chrono::seconds(0));
    EXPECT_EQ(ask(*open()), KernelOrigin::kBuiltHere);
    std::filesystem::remove(entry());
  }
  EXPECT_THAT(names_in(directory_), IsEmpty());
}

TEST_F(CacheFaults, ALockThatIsRefreshedIsRespectedAndItsKernelUsed) {
  plant_lock(lock_of(remote_owner()), std::chrono::seconds(0));
  std::atomic<bool> asked{false};
  // The other host: refreshes, then publishes and lets go.
  std::thread remote([this, &asked] {
    while (!asked) std::this_thread::sleep_for(milliseconds(1));
    for (int i = 0; i < 20; ++i) {
      CacheFiles::real()->touch(path_of(".lock"));
      std::this_thread::sleep_for(milliseconds(5));
    }
    KernelCache cache(patient_options(directory_));
    const KernelSource source = numbered_source(1);
    (void)cache.add(source, compiler_.identity(), expected_kernel(source, compiler_.identity()));
    std::filesystem::remove(path_of(".lock"));
  });
  const auto cache = open();
  asked = true;
  EXPECT_EQ(ask(*cache), KernelOrigin::kBuiltElsewhere);
  remote.join();
  EXPECT_EQ(compiler_.compiles(), 0);
  EXPECT_EQ(cache->counters().taken_over, 0U);
}

TEST_F(CacheFaults, AWaiterGivesUpAtItsDeadlineAndBuilds) {
  wait_limit_ = milliseconds(100);
  plant_lock(lock_of(this_process()), std::chrono::seconds(0));  // runs, and never lets go
  const auto cache = open();
  EXPECT_EQ(ask(*cache), KernelOrigin::kBuiltHere);
  EXPECT_TRUE(std::filesystem::exists(path_of(".lock"))) << "another's lock was removed";
  EXPECT_EQ(ask(*open()), KernelOrigin::kDisk);
}

TEST_F(CacheFaults, ALockThatWasTakenFromUsIsLeftToItsNewOwner) {
  compiler_.while_compiling = [this] { plant_lock(lock_of(remote_owner()), std::chrono::seconds(0)); };
  EXPECT_EQ(ask(*open()), KernelOrigin::kBuiltHere);
  EXPECT_EQ(read_file(path_of(".lock")), lock_of(remote_owner()));
}

TEST_F(CacheFaults, OwnLocksAreRefreshedWhileCompiling) {
  struct stat first = {}, later = {};
  compiler_.while_compiling = [&] {
    ::stat(path_of(".lock").c_str(), &first);
    const auto deadline = std::chrono::steady_clock::now() + kHang;
    do {
      std::this_thread::sleep_for(milliseconds(5));
      ::stat(path_of(".lock").c_str(), &later);
    } while (modified_ns_of(later) == modified_ns_of(first) && std::chrono::steady_clock::now() < deadline);
  };
  ask(*open());
  EXPECT_GT(modified_ns_of(later), modified_ns_of(first));
}

TEST_F(CacheFaults, LeftoversOfTheDeadAreSweptAndOthersStay) {
  std::filesystem::create_directories(directory_);
  ProcessIdentity dead = this_process();
  dead.start_ticks -= 1;
  const auto plant = [this](const std::string& name, std::chrono::hours age) {
    write_file(directory_ / name, "half an entry");
    std::filesystem::last_write_time(directory_ / name, std::filesystem::file_time_type::clock::now() - age);
  };
  const std::string of_running = ".tmp-" + to_token(this_process()) + "-999999";
  const std::string of_remote = ".tmp-" + to_token(remote_owner()) + "-1";
  plant(".tmp-" + to_token(dead) + "-7", std::chrono::hours(0));
  plant(".tmp-" + to_token(remote_owner()) + "-2", std::chrono::hours(2));
  plant(of_remote, std::chrono::hours(0));
  plant(of_running, std::chrono::hours(2));
  plant("somebody's notes.txt", std::chrono::hours(1000));
  write_file(directory_ / "other_kernel-00.lock", lock_of(dead));
  ask(*open());
  EXPECT_THAT(names_in(directory_), ::testing::UnorderedElementsAre(entry().filename().string(), of_remote, of_running,
                                                                    "somebody's notes.txt"));
}

// What somebody else may have put there.
TEST_F(CacheFaults, EntriesThatAnybodyMayWriteToAreNotUsed) {
  ask(*open());
  ASSERT_EQ(::chmod(entry().c_str(), 0666), 0);
  EXPECT_EQ(ask(*open()), KernelOrigin::kBuiltHere);
  ASSERT_THAT(warnings_.all(), SizeIs(1));
  EXPECT_THAT(warnings_.all()[0], HasSubstr("anybody may write to it"));
  EXPECT_EQ(ask(*open()), KernelOrigin::kDisk) << "it was not replaced";
  struct stat status = {};
  ASSERT_EQ(::stat(entry().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0022, 0U);
}

TEST_F(CacheFaults, WhatIsNoPlainFileIsNotUsedAndDoesNotHold) {
  const auto outside = folder_.path() / "outside";
  ask(*open());
  std::filesystem::rename(entry(), outside);
  const std::string right = read_file(outside);
  const std::pair<const char*, std::function<void()>> planted[] = {
      {"a link to a right one", [&] { std::filesystem::create_symlink(outside, entry()); }},
      {"a link to nothing", [&] { std::filesystem::create_symlink("/no/such/file", entry()); }},
      {"a pipe", [&] { ASSERT_EQ(::mkfifo(entry().c_str(), 0666), 0); }},
      {"a file of a terabyte",
       [&] {
         write_file(entry(), "");
         std::filesystem::resize_file(entry(), uint64_t{1} << 40);
       }},
  };
  for (const auto& [what, plant] : planted) {
    SCOPED_TRACE(what);
    plant();
    EXPECT_EQ(ask(*open()), KernelOrigin::kBuiltHere);
    EXPECT_EQ(read_file(outside), right);
    EXPECT_EQ(ask(*open()), KernelOrigin::kDisk);
    std::filesystem::remove(entry());
  }
  // A directory cannot be replaced: the kernel stays in memory.
  std::filesystem::create_directories(entry() / "in the way");
  EXPECT_EQ(ask(*open()), KernelOrigin::kBuiltHere);
  std::filesystem::remove_all(entry());
  // A link in the place of the lock is not followed, and not waited for beyond the limit.
  wait_limit_ = milliseconds(100);
  std::filesystem::create_symlink(outside, path_of(".lock"));
  EXPECT_EQ(ask(*open()), KernelOrigin::kBuiltHere);
  EXPECT_EQ(read_file(outside), right);
}

}  // namespace
}  // namespace plait::jit
