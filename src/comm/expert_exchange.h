// Tokens to the ranks of their experts and results back (dispatch and combine), for one rank of an expert group.
//
// Belongs to the rank's thread, like its Communicator, on which nothing else may be called between a start and its
// finish. Expert e of `experts` lives on rank e / (experts / ranks). Each half is two calls, so that the rank can
// compute between them; every rank makes all four calls per layer, also without tokens. Two forms of the same exchange:
//   normal       for prefill: exactly the rows that came, each expert's rows begin at a multiple of `row_alignment`
//   low latency  for decode: a static buffer [local experts, capacity_tokens * ranks, hidden] and a count per expert;
//                more than capacity_tokens tokens are refused before anything moves
// A token travels once to each rank that has experts for it. Rows of an expert are in order of source rank, then token.
// Results come back one row per (token, expert); router weights are applied here, once: out = sum over choices k,
// ascending, of weight[k] * result[k], bit for bit what one rank alone computes (expert_reference.h).
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "comm/communicator.h"
#include "tensor/buffer.h"
#include "tensor/dtype.h"
#include "tensor/matrix.h"

namespace plait::comm {

enum class ExchangeForm { kNormal, kLowLatency };

struct ExpertExchangeOptions {
  int64_t hidden = 0;
  int experts = 0;                     // of the whole group; a multiple of its size
  int top_k = 0;                       // choices per token
  DType payload = DType::kBF16;        // of tokens: kF32, kBF16, or kF8E4M3 with a scale per token and 128 values
  DType result_payload = DType::kF32;  // of results: kF32 or kBF16
  int64_t row_alignment = 1;           // of the normal form
  int64_t capacity_tokens = 0;         // of the low-latency form, per rank; 0: that form is not used
};

// The largest step that can come.
struct LargestStep {
  int64_t requests_per_rank = 0;
  int64_t tokens_per_request = 1;  // with drafts
};
// Whether every step fits the low-latency form. To be asked before serving; kInvalid says what to change.
Status check_capacity(const ExpertExchangeOptions& options, const LargestStep& step);
// Static memory of the low-latency form on each of `ranks` ranks.
size_t low_latency_bytes(const ExpertExchangeOptions& options, int ranks);

struct ExchangeHooks {
  std::function<void()> before_dispatch, after_dispatch, before_combine, after_combine;
};

// The tokens of this rank's experts, until finish_combine.
struct DispatchedRows {
  DType payload = DType::kBF16;
  int64_t hidden = 0;
  int64_t rows = 0;                           // of the buffer, unused ones included; those have no defined content
  const std::byte* data = nullptr;            // [rows, hidden] of payload
  const float* scales = nullptr;              // [rows, ceil(hidden / 128)] of kF8E4M3
  std::span<const int64_t> expert_first_row;  // [local experts]
  std::span<const int64_t> expert_rows;       // [local experts], true counts

  void decode(int64_t row, float* out) const;  // out: [hidden]
};

class ExpertExchange {
 public:
  // The communicator outlives the exchange. kInvalid: says what is impossible.
  static Result<std::unique_ptr<ExpertExchange>> make(const ExpertExchangeOptions& options, Communicator& comm,
                                                      ExchangeHooks hooks = {});
  ~ExpertExchange();

  // tokens [count, hidden]; experts [count, top_k], -1 for no expert. Both may change once this has returned.
  Status start_dispatch(std::string_view name, ExchangeForm form, ConstRows tokens, std::span<const int32_t> experts);
  Result<DispatchedRows> finish_dispatch();
  // results: expert e's begin at row first_row[e], in the order of its DispatchedRows; rows between experts are not
  // read. May change once this has returned.
  Status start_combine(std::string_view name, ConstRows results, std::span<const int64_t> first_row);
  // weights [count, top_k]; out [count, hidden], written whole.
  Status finish_combine(std::span<const float> weights, Rows out);

 private:
  enum class Stage { kIdle, kDispatching, kDispatched, kCombining };
  // Where the result of one choice comes from; of a choice that repeats another one of its token, the same place.
  struct Source {
    int32_t rank = -1;
    int32_t entry = 0;
  };
  // A row that came here.
  struct Received {
    int32_t expert = 0;  // of this rank
    int64_t row = 0;     // among the expert's
  };
  struct Outgoing;

  ExpertExchange(const ExpertExchangeOptions& options, Communicator& comm, ExchangeHooks hooks);
  Status expect(Stage stage, std::string_view call) const;
  Error refuse(Error error);
  Status check_tokens(std::string_view name, ExchangeForm form, ConstRows tokens, std::span<const int32_t> experts);
  void plan_messages(ConstRows tokens, std::span<const int32_t> experts);
  void write_messages(ConstRows tokens);
  Status read_counts(std::span<const Communicator::Piece> pieces);
  void place_rows(std::span<const Communicator::Piece> pieces);
  Status check_results(std::string_view name, ConstRows results, std::span<const int64_t> first_row);
  Error abandon(Error error);

  const ExpertExchangeOptions options_;
  Communicator& comm_;
  const ExchangeHooks hooks_;
  const int local_experts_;
  Stage stage_ = Stage::kIdle;
  ExchangeForm form_ = ExchangeForm::kNormal;

  std::vector<Source> sources_;      // [count, top_k]
  std::vector<Outgoing> outgoing_;   // [ranks]
  std::vector<int64_t> send_bytes_;  // [ranks]
  Buffer send_;
  std::vector<std::vector<Received>> entries_;  // [ranks][entries]
  std::vector<int64_t> first_row_, row_count_;  // [local experts]
  int64_t rows_ = 0;
  Buffer received_, scales_;
};

}  // namespace plait::comm
