#include "jit/kernel_store.h"

#include <cerrno>

#include <unistd.h>

#include "jit/cache_entry.h"
#include "jit/entry_lock.h"
#include "jit/process_identity.h"

namespace plait::jit {
namespace {

constexpr std::string_view kEntrySuffix = ".kernel", kLockSuffix = ".lock";
constexpr int kAttempts = 4;  // of an operation that a file server may ask to repeat, or after making the directory
// A temporary file of another host that is so old belongs to nobody; writing one takes milliseconds.
constexpr std::chrono::hours kAbandonedTemporary{1};

std::string stem_of(const KernelSource& source, const Digest& key) {
  return source.name + "-" + to_hex(key);
}

// Why an entry may not be used, or nullptr. cache.h says what this protects from.
const char* distrust(const struct stat& file, const struct stat& directory) {
  if ((file.st_mode & S_IWOTH) != 0) return "anybody may write to it";
  const bool by_trusted_user = file.st_uid == geteuid() || file.st_uid == 0;
  if ((directory.st_mode & S_IWOTH) != 0 && !by_trusted_user)
    return "it belongs to another user, in a directory that anybody may write to";
  return nullptr;
}

// What to do, for the reasons that have a name.
struct WriteProblem {
  int reason;
  const char* advice;
};
constexpr WriteProblem kWriteProblems[] = {
    {EROFS, "mount it writable, or build it beforehand with the same flags"},
    {EACCES, "give this user the right to write there, or choose another directory"},
    {EPERM, "give this user the right to write there, or choose another directory"},
    {ENOSPC, "make room there"},
    {EDQUOT, "make room there"},
    {EFBIG, "raise the limit of file sizes"},
};

std::string advice_for(int reason) {
  const auto* problem = std::ranges::find(kWriteProblems, reason, &WriteProblem::reason);
  return problem == std::end(kWriteProblems) ? "see to its file system" : problem->advice;
}

}  // namespace

KernelStore::KernelStore(std::filesystem::path directory, std::shared_ptr<CacheFiles> files, Warn warn)
    : directory_(std::move(directory)), files_(std::move(files)), warn_(std::move(warn)) {}

std::filesystem::path KernelStore::lock_of(const KernelSource& source, const Digest& key) const {
  return directory_ / (stem_of(source, key) + std::string(kLockSuffix));
}

std::optional<CompiledKernel> KernelStore::load(const KernelSource& source, const Digest& key) {
  const auto entry = directory_ / (stem_of(source, key) + std::string(kEntrySuffix));
  FileContents contents;
  int problem = ESTALE;
  // Replaced on the server while it was read: the name leads to the new file.
  for (int attempt = 0; attempt < kAttempts && problem == ESTALE; ++attempt)
    problem = files_->read(entry, kMaxEntryBytes, contents);
  if (problem == ENOENT || problem == ENOTDIR) return std::nullopt;
  if (problem != 0) {
    reject(entry, fmt::format("it cannot be read: {}", std::generic_category().message(problem)));
    return std::nullopt;
  }
  struct stat directory = {};
  if (files_->status(directory_, directory) != 0) return std::nullopt;
  if (const char* why = distrust(contents.status, directory)) {
    reject(entry, why);
    return std::nullopt;
  }
  auto kernel = decode_entry(contents.bytes, key);
  if (kernel.has_error()) {
    reject(entry, kernel.error().message);
    return std::nullopt;
  }
  return std::move(kernel).value();
}

bool KernelStore::publish(const KernelSource& source, const Digest& key, const CompilerIdentity& compiler,
                          const CompiledKernel& kernel) {
  const auto entry = directory_ / (stem_of(source, key) + std::string(kEntrySuffix));
  const int problem = put_in_place(entry, encode_entry(key, source, compiler, kernel));
  if (problem == 0) return true;
  warn_once(
      problem,
      fmt::format("kernel cache {}: '{}' cannot be written: {}. Kernels built now stay in memory and are "
                  "built again at the next start; {}",
                  directory_.string(), source.name, std::generic_category().message(problem), advice_for(problem)));
  return false;
}

int KernelStore::put_in_place(const std::filesystem::path& entry, std::string_view bytes) {
  int problem = 0;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    const auto temporary = directory_ / temporary_name();
    problem = files_->create(temporary, bytes, CacheFiles::Durability::kSynced);
    if (problem == 0) {
      problem = replace(temporary, entry);
      if (problem == 0) return files_->sync_directory(directory_);
      files_->remove(temporary);
    }
    // The directory is not there yet, or somebody has deleted it.
    if (problem == ENOENT && !make_directory()) return problem;
    if (problem != ENOENT && problem != ESTALE) return problem;
  }
  return problem;
}

int KernelStore::replace(const std::filesystem::path& from, const std::filesystem::path& entry) {
  const int problem = files_->rename(from, entry);
  if (problem != EEXIST) return problem;
  // A file system that does not rename over a file. For a moment there is no entry: somebody builds it again.
  files_->remove(entry);
  return files_->rename(from, entry);
}

bool KernelStore::make_directory() {
  return files_->make_directory(directory_) == 0;
}

void KernelStore::sweep(std::chrono::milliseconds stale_after) {
  std::call_once(swept_, [&] {
    std::vector<std::string> names;
    files_->list(directory_, names);  // where it cannot be listed there is nothing to sweep
    for (const std::string& name : names) {
      if (name.ends_with(kLockSuffix))
        EntryLock(files_, directory_ / name, stale_after).remove_if_abandoned();
      else
        remove_temporary(name);
    }
  });
}

void KernelStore::remove_temporary(const std::string& name) {
  const auto process = parse_token(token_of_temporary(name));
  if (!process) return;
  const Life life = life_of(*process);
  if (life == Life::kRunning) return;
  if (life == Life::kUnknown) {
    FileContents contents;
    const int problem = files_->read(directory_ / name, kMaxEntryBytes, contents);
    const auto now_ns = problem == 0 ? server_now_ns(*files_, directory_) : std::nullopt;
    if (!now_ns || std::chrono::nanoseconds(*now_ns - modified_ns_of(contents.status)) < kAbandonedTemporary) return;
  }
  files_->remove(directory_ / name);
}

void KernelStore::reject(const std::filesystem::path& entry, const std::string& why) {
  {
    const std::scoped_lock lock(mutex_);
    if (!rejected_entries_.insert(entry).second) return;
  }
  warn_(fmt::format("kernel cache: {} is not used, and built again: {}", entry.string(), why));
}

uint64_t KernelStore::rejected() const {
  const std::scoped_lock lock(mutex_);
  return rejected_entries_.size();
}

void KernelStore::warn_once(int reason, const std::string& text) {
  {
    const std::scoped_lock lock(mutex_);
    if (!warned_.insert(reason).second) return;
  }
  warn_(text);
}

}  // namespace plait::jit
