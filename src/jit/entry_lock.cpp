#include "jit/entry_lock.h"

#include <cerrno>

#include "base/log.h"
#include "jit/process_identity.h"

namespace plait::jit {
namespace {

constexpr size_t kMaxLockBytes = 4096;
constexpr std::string_view kTemporaryPrefix = ".tmp-";

constexpr const char* kUnknownOwner = "an unknown process";

std::atomic<uint64_t> next_number{0};

// Two lines: the token, for programs, with a number that makes each locking differ; the host, for people.
std::string lock_text() {
  const ProcessIdentity& self = this_process();
  return fmt::format("{} {}\nhost {}, process {}\n", to_token(self), ++next_number, self.host, self.pid);
}

std::optional<ProcessIdentity> owner_of(std::string_view lock) {
  return parse_token(lock.substr(0, std::min(lock.find(' '), lock.size())));
}

// The second line.
std::string readable_owner(std::string_view lock) {
  const size_t begin = lock.find('\n');
  const bool has_line = begin != lock.npos && lock.size() > begin + 2 && lock.back() == '\n';
  return has_line ? std::string(lock.substr(begin + 1, lock.size() - begin - 2)) : kUnknownOwner;
}

}  // namespace

EntryLock::EntryLock(std::shared_ptr<CacheFiles> files, std::filesystem::path file,
                     std::chrono::milliseconds stale_after)
    : files_(std::move(files)), file_(std::move(file)), stale_after_(stale_after), owner_(kUnknownOwner) {}

EntryLock::~EntryLock() {
  release();
}

EntryLock::Outcome EntryLock::try_lock() {
  FileContents lock;
  if (files_->read(file_, kMaxLockBytes, lock) == 0) {
    if (!is_abandoned(lock)) return Outcome::kTheirs;
    problem_ = take_away(lock);
    if (problem_ == ENOENT || problem_ == EEXIST) return Outcome::kTheirs;  // somebody was quicker
    if (problem_ != 0) return Outcome::kNoLocks;  // another user's, in a directory where only they may remove it
    log::info("kernel cache: {} of {} is taken over, which has ended or is silent", file_.string(), owner_);
    took_over_ = true;
  }
  // Whatever made reading fail: a lock that can be made is ours, one that exists is somebody's.
  std::string text = lock_text();
  problem_ = make(text);
  if (problem_ == EEXIST) return Outcome::kTheirs;
  if (problem_ != 0) return Outcome::kNoLocks;
  text_ = std::move(text);
  return Outcome::kMine;
}

int EntryLock::make(const std::string& text) {
  const std::filesystem::path draft = file_.parent_path() / temporary_name();
  if (const int problem = files_->create(draft, text, CacheFiles::Durability::kPlain)) return problem;
  int problem = files_->link(draft, file_);
  struct stat status = {};
  // Over a network: the server did it, its answer was lost, and it was asked again.
  if (problem == EEXIST && files_->status(draft, status) == 0 && status.st_nlink == 2) problem = 0;
  files_->remove(draft);
  if (problem == 0 || problem == EEXIST || problem == ENOENT) return problem;
  // A file system without links. Its lock is empty for a moment; should we be killed then, only time tells.
  return files_->create(file_, text, CacheFiles::Durability::kPlain);
}

void EntryLock::release() {
  if (text_.empty()) return;
  FileContents now;
  const bool still_ours = files_->read(file_, kMaxLockBytes, now) == 0 && now.bytes == text_;
  if (still_ours) files_->remove(file_);
  text_.clear();
}

bool EntryLock::remove_if_abandoned() {
  FileContents lock;
  return files_->read(file_, kMaxLockBytes, lock) == 0 && is_abandoned(lock) && take_away(lock) == 0;
}

bool EntryLock::is_abandoned(const FileContents& lock) {
  owner_ = readable_owner(lock.bytes);
  const auto process = owner_of(lock.bytes);
  // Also one that runs may have stopped for good, or could not remove what it no longer needs.
  return (process && life_of(*process) == Life::kEnded) || is_stale(lock);
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
  const int problem = files_->read(aside, kMaxLockBytes, caught);
  const bool is_another = problem == 0 && caught.bytes != lock.bytes;
  if (is_another) files_->create(file_, caught.bytes, CacheFiles::Durability::kPlain);
  files_->remove(aside);
  return is_another ? EEXIST : 0;
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
