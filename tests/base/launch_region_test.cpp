#include "base/launch_region.h"

#include <thread>

#include <gtest/gtest.h>

#include "checkpoint/mapped_file.h"
#include "comm/signal.h"

namespace plait {
namespace {

// What a wait inside a region does: in builds with NDEBUG it is counted, in others it ends the process with a message
// that names both.
#ifdef NDEBUG
#define EXPECT_REFUSED(statement, message)      \
  do {                                          \
    const uint64_t before = blocked_launches(); \
    statement;                                  \
    EXPECT_EQ(blocked_launches(), before + 1);  \
  } while (false)
#else
#define EXPECT_REFUSED(statement, message) EXPECT_DEATH(statement, message)
#endif

void wait_in_region() {
  const LaunchRegion region("launch of a step");
  about_to_block("waiting for a reply");
}

class LaunchRegionTest : public ::testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

TEST_F(LaunchRegionTest, RefusesToWaitInside) {
  EXPECT_REFUSED(wait_in_region(), "waiting for a reply would wait inside the launch of a step");
}

TEST_F(LaunchRegionTest, AllowsWaitsOutsideAndOnOtherThreads) {
  const uint64_t before = blocked_launches();
  about_to_block("a wait before");
  {
    const LaunchRegion region("launch of a step");
    EXPECT_TRUE(LaunchRegion::active());
    std::thread([] {
      EXPECT_FALSE(LaunchRegion::active());
      about_to_block("a wait on another thread");
    }).join();
  }
  EXPECT_FALSE(LaunchRegion::active());
  about_to_block("a wait after");
  EXPECT_EQ(blocked_launches(), before);
}

TEST_F(LaunchRegionTest, NestsAndEndsWithItsScope) {
  const LaunchRegion outer("launch of a step");
  { const LaunchRegion inner("capture"); }
  EXPECT_TRUE(LaunchRegion::active());
  EXPECT_REFUSED(about_to_block("a wait"), "inside the launch of a step");
}

TEST_F(LaunchRegionTest, LetsCollectivesWait) {
  const LaunchRegion region("launch of a step");
  const uint64_t before = blocked_launches();
  {
    const CollectiveWait collective;
    EXPECT_FALSE(LaunchRegion::active());
    about_to_block("meeting the peers");
  }
  EXPECT_EQ(blocked_launches(), before);
  EXPECT_REFUSED(about_to_block("a wait behind the collective"), "behind the collective");
}

// The primitives that say so themselves.
void wait_for_signal() {
  const LaunchRegion region("launch of a step");
  comm::Signal signal;
  comm::Patience patience(false);
  signal.wait(1, comm::Clock::now() + std::chrono::milliseconds(1), patience);
}

void open_file() {
  const LaunchRegion region("launch of a step");
  (void)MappedFile::open("/no/such/file");
}

TEST_F(LaunchRegionTest, KnowsOurBlockingCalls) {
  EXPECT_REFUSED(wait_for_signal(), "waiting for another rank would wait inside");
  EXPECT_REFUSED(open_file(), "opening a file would wait inside");
}

}  // namespace
}  // namespace plait
