// How the builders of a farm hear of each other: small messages, and compiled kernels for hosts that share no files.
//
// The farm (build_farm.h) knows nothing of transports: engines bring one over their hosts' channels
// (engine/kernel_link.h), tests others. A FarmLink is made for one build and outlives it. `send` may be called by any
// thread and does not wait for receivers; `receive` by one. Messages of one sender arrive in their order.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"
#include "jit/cache_entry.h"
#include "jit/kernel_source.h"

namespace plait::jit {

struct FarmMessage {
  enum class Kind : uint8_t {
    kHello,    // first: cores, and the compiler, without which keys mean nothing
    kStarted,  // `key` is being built here
    kBuilt,    // `key` is here; it is in the directory too, if that can be written to
    kWanted,   // send it: the directory does not have it
    kEntry,    // the answer, `bytes` as cache_entry.h says; empty: it is not here after all
    kDone,     // everything that this host's ranks run is here
    kFailed,   // `error` ends the build everywhere
  };
  Kind kind = Kind::kHello;
  Digest key{};
  std::string bytes;
  int32_t cores = 0;
  CompilerIdentity compiler;
  Error error;
};

// More than this nobody sends and nobody takes.
inline constexpr size_t kMaxFarmMessageBytes = kMaxEntryBytes + 4096;

std::string encode(const FarmMessage& message);
Result<FarmMessage> decode_farm_message(std::string_view bytes);  // kCorrupt

struct ReceivedMessage {
  int from = 0;
  std::optional<FarmMessage> message;  // absent: this builder is gone, and says nothing more
};

class FarmLink {
 public:
  virtual ~FarmLink() = default;

  virtual int builder() const = 0;   // which one this is
  virtual int builders() const = 0;  // of all
  // Nothing happens if that one is gone.
  virtual void send(int to, const FarmMessage& message) = 0;
  // Nothing within `limit`: nothing. An error: the builders cannot go on together.
  virtual Result<std::optional<ReceivedMessage>> receive(std::chrono::milliseconds limit) = 0;
};

}  // namespace plait::jit
