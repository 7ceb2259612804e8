#include "server/output_sender.h"

#include "base/launch_region.h"
#include "base/log.h"
#include "server/messages.h"

namespace plait {
namespace {

constexpr size_t kDirectBytes = 128 << 10;  // sent on the scheduler's thread
constexpr size_t kFrameBytes = 1 << 20;     // about the most in a frame
constexpr size_t kMostQueuedBytes = 256 << 20;

size_t logprob_bytes(const std::vector<TokenLogprob>& logprobs) {
  return logprobs.size() * sizeof(TokenLogprob);
}

// About what they take in a frame.
size_t bytes_of(const RequestOutput& output) {
  size_t bytes = sizeof(RequestOutput) + output.routed_experts.ids.size();
  for (const OutputToken& token : output.tokens)
    bytes += sizeof(OutputToken) + logprob_bytes(token.top) + logprob_bytes(token.requested);
  for (const PromptLogprob& position : output.prompt_logprobs)
    bytes += sizeof(PromptLogprob) + logprob_bytes(position.top) + logprob_bytes(position.requested);
  return bytes;
}

size_t bytes_of(const std::vector<RequestOutput>& outputs) {
  size_t bytes = 0;
  for (const RequestOutput& output : outputs) bytes += bytes_of(output);
  return bytes;
}

}  // namespace

std::vector<RequestOutput> in_pieces(std::vector<RequestOutput>&& outputs, size_t most_bytes) {
  std::vector<RequestOutput> pieces;
  for (RequestOutput& output : outputs) {
    RoutedRows& rows = output.routed_experts;
    if (rows.ids.size() > most_bytes) {
      const size_t row_bytes = rows.ids.size() / static_cast<size_t>(rows.count);
      const size_t each = std::max<size_t>(most_bytes / row_bytes, 1);
      size_t begin = 0;
      for (; static_cast<size_t>(rows.count) - begin > each; begin += each) {
        RequestOutput& piece = pieces.emplace_back();
        piece.id = output.id;
        piece.cached_tokens = output.cached_tokens;
        piece.routed_experts = {static_cast<int64_t>(each), rows.ids.substr(begin * row_bytes, each * row_bytes)};
      }
      rows.ids.erase(0, begin * row_bytes);
      rows.count -= static_cast<int64_t>(begin);
    }
    pieces.push_back(std::move(output));
  }
  return pieces;
}

OutputSender::OutputSender(FrameSocket& socket, std::function<void()> on_lost)
    : socket_(socket), on_lost_(std::move(on_lost)), thread_([this] { work(); }) {}

OutputSender::~OutputSender() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void OutputSender::send(std::vector<RequestOutput>&& outputs, const SchedulerLoad& load) {
  Batch batch{std::move(outputs), load};
  batch.bytes = bytes_of(batch.outputs);
  std::unique_lock lock(mutex_);
  if (queue_.empty() && batch.bytes <= kDirectBytes) {
    lock.unlock();
    send_now(std::move(batch));
    return;
  }
  about_to_block("waiting for the front end to read");
  changed_.wait(lock, [this] { return queued_bytes_ <= kMostQueuedBytes; });
  queued_bytes_ += batch.bytes;
  queue_.push_back(std::move(batch));
  changed_.notify_all();
}

void OutputSender::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    if (queue_.empty()) return;
    Batch& batch = queue_.front();
    const size_t bytes = batch.bytes;
    lock.unlock();
    send_now(std::move(batch));
    lock.lock();
    queue_.pop_front();
    queued_bytes_ -= bytes;
    changed_.notify_all();
  }
}

// Outputs of one request always fit a frame (RequestLimits, in_pieces).
void OutputSender::send_now(Batch&& batch) {
  OutputsMessage message{{}, batch.load};
  size_t bytes = 0;
  const auto flush = [&] {
    if (socket_.send(encode(message)).has_error()) on_lost_();
    message.outputs.clear();
    bytes = 0;
  };
  for (RequestOutput& output : in_pieces(std::move(batch.outputs), kFrameBytes)) {
    const size_t more = bytes_of(output);
    if (!message.outputs.empty() && bytes + more > kFrameBytes) flush();
    bytes += more;
    message.outputs.push_back(std::move(output));
  }
  if (!message.outputs.empty()) flush();
}

}  // namespace plait
