#include "comm/call.h"

#include <cstring>

#include <fmt/format.h>

namespace plait::comm {
namespace {

// Shares begin at multiples of a cache line of BF16, so that ranks do not write into each other's lines.
constexpr int64_t kShareAlignment = 32;

int64_t count_for(const Call& call, int rank) {
  return call.counts != nullptr ? call.counts[rank] : call.record.count;
}

int64_t elements_before(const Call& call, int rank) {
  if (call.counts == nullptr) return call.record.count * rank;
  int64_t sum = 0;
  for (int r = 0; r < rank; ++r) sum += call.counts[r];
  return sum;
}

}  // namespace

const char* name_of(Operation operation) {
  switch (operation) {
    case Operation::kBarrier:
      return "barrier";
    case Operation::kBroadcast:
      return "broadcast";
    case Operation::kAllReduce:
      return "all_reduce";
    case Operation::kReduceScatter:
      return "reduce_scatter";
    case Operation::kAllGather:
      return "all_gather";
    case Operation::kAllToAll:
      return "all_to_all";
    case Operation::kSend:
      return "send";
  }
  return "unknown operation";
}

uint64_t digest_of(std::span<const std::byte> bytes) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const std::byte byte : bytes) hash = (hash ^ static_cast<uint8_t>(byte)) * 0x100000001b3;
  return hash;
}

CallRecord make_record(Operation operation, std::string_view name, DType dtype, int64_t count, int32_t root,
                       std::span<const int64_t> counts) {
  CallRecord record;
  record.operation = operation;
  record.dtype = dtype;
  record.root = root;
  record.count = count;
  record.by_rank = !counts.empty();
  if (!counts.empty() && operation != Operation::kAllToAll) {
    record.count = 0;
    for (const int64_t c : counts) record.count += c;
    record.counts_digest = digest_of(std::as_bytes(counts));
  }
  record.name_digest = digest_of(std::as_bytes(std::span(name)));
  std::memcpy(record.name, name.data(), std::min(name.size(), sizeof(record.name) - 1));
  return record;
}

Share share_of(int64_t count, int rank, int group_size) {
  const int64_t lines = (count + kShareAlignment - 1) / kShareAlignment;
  const auto edge = [&](int64_t r) { return std::min(lines * r / group_size * kShareAlignment, count); };
  return {edge(rank), edge(rank + 1)};
}

bool is_same_for_all(const CallRecord& record) {
  switch (record.operation) {
    case Operation::kReduceScatter:
    case Operation::kAllToAll:
      return false;
    case Operation::kAllReduce:
      return record.stage != Stage::kScatterShares;
    default:
      return true;
  }
}

Block block_of(const Call& call, int source, int destination, int group_size) {
  const CallRecord& record = call.record;
  const int64_t size = size_of(record.dtype);
  const auto share = [&](int rank) {
    const Share s = share_of(record.count, rank, group_size);
    return Block{s.begin * size, (s.end - s.begin) * size};
  };
  switch (record.operation) {
    case Operation::kBarrier:
      return {};
    case Operation::kBroadcast:
      return source == record.root ? Block{0, record.count * size} : Block{};
    case Operation::kAllReduce:
      if (record.stage == Stage::kWhole) return {0, record.count * size};
      return share(record.stage == Stage::kScatterShares ? destination : source);
    case Operation::kAllGather:
      return {0, count_for(call, source) * size};
    case Operation::kReduceScatter:
    case Operation::kAllToAll:
      return {elements_before(call, destination) * size, count_for(call, destination) * size};
    case Operation::kSend:
      break;
  }
  return {0, record.count * size};
}

std::string describe(const CallRecord& record) {
  std::string text = fmt::format("{} '{}'", name_of(record.operation), record.name);
  if (record.operation == Operation::kBarrier) return text;
  if (record.operation == Operation::kAllToAll) return text + fmt::format(" of {}", name_of(record.dtype));
  text += fmt::format(" of {} {}", record.count, name_of(record.dtype));
  if (record.by_rank) text += fmt::format(" (by rank, digest {:08x})", static_cast<uint32_t>(record.counts_digest));
  if (record.root >= 0) text += fmt::format(" from member {}", record.root);
  return text;
}

}  // namespace plait::comm
