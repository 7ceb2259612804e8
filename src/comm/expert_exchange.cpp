#include "comm/expert_exchange.h"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include "comm/expert_rows.h"

namespace plait::comm {
namespace {

constexpr int64_t kAlignment = 64;

int64_t align(int64_t value, int64_t alignment = kAlignment) {
  return (value + alignment - 1) / alignment * alignment;
}

// One message of a dispatch: this, the entries, the rows, their scales, each part aligned.
struct MessageHeader {
  int32_t rows = 0;
  int32_t entries = 0;
};
struct Entry {
  int32_t row = 0;     // of this message
  int32_t expert = 0;  // of the receiver
};

struct MessageLayout {
  int64_t entries_at, rows_at, scales_at, bytes;
};
MessageLayout layout_of(const ExpertExchangeOptions& options, int64_t rows, int64_t entries) {
  MessageLayout layout{};
  layout.entries_at = align(sizeof(MessageHeader));
  layout.rows_at = layout.entries_at + align(entries * static_cast<int64_t>(sizeof(Entry)));
  layout.scales_at = layout.rows_at + align(rows * options.hidden * size_of(options.payload));
  layout.bytes =
      layout.scales_at + align(rows * scale_groups(options.payload, options.hidden) * int64_t{sizeof(float)});
  return layout;
}

// Keeps the contents only if nothing grows.
void reserve(Buffer& buffer, int64_t bytes) {
  if (static_cast<size_t>(bytes) > buffer.size_bytes()) buffer = Buffer(static_cast<size_t>(bytes));
}

struct LowLatencySizes {
  int64_t send, received, scales;
};
LowLatencySizes low_latency_sizes(const ExpertExchangeOptions& options, int ranks) {
  const int64_t capacity = options.capacity_tokens;
  const int64_t rows_sent = capacity * std::min(options.top_k, ranks);
  const int64_t entries = capacity * options.top_k;
  // Each of the parts may be rounded up once per message.
  const int64_t dispatch = layout_of(options, rows_sent, entries).bytes + 5 * kAlignment * ranks;
  const int64_t received_rows = options.experts / ranks * capacity * ranks;
  const int64_t combine = received_rows * options.hidden * size_of(options.result_payload);
  return {std::max(dispatch, combine), received_rows * options.hidden * size_of(options.payload),
          received_rows * scale_groups(options.payload, options.hidden) * int64_t{sizeof(float)}};
}

void call(const std::function<void()>& hook) {
  if (hook) hook();
}

}  // namespace

struct ExpertExchange::Outgoing {
  std::vector<int64_t> tokens;  // one per row
  std::vector<Entry> entries;
  int64_t offset = 0;  // in send_
};

Status check_capacity(const ExpertExchangeOptions& options, const LargestStep& step) {
  const int64_t tokens = step.requests_per_rank * step.tokens_per_request;
  if (tokens <= options.capacity_tokens) return {};
  return invalid(
      fmt::format("low-latency expert exchange: a step can have {} tokens on a rank ({} requests of {} tokens), its "
                  "capacity is {}; raise the capacity or lower --max-running-requests",
                  tokens, step.requests_per_rank, step.tokens_per_request, options.capacity_tokens));
}

size_t low_latency_bytes(const ExpertExchangeOptions& options, int ranks) {
  if (options.capacity_tokens == 0) return 0;
  const LowLatencySizes sizes = low_latency_sizes(options, ranks);
  return static_cast<size_t>(sizes.send + sizes.received + sizes.scales);
}

void DispatchedRows::decode(int64_t row, float* out) const {
  decode_row(payload, hidden, data + row * hidden * size_of(payload),
             scales == nullptr ? nullptr : scales + row * scale_groups(payload, hidden), out);
}

Result<std::unique_ptr<ExpertExchange>> ExpertExchange::make(const ExpertExchangeOptions& options, Communicator& comm,
                                                             ExchangeHooks hooks) {
  const auto wrong = [](std::string what) { return invalid("expert exchange: " + what); };
  if (options.hidden < 1 || options.experts < 1 || options.top_k < 1 || options.row_alignment < 1 ||
      options.capacity_tokens < 0)
    return wrong("sizes must be positive");
  if (options.experts % comm.size() != 0)
    return wrong(fmt::format("{} experts cannot be spread evenly over {} ranks", options.experts, comm.size()));
  if (options.payload != DType::kF32 && options.payload != DType::kBF16 && options.payload != DType::kF8E4M3)
    return wrong(fmt::format("tokens travel as F32, BF16 or F8_E4M3, not as {}", name_of(options.payload)));
  if (options.result_payload != DType::kF32 && options.result_payload != DType::kBF16)
    return wrong(fmt::format("results travel as F32 or BF16, not as {}", name_of(options.result_payload)));
  return std::unique_ptr<ExpertExchange>(new ExpertExchange(options, comm, std::move(hooks)));
}

ExpertExchange::ExpertExchange(const ExpertExchangeOptions& options, Communicator& comm, ExchangeHooks hooks)
    : options_(options), comm_(comm), hooks_(std::move(hooks)), local_experts_(options.experts / comm.size()) {
  const auto ranks = static_cast<size_t>(comm.size());
  outgoing_.resize(ranks);
  send_bytes_.resize(ranks);
  entries_.resize(ranks);
  first_row_.resize(static_cast<size_t>(local_experts_));
  row_count_.resize(static_cast<size_t>(local_experts_));
  if (options_.capacity_tokens == 0) return;
  const LowLatencySizes sizes = low_latency_sizes(options_, comm.size());
  reserve(send_, sizes.send);
  reserve(received_, sizes.received);
  reserve(scales_, sizes.scales);
}

ExpertExchange::~ExpertExchange() {
  if (stage_ == Stage::kDispatching || stage_ == Stage::kCombining)
    comm_.all_to_all_abandon("a rank ended in the middle of an expert exchange");
}

Status ExpertExchange::expect(Stage stage, std::string_view call) const {
  static constexpr std::array<std::string_view, 4> kNext = {"start_dispatch", "finish_dispatch", "start_combine",
                                                            "finish_combine"};
  if (stage_ == stage) return {};
  return invalid(fmt::format("expert exchange: {} was called, the next call is {}; two batches need two exchanges",
                             call, kNext[static_cast<size_t>(stage_)]));
}

// The peers would wait for a dispatch that never comes.
Error ExpertExchange::refuse(Error error) {
  comm_.cancel(error.message);
  return error;
}

Status ExpertExchange::check_tokens(std::string_view name, ExchangeForm form, ConstRows tokens,
                                    std::span<const int32_t> experts) {
  const auto wrong = [&](std::string what) {
    return refuse(
        invalid(fmt::format("expert exchange '{}' on rank {}: {}", name, comm_.world_rank(comm_.rank()), what)));
  };
  if (form == ExchangeForm::kLowLatency && tokens.rows > options_.capacity_tokens)
    return wrong(fmt::format("{} tokens exceed the low-latency capacity of {}", tokens.rows, options_.capacity_tokens));
  if (tokens.rows > 0 && tokens.cols != options_.hidden)
    return wrong(fmt::format("tokens have {} values, not {}", tokens.cols, options_.hidden));
  if (experts.size() != static_cast<size_t>(tokens.rows * options_.top_k))
    return wrong(
        fmt::format("{} expert ids for {} tokens with {} choices", experts.size(), tokens.rows, options_.top_k));
  for (const int32_t expert : experts)
    if (expert < -1 || expert >= options_.experts)
      return wrong(fmt::format("expert id {} of {} experts", expert, options_.experts));
  return {};
}

// Which tokens go to which rank, for which experts, and from where each choice's result will come.
void ExpertExchange::plan_messages(ConstRows tokens, std::span<const int32_t> experts) {
  for (Outgoing& message : outgoing_) {
    message.tokens.clear();
    message.entries.clear();
  }
  sources_.assign(experts.size(), {});
  for (int64_t token = 0; token < tokens.rows; ++token) {
    const auto choices =
        experts.subspan(static_cast<size_t>(token * options_.top_k), static_cast<size_t>(options_.top_k));
    Source* const sources = sources_.data() + token * options_.top_k;
    for (size_t k = 0; k < choices.size(); ++k) {
      if (choices[k] < 0) continue;
      const size_t same = static_cast<size_t>(std::find(choices.begin(), choices.end(), choices[k]) - choices.begin());
      if (same < k) {
        sources[k] = sources[same];
        continue;
      }
      const int32_t rank = choices[k] / local_experts_;
      Outgoing& message = outgoing_[static_cast<size_t>(rank)];
      if (message.tokens.empty() || message.tokens.back() != token) message.tokens.push_back(token);
      sources[k] = {rank, static_cast<int32_t>(message.entries.size())};
      message.entries.push_back({static_cast<int32_t>(message.tokens.size()) - 1, choices[k] % local_experts_});
    }
  }
}

void ExpertExchange::write_messages(ConstRows tokens) {
  int64_t total_bytes = 0;
  for (size_t rank = 0; rank < outgoing_.size(); ++rank) {
    Outgoing& message = outgoing_[rank];
    message.offset = total_bytes;
    send_bytes_[rank] =
        layout_of(options_, static_cast<int64_t>(message.tokens.size()), static_cast<int64_t>(message.entries.size()))
            .bytes;
    total_bytes += send_bytes_[rank];
  }
  reserve(send_, total_bytes);
  const int64_t row_bytes = options_.hidden * size_of(options_.payload);
  const int64_t groups = scale_groups(options_.payload, options_.hidden);
  for (const Outgoing& message : outgoing_) {
    const MessageHeader header{static_cast<int32_t>(message.tokens.size()),
                               static_cast<int32_t>(message.entries.size())};
    const MessageLayout layout = layout_of(options_, header.rows, header.entries);
    std::byte* const at = send_.as<std::byte>() + message.offset;
    std::memcpy(at, &header, sizeof(header));
    if (header.entries > 0)
      std::memcpy(at + layout.entries_at, message.entries.data(), message.entries.size() * sizeof(Entry));
    auto* const scales = reinterpret_cast<float*>(at + layout.scales_at);
    for (int64_t row = 0; row < header.rows; ++row)
      encode_row(options_.payload, options_.hidden, tokens.row(message.tokens[static_cast<size_t>(row)]),
                 at + layout.rows_at + row * row_bytes, scales + row * groups);
  }
}

// Nobody can go on; returns when no other rank reads this one's messages.
Error ExpertExchange::abandon(Error error) {
  comm_.all_to_all_abandon(error.message);
  return error;
}

Status ExpertExchange::start_dispatch(std::string_view name, ExchangeForm form, ConstRows tokens,
                                      std::span<const int32_t> experts) {
  PLAIT_RETURN_IF_ERROR(expect(Stage::kIdle, "start_dispatch"));
  PLAIT_RETURN_IF_ERROR(check_tokens(name, form, tokens, experts));
  call(hooks_.before_dispatch);
  form_ = form;
  plan_messages(tokens, experts);
  write_messages(tokens);
  PLAIT_RETURN_IF_ERROR(comm_.all_to_all_start(name, send_.data(), send_bytes_, DType::kU8));
  stage_ = Stage::kDispatching;
  return {};
}

// Fills entries_, row_count_, first_row_ and rows_.
Status ExpertExchange::read_counts(std::span<const Communicator::Piece> pieces) {
  std::fill(row_count_.begin(), row_count_.end(), 0);
  for (size_t rank = 0; rank < pieces.size(); ++rank) {
    MessageHeader header;
    const Communicator::Piece& piece = pieces[rank];
    const bool has_header = piece.count >= static_cast<int64_t>(sizeof(header));
    if (has_header) std::memcpy(&header, piece.data, sizeof(header));
    if (!has_header || header.rows < 0 || header.entries < 0 ||
        layout_of(options_, header.rows, header.entries).bytes != piece.count)
      return corrupt(fmt::format("expert exchange: rank {} sent a message of {} bytes that has another format",
                                 comm_.world_rank(static_cast<int>(rank)), piece.count));
    const auto* entries =
        reinterpret_cast<const Entry*>(piece.data + layout_of(options_, header.rows, header.entries).entries_at);
    auto& received = entries_[rank];
    received.resize(static_cast<size_t>(header.entries));
    for (size_t i = 0; i < received.size(); ++i) {
      const Entry& entry = entries[i];
      if (entry.expert < 0 || entry.expert >= local_experts_ || entry.row < 0 || entry.row >= header.rows)
        return corrupt(fmt::format("expert exchange: rank {} sent an entry for expert {} that does not live here",
                                   comm_.world_rank(static_cast<int>(rank)), entry.expert));
      received[i] = {entry.expert, row_count_[static_cast<size_t>(entry.expert)]++};
    }
  }
  const int64_t room = options_.capacity_tokens * comm_.size();
  rows_ = 0;
  for (size_t expert = 0; expert < row_count_.size(); ++expert) {
    first_row_[expert] = rows_;
    if (form_ == ExchangeForm::kNormal) {
      rows_ += align(row_count_[expert], options_.row_alignment);
      continue;
    }
    if (row_count_[expert] > room)
      return corrupt(fmt::format("expert exchange: more than {} rows for one expert", room));
    rows_ += room;
  }
  return {};
}

void ExpertExchange::place_rows(std::span<const Communicator::Piece> pieces) {
  const int64_t row_bytes = options_.hidden * size_of(options_.payload);
  const int64_t groups = scale_groups(options_.payload, options_.hidden);
  reserve(received_, rows_ * row_bytes);
  reserve(scales_, rows_ * groups * int64_t{sizeof(float)});
  for (size_t rank = 0; rank < pieces.size(); ++rank) {
    MessageHeader header;
    std::memcpy(&header, pieces[rank].data, sizeof(header));
    const MessageLayout layout = layout_of(options_, header.rows, header.entries);
    const std::byte* const at = pieces[rank].data;
    const auto* entries = reinterpret_cast<const Entry*>(at + layout.entries_at);
    const auto* scales = reinterpret_cast<const float*>(at + layout.scales_at);
    for (size_t i = 0; i < entries_[rank].size(); ++i) {
      const Received& received = entries_[rank][i];
      const int64_t to = first_row_[static_cast<size_t>(received.expert)] + received.row;
      std::memcpy(received_.as<std::byte>() + to * row_bytes, at + layout.rows_at + entries[i].row * row_bytes,
                  static_cast<size_t>(row_bytes));
      std::copy_n(scales + entries[i].row * groups, groups, scales_.as<float>() + to * groups);
    }
  }
}

Result<DispatchedRows> ExpertExchange::finish_dispatch() {
  PLAIT_RETURN_IF_ERROR(expect(Stage::kDispatching, "finish_dispatch"));
  PLAIT_ASSIGN_OR_RETURN(const auto pieces, comm_.all_to_all_pieces());
  auto counted = read_counts(pieces);
  if (counted.has_error()) return abandon(std::move(counted).error());
  place_rows(pieces);
  PLAIT_RETURN_IF_ERROR(comm_.all_to_all_finish());
  stage_ = Stage::kDispatched;
  call(hooks_.after_dispatch);
  DispatchedRows rows;
  rows.payload = options_.payload;
  rows.hidden = options_.hidden;
  rows.rows = rows_;
  rows.data = received_.as<std::byte>();
  rows.scales = options_.payload == DType::kF8E4M3 ? scales_.as<float>() : nullptr;
  rows.expert_first_row = first_row_;
  rows.expert_rows = row_count_;
  return rows;
}

Status ExpertExchange::check_results(std::string_view name, ConstRows results, std::span<const int64_t> first_row) {
  const auto wrong = [&](std::string what) {
    return refuse(
        invalid(fmt::format("expert exchange '{}' on rank {}: {}", name, comm_.world_rank(comm_.rank()), what)));
  };
  if (first_row.size() != row_count_.size())
    return wrong(fmt::format("results of {} experts, not of {}", first_row.size(), row_count_.size()));
  for (size_t expert = 0; expert < first_row.size(); ++expert) {
    const int64_t begin = first_row[expert], end = begin + row_count_[expert];
    if (begin == end) continue;
    if (results.cols != options_.hidden || begin < 0 || end > results.rows)
      return wrong(fmt::format("results are [{}, {}], expert {}'s rows {} to {} of {} values are not in them",
                               results.rows, results.cols, expert, begin, end, options_.hidden));
  }
  return {};
}

Status ExpertExchange::start_combine(std::string_view name, ConstRows results, std::span<const int64_t> first_row) {
  PLAIT_RETURN_IF_ERROR(expect(Stage::kDispatched, "start_combine"));
  PLAIT_RETURN_IF_ERROR(check_results(name, results, first_row));
  call(hooks_.before_combine);
  const int64_t row_bytes = options_.hidden * size_of(options_.result_payload);
  int64_t total_bytes = 0;
  for (size_t rank = 0; rank < entries_.size(); ++rank) {
    send_bytes_[rank] = static_cast<int64_t>(entries_[rank].size()) * row_bytes;
    total_bytes += send_bytes_[rank];
  }
  reserve(send_, total_bytes);
  auto* to = send_.as<std::byte>();
  for (const auto& entries : entries_) {
    for (const auto& [expert, row] : entries) {
      encode_row(options_.result_payload, options_.hidden, results.row(first_row[static_cast<size_t>(expert)] + row),
                 to, nullptr);
      to += row_bytes;
    }
  }
  PLAIT_RETURN_IF_ERROR(comm_.all_to_all_start(name, send_.data(), send_bytes_, DType::kU8));
  stage_ = Stage::kCombining;
  return {};
}

Status ExpertExchange::finish_combine(std::span<const float> weights, Rows out) {
  PLAIT_RETURN_IF_ERROR(expect(Stage::kCombining, "finish_combine"));
  const auto tokens = static_cast<int64_t>(sources_.size()) / options_.top_k;
  if (weights.size() != sources_.size() || out.rows != tokens || (tokens > 0 && out.cols != options_.hidden))
    return abandon(invalid(
        fmt::format("expert exchange on rank {}: {} weights and an output [{}, {}] for {} tokens of {} choices",
                    comm_.world_rank(comm_.rank()), weights.size(), out.rows, out.cols, tokens, options_.top_k)));
  PLAIT_ASSIGN_OR_RETURN(const auto pieces, comm_.all_to_all_pieces());
  const int64_t row_bytes = options_.hidden * size_of(options_.result_payload);
  for (size_t rank = 0; rank < pieces.size(); ++rank)
    if (pieces[rank].count != static_cast<int64_t>(outgoing_[rank].entries.size()) * row_bytes)
      return abandon(corrupt(fmt::format("expert exchange: rank {} returned {} bytes for {} rows",
                                         comm_.world_rank(static_cast<int>(rank)), pieces[rank].count,
                                         outgoing_[rank].entries.size())));
  std::vector<float> widened(options_.result_payload == DType::kF32 ? 0 : static_cast<size_t>(options_.hidden));
  for (int64_t token = 0; token < tokens; ++token) {
    float* const sum = out.row(token);
    std::fill_n(sum, options_.hidden, 0.0F);
    for (int k = 0; k < options_.top_k; ++k) {
      const auto choice = static_cast<size_t>(token * options_.top_k + k);
      const Source source = sources_[choice];
      if (source.rank < 0) continue;
      const std::byte* const data = pieces[static_cast<size_t>(source.rank)].data + source.entry * row_bytes;
      const float* y = reinterpret_cast<const float*>(data);
      if (!widened.empty()) {
        decode_row(options_.result_payload, options_.hidden, data, nullptr, widened.data());
        y = widened.data();
      }
      add_weighted_row(options_.hidden, weights[choice], y, sum);
    }
  }
  PLAIT_RETURN_IF_ERROR(comm_.all_to_all_finish());
  stage_ = Stage::kIdle;
  call(hooks_.after_combine);
  return {};
}

}  // namespace plait::comm
