#include "jit/entry_lock.h"

#include <cerrno>

#include "base/log.h"
#include "jit/process_identity.h"

namespace plait::jit {
namespace {

constexpr size_t kMaxLockBytes = 4096;
constexpr std::string_view kTemporaryPrefix = ".tmp-";

std::atomic<uint64_t> next_number{0};

// Two lines: the token, for programs, with a number that makes each locking differ; the host, for people.
std::string lock_text() {
  const ProcessIdentity& self = this_process();
  return fmt::format("{} {}\nhost {}, process {}\n", to_token(self), ++next_number, self.host, self.pid);
}

std::optional<ProcessIdentity> owner_of(std::string_view lock) {
  return parse_token(lock.substr(0, std::min(lock.find(' '), lock.size())));
}

std::string readable_owner(std::string_view lock) {
  const size_t begin = lock.find('\n');
  if (begin == lock.npos || lock.back() != '\n') return "an unknown process";
  return std::string(lock.substr(begin + 1, lock.size() - begin - 2));
}

}  // namespace

EntryLock::EntryLock(std::shared_ptr<CacheFiles> files, std::filesystem::path file,
                     std::chrono::milliseconds stale_after)
    : files_(std::move(files)), file_(std::move(file)), stale_after_(stale_after) {}

EntryLock::~EntryLock() {
  release();
}

EntryLock::Outcome EntryLock::try_lock() {
  for (int attempt = 0; attempt < 2; ++attempt) {
    std::string text = lock_text();
    problem_ = files_->create(file_, text, CacheFiles::Durability::kPlain);
    if (problem_ == 0) {
      text_ = std::move(text);
      return Outcome::kMine;
    }
    if (problem_ != EEXIST) return Outcome::kNoLocks;
    const auto lock = abandoned();
    if (!lock) return Outcome::kTheirs;
    problem_ = take_away(*lock);
    if (problem_ == ENOENT || problem_ == EEXIST) return Outcome::kTheirs;  // somebody was quicker
    if (problem_ != 0) return Outcome::kNoLocks;  // another user's, in a directory where only they may remove it
    log::info("kernel cache: {} of {} is taken over, which has ended or is silent", file_.string(), owner_);
    took_over_ = true;
  }
  return Outcome::kTheirs;
}

void EntryLock::release() {
  if (text_.empty()) return;
  FileContents now;
  const bool still_ours = files_->read(file_, kMaxLockBytes, now) == 0 && now.bytes == text_;
  if (still_ours) files_->remove(file_);
  text_.clear();
}

bool EntryLock::remove_if_abandoned() {
  const auto lock = abandoned();
  return lock && take_away(*lock) == 0;
}

std::optional<FileContents> EntryLock::abandoned() {
  FileContents lock;
  if (files_->read(file_, kMaxLockBytes, lock) != 0) return std::nullopt;
  owner_ = readable_owner(lock.bytes);
  const auto process = owner_of(lock.bytes);
  if (process && life_of(*process) == Life::kEnded) return lock;
  // Also one that runs may have stopped for good, or could not remove what it no longer needs.
  if (is_stale(lock)) return lock;
  return std::nullopt;
}

bool EntryLock::is_stale(const FileContents& lock) {
  const auto now = Clock::now();
  const int64_t modified_ns = modified_ns_of(lock.status);
  if (!probed_ || modified_ns != seen_modified_ns_) {
    seen_modified_ns_ = modified_ns;
    seen_since_ = now;
  }
  if (now - seen_since_ >= stale_after_) return true;
  // Asking the server for its time costs it a file: at first, then a few times within stale_after.
  if (probed_ && now - *probed_ < stale_after_ / 4) return false;
  probed_ = now;
  const auto server_ns = server_now_ns(*files_, file_.parent_path());
  return server_ns && std::chrono::nanoseconds(*server_ns - modified_ns) >= stale_after_;
}

// Renaming lets one of several succeed. What was caught may be the lock of one that was quicker: it gets it back.
int EntryLock::take_away(const FileContents& lock) {
  const std::filesystem::path aside = file_.parent_path() / temporary_name();
  if (const int problem = files_->rename(file_, aside)) return problem;
  FileContents caught;
  const bool is_it = files_->read(aside, kMaxLockBytes, caught) == 0 && caught.bytes == lock.bytes;
  if (!is_it) files_->create(file_, caught.bytes, CacheFiles::Durability::kPlain);
  files_->remove(aside);
  return is_it ? 0 : EEXIST;
}

std::string temporary_name() {
  return fmt::format("{}{}-{}", kTemporaryPrefix, to_token(this_process()), ++next_number);
}

std::string_view token_of_temporary(std::string_view name) {
  if (!name.starts_with(kTemporaryPrefix)) return {};
  name.remove_prefix(kTemporaryPrefix.size());
  return name.substr(0, std::min(name.rfind('-'), name.size()));
}

std::optional<int64_t> server_now_ns(CacheFiles& files, const std::filesystem::path& directory) {
  const std::filesystem::path probe = directory / temporary_name();
  if (files.create(probe, "", CacheFiles::Durability::kPlain) != 0) return std::nullopt;
  FileContents contents;
  const int problem = files.read(probe, kMaxLockBytes, contents);
  files.remove(probe);
  if (problem != 0) return std::nullopt;
  return modified_ns_of(contents.status);
}

}  // namespace plait::jit
