// Every collective with every type and size against a plain reference, on whatever Communicator it is given.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/world.h"

namespace plait::comm::testing {

struct Report {
  int64_t cases = 0;
  std::vector<std::string> failures;  // cut after a few
};

// To be called by all members alike.
Report run_battery(Communicator& comm, std::span<const int64_t> sizes);
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
inline const std::vector<int64_t> kSizes = {0, 1, 37, 9001};
#else
inline const std::vector<int64_t> kSizes = {0, 1, 37, 4096, 5003, 70001};
#endif

// One thread per rank of this process in the group; adds up the reports.
Report run_ranks(World& world, std::span<const int> ranks, std::string_view group,
                 const std::function<Report(Communicator&)>& body);

}  // namespace plait::comm::testing
