// KV pages divided among the context ranks of a data-parallel rank (--prefill-cp-kv-sharded).
//
// Page p lives on member p mod cp, at place p / cp of its pool. To attend, a layer's pages are brought together: the
// members exchange what the step's sequences already have, one layer at a time, into a buffer of one layer; rows that
// the step adds are written there by every member, and each keeps those of its own pages. So a token costs 1/cp of the
// memory, and every step the exchange of its whole context. Belongs to one rank and its thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/error.h"
#include "comm/communicator.h"
#include "model/kv_spec.h"
#include "model/model.h"
#include "model/step.h"
#include "tensor/buffer.h"

namespace plait {

// Pages of `pages` that a member of `members` holds, at most.
constexpr int64_t pages_per_member(int64_t pages, int members) {
  return (pages + members - 1) / members;
}

// Pages that hold tokens from before the step, each once: they are exchanged in every layer.
std::vector<int32_t> pages_with_history(const Step& step, int64_t page_tokens);

class ContextPages {
 public:
  // `own`: the member's part of the pool, whose layers count from `first_layer`; every component has a row per token.
  ContextPages(const KvSpec& spec, const KvMemory& own, int64_t first_layer, int members, int member);

  // The step with page tables of the gathered pages; valid until the next call.
  const Step& begin(const Step& step);
  // Before attention: the history of a layer. Every member calls it, in the same order.
  Status bring(int64_t layer, comm::Communicator& members);
  // After attention: the rows of this step.
  void keep(int64_t layer);

  // Every layer's gathered pages lie at the same place.
  const KvMemory& gathered() const { return gathered_; }

 private:
  // A run of tokens in one page that the step adds and this member keeps.
  struct NewRows {
    int64_t from = 0;  // gathered slot
    int64_t to = 0;    // own slot
    int64_t tokens = 0;
  };
  int64_t page_bytes(size_t component) const;
  std::byte* own_layer(size_t component, int64_t layer) const;

  const KvSpec spec_;
  const KvMemory own_;
  const int64_t first_layer_;
  const int members_;
  const int member_;
  Step step_;
  std::vector<std::vector<int32_t>> history_;  // [member] its pages that hold tokens from before the step, ascending
  std::vector<NewRows> new_rows_;
  std::vector<int64_t> counts_;  // [member] bytes
  KvMemory gathered_;
  std::vector<Buffer> buffers_;  // [component] of gathered_
  Buffer sent_;
};

}  // namespace plait
