// What the hosts of one engine tell each other, as values; host_channel.h carries them.
//
// Every host makes the same padded step from the same order, so no count is ever decided twice. Each function decode_*
// takes the bytes of one message and refuses (kCorrupt) anything else. Values only.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "engine/engine.h"
#include "engine/sampler.h"
#include "engine/start_records.h"
#include "model/step.h"

namespace plait {

// A SamplingRow that owns what it refers to. Histories travel only where a penalty needs them: with every step of long
// sequences they would be most of its bytes.
struct OwnedSamplingRow {
  std::optional<SamplingParams> params;
  std::vector<int32_t> prompt_ids;
  std::vector<int32_t> output_ids;
  int32_t newest_id = kNoToken;
  int64_t output_index = 0;
  std::vector<int32_t> end_ids;
  bool want_logprob = false;
  int32_t top_logprobs = 0;
  int32_t target_id = -1;
  std::vector<int32_t> logprob_ids;

  static OwnedSamplingRow of(const SamplingRow& row);
  SamplingRow view() const;  // refers to this
};

// From the first host to each other one.
struct HostOrder {
  enum class Kind : uint8_t {
    kStep,
    kPhase,         // of the start: what the first host goes on to
    kReport,        // whether this host is ready, once all steps before are done
    kArmDeadlines,  // all hosts are
    kEnd,
  };
  Kind kind = Kind::kStep;
  StartPhase phase = StartPhase::kServing;          // of kPhase
  std::vector<Step> of_dp_ranks;                    // [dp ranks]
  std::vector<std::vector<OwnedSamplingRow>> rows;  // [dp ranks][its logit rows]; empty if sampled on another host
};

// Back, from a host that sampled.
using SampledRows = std::vector<std::vector<SampledToken>>;  // [dp ranks]; empty: sampled elsewhere

// How the start of a host went, and the verdict of the first host about all.
struct StartReport {
  int64_t kv_pages = 0;  // that it has memory for; of the verdict: that all have
  std::optional<Error> failure;
};

std::string encode(const HostOrder& order);
std::string encode(const SampledRows& sampled);
std::string encode(const StartReport& report);
Result<HostOrder> decode_order(std::string_view bytes);
Result<SampledRows> decode_sampled(std::string_view bytes);
Result<StartReport> decode_start_report(std::string_view bytes);

}  // namespace plait
