// One rank's call of a collective: what all ranks must agree on, and which bytes it gives to whom.
//
// Plain values. Sizes are in elements unless a name says bytes; ranks are positions in the group.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "tensor/dtype.h"

namespace plait::comm {

enum class Operation : uint8_t {
  kBarrier,
  kBroadcast,
  kAllReduce,
  kReduceScatter,
  kAllGather,
  kAllToAll,
  kSend,
};
const char* name_of(Operation operation);

// A large all-reduce is two exchanges under one name: each rank sums its share, then everybody collects the shares.
enum class Stage : uint8_t { kWhole, kScatterShares, kGatherShares };

// Travels between processes as it is: fixed layout, compared byte for byte.
struct CallRecord {
  Operation operation = Operation::kBarrier;
  DType dtype = DType::kU8;
  Stage stage = Stage::kWhole;
  uint8_t by_rank = 0;         // counts differ by rank
  int32_t root = -1;           // of a broadcast, as position in the group
  int64_t count = 0;           // elements; of kAllToAll 0, of lists their sum
  uint64_t counts_digest = 0;  // of a list that all ranks give alike
  uint64_t name_digest = 0;    // of the whole name
  char name[56] = {};          // its beginning, ends with a zero

  friend bool operator==(const CallRecord&, const CallRecord&) = default;
};
static_assert(sizeof(CallRecord) == 88 && std::is_trivially_copyable_v<CallRecord>);

struct Call {
  CallRecord record;
  const std::byte* in = nullptr;
  const int64_t* counts = nullptr;  // [group size]; nullptr: record.count for every rank
};

// counts: empty, or one per rank. Of kAllToAll they are this rank's own and not part of the agreement.
CallRecord make_record(Operation operation, std::string_view name, DType dtype, int64_t count, int32_t root,
                       std::span<const int64_t> counts);

// The part of `call.in` that rank `source`, whose call it is, gives to rank `destination`.
struct Block {
  int64_t offset_bytes = 0;
  int64_t bytes = 0;
};
Block block_of(const Call& call, int source, int destination, int group_size);
// Whether every destination gets the same block.
bool is_same_for_all(const CallRecord& record);

// Elements that rank `rank` sums of an all-reduce of `count`: [begin, end).
struct Share {
  int64_t begin = 0;
  int64_t end = 0;
};
Share share_of(int64_t count, int rank, int group_size);

uint64_t digest_of(std::span<const std::byte> bytes);  // FNV-1a

// "all_reduce 'layer 3 attention out' of 7168 BF16"
std::string describe(const CallRecord& record);

}  // namespace plait::comm
