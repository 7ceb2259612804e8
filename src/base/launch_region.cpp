#include "base/launch_region.h"

#include <atomic>
#include <utility>

#include "base/assert.h"
#include "base/log.h"

namespace plait {
namespace {

thread_local const char* region = nullptr;  // that this thread is in
std::atomic<uint64_t> blocked{0};

#ifdef NDEBUG
constexpr bool kAborts = false;
#else
constexpr bool kAborts = true;
#endif

}  // namespace

LaunchRegion::LaunchRegion(const char* what) : outer_(std::exchange(region, what)) {}

LaunchRegion::~LaunchRegion() {
  region = outer_;
}

bool LaunchRegion::active() {
  return region != nullptr;
}

CollectiveWait::CollectiveWait() : region_(std::exchange(region, nullptr)) {}

CollectiveWait::~CollectiveWait() {
  region = region_;
}

void about_to_block(const char* operation) {
  if (region == nullptr) [[likely]]
    return;
  const std::string what = fmt::format("{} would wait inside the {}", operation, region);
  PLAIT_ASSERT(!kAborts, what);
  if (blocked.fetch_add(1, std::memory_order_relaxed) == 0) log::warning("{}: later steps are held up", what);
}

uint64_t blocked_launches() {
  return blocked.load(std::memory_order_relaxed);
}

}  // namespace plait
