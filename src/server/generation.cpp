#include "server/generation.h"

#include "base/log.h"
#include "server/json_text.h"

namespace plait {

Generation::Generation(FrontEnd& front_end, std::shared_ptr<Exchange> exchange, GenerationRequest request,
                       ClientSequence::Clock::time_point arrived_at)
    : front_end_(front_end),
      exchange_(std::move(exchange)),
      format_(std::move(request.format)),
      last_token_at_(request.sequences.size()),
      unfinished_(request.sequences.size()),
      stream_(request.stream) {
  sequences_.reserve(request.sequences.size());
  for (SequenceRequest& sequence : request.sequences) {
    sequences_.push_back(
        std::make_unique<ClientSequence>(std::move(sequence), front_end.context().tokenizer, arrived_at));
  }
}

void Generation::start(FrontEnd& front_end, std::shared_ptr<Exchange> exchange, GenerationRequest request,
                       ClientSequence::Clock::time_point arrived_at) {
  if (exchange->abandoned()) return;
  const auto generation = std::make_shared<Generation>(front_end, exchange, std::move(request), arrived_at);
  if (const ApiStatus submitted = front_end.submit(generation->sequences_, generation); submitted.has_error()) {
    exchange->respond(to_response(submitted.error()));
    return;
  }
  exchange->on_disconnect([weak = std::weak_ptr(generation)] {
    const auto self = weak.lock();
    if (!self || self->over_) return;
    if (self->front_end_.options().log_requests) log::info("a client left; its request is aborted");
    self->abandon_rest();
  });
}

void Generation::on_output(size_t index, RequestOutput&& output) {
  ClientSequence& sequence = *sequences_[index];
  if (over_ || sequence.finish()) return;
  sequence.accept(std::move(output));
  observe(sequence, index);
  if (sequence.ended_before_engine()) front_end_.abandon(sequence.id());
  if (sequence.failed()) {
    fail(to_api_error(Error{sequence.finish()->error, sequence.finish()->message}));
    return;
  }
  if (stream_) write_stream(index);
  if (sequence.finish() && --unfinished_ == 0) complete();
}

void Generation::observe(const ClientSequence& sequence, size_t index) {
  const auto now = ClientSequence::Clock::now();
  const auto fresh = static_cast<int64_t>(sequence.fresh_tokens().size());
  Metrics& metrics = front_end_.metrics();
  if (fresh > 0) {
    metrics.generated(fresh);
    if (fresh == static_cast<int64_t>(sequence.tokens().size())) {
      metrics.first_token(sequence.seconds_since_arrival(now), static_cast<int64_t>(sequence.prompt_tokens()),
                          sequence.cached_tokens());
    } else {
      metrics.more_tokens(fresh, std::chrono::duration<double>(now - last_token_at_[index]).count());
    }
    last_token_at_[index] = now;
  }
  if (!sequence.finish()) return;
  const bool aborted = sequence.finish()->kind == FinishKind::kAbort;
  metrics.finished(sequence.seconds_since_arrival(now), aborted);
  if (front_end_.options().log_requests) {
    log::info("finish: rid={} prompt_tokens={} completion_tokens={} cached_tokens={} aborted={} seconds={:.3f}",
              sequence.request().rid, sequence.prompt_tokens(), sequence.tokens().size(), sequence.cached_tokens(),
              aborted, sequence.seconds_since_arrival(now));
  }
}

void Generation::write_stream(size_t index) {
  events_.clear();
  format_->stream_update(sequences_, index, events_);
  if (events_.text.empty()) return;
  // Not before the first event: until then an error can still be answered with its own status.
  if (!std::exchange(stream_begun_, true)) exchange_->begin_stream("text/event-stream; charset=utf-8");
  exchange_->write(events_);
}

void Generation::complete() {
  over_ = true;
  if (!stream_) {
    AnswerText body = format_->body(sequences_);
    exchange_->respond({.body = std::move(body.text), .long_values = std::move(body.long_values)});
    return;
  }
  events_.clear();
  format_->stream_end(sequences_, events_);
  events_.text += kDoneEvent;
  exchange_->write(events_);
  exchange_->end_stream();
}

void Generation::fail(const ApiError& error) {
  abandon_rest();
  if (!stream_begun_) {
    exchange_->respond(to_response(error));
    return;
  }
  events_.clear();
  append_event(events_.text, to_json(error));
  events_.text += kDoneEvent;
  exchange_->write(events_);
  exchange_->end_stream();
}

void Generation::abandon_rest() {
  over_ = true;
  const auto self = shared_from_this();  // the routes, which are about to go, may hold the last references
  for (const auto& sequence : sequences_) front_end_.abandon(sequence->id());
}

}  // namespace plait
