#include "engine/host_channel.h"

#include <cstring>

namespace plait {
namespace {

// A message is one block of this size, and a second one if that is too small: receivers must know sizes beforehand, and
// the steps of a decoding batch should travel once.
constexpr int64_t kBlockBytes = 4096;
constexpr size_t kInlineBytes = kBlockBytes - sizeof(uint64_t);

}  // namespace

Result<HostChannel> HostChannel::open(comm::World& world, std::string_view name) {
  std::vector<int> first_ranks;
  for (const comm::Node& node : world.nodes()) first_ranks.push_back(node.first_rank);
  PLAIT_ASSIGN_OR_RETURN(
      comm::Communicator group,
      world.communicator(std::string(name), first_ranks, first_ranks[static_cast<size_t>(world.this_node())]));
  return HostChannel(std::move(group));
}

Status HostChannel::send(std::string_view name, std::string_view bytes, int to) {
  std::string block(kBlockBytes, '\0');
  const uint64_t size = bytes.size();
  const size_t first = std::min(bytes.size(), kInlineBytes);
  std::memcpy(block.data(), &size, sizeof size);
  std::memcpy(block.data() + sizeof size, bytes.data(), first);
  PLAIT_RETURN_IF_ERROR(group_.send(name, block.data(), kBlockBytes, DType::kU8, to));
  const std::string_view rest = bytes.substr(first);
  if (rest.empty()) return {};
  return group_.send(name, rest.data(), static_cast<int64_t>(rest.size()), DType::kU8, to);
}

Result<std::string> HostChannel::receive(std::string_view name, int from, uint64_t most_bytes) {
  std::string block(kBlockBytes, '\0');
  PLAIT_RETURN_IF_ERROR(group_.receive(name, block.data(), kBlockBytes, DType::kU8, from));
  uint64_t size = 0;
  std::memcpy(&size, block.data(), sizeof size);
  if (size > most_bytes) return corrupt(fmt::format("host {} announced {} of {} bytes", from, name, size));
  std::string bytes(size, '\0');
  const size_t first = std::min(bytes.size(), kInlineBytes);
  std::memcpy(bytes.data(), block.data() + sizeof size, first);
  if (first == bytes.size()) return bytes;
  PLAIT_RETURN_IF_ERROR(
      group_.receive(name, bytes.data() + first, static_cast<int64_t>(bytes.size() - first), DType::kU8, from));
  return bytes;
}

}  // namespace plait
