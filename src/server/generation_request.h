// A generation request after parsing, and how its answer is written: what the three APIs give to the common machinery.
//
// The format belongs to one request and is used on the loop thread only.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "server/answer_text.h"
#include "server/api_context.h"
#include "server/api_error.h"
#include "server/client_sequence.h"
#include "server/request_fields.h"
#include "server/sampling_fields.h"

namespace plait {

using Sequences = std::span<const std::unique_ptr<ClientSequence>>;

class ResponseFormat {
 public:
  virtual ~ResponseFormat() = default;
  // Appends the server-sent events for what is fresh in sequence `index`; maybe none.
  virtual void stream_update(Sequences sequences, size_t index, AnswerText& events) = 0;
  // Appends what comes after the last sequence finished (usage), without the final [DONE].
  virtual void stream_end(Sequences sequences, AnswerText& events) = 0;
  // The whole answer.
  virtual AnswerText body(Sequences sequences) = 0;
};

struct GenerationRequest {
  std::vector<SequenceRequest> sequences;
  bool stream = false;
  std::unique_ptr<ResponseFormat> format;
};

// SGLang's routed_dp_rank (formerly data_parallel_rank): the replica that is to run the request.
std::optional<size_t> read_replica(const ApiContext& context, RequestFields& fields);

// Adds the n samples of one prompt. `prototype` has the prompt and what is wanted besides the tokens; each sample gets
// its own seed and, if the prototype has one, its own rid ("<rid>_<sample>"). 400 if the length or a total is beyond a
// limit.
ApiStatus add_samples(const ApiContext& context, const SamplingChoice& choice,
                      std::optional<int64_t> default_max_new_tokens, SequenceRequest prototype,
                      GenerationRequest& generation);

}  // namespace plait
