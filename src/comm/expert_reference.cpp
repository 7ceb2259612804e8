#include "comm/expert_reference.h"

#include <algorithm>

#include "comm/expert_rows.h"

namespace plait::comm {

void reference_exchange(const ExpertExchangeOptions& options, ConstRows tokens, std::span<const int32_t> experts,
                        std::span<const float> weights, const ExpertFunction& expert, Rows out) {
  const int64_t hidden = options.hidden;
  std::vector<std::byte> travelled(static_cast<size_t>(hidden) * sizeof(float));
  std::vector<float> scales(static_cast<size_t>(scale_groups(options.payload, hidden)));
  std::vector<float> row(static_cast<size_t>(hidden)), y(row.size());
  for (int64_t token = 0; token < tokens.rows; ++token) {
    encode_row(options.payload, hidden, tokens.row(token), travelled.data(), scales.data());
    decode_row(options.payload, hidden, travelled.data(), scales.data(), row.data());
    std::fill_n(out.row(token), hidden, 0.0F);
    for (int k = 0; k < options.top_k; ++k) {
      const auto choice = static_cast<size_t>(token * options.top_k + k);
      if (experts[choice] < 0) continue;
      expert(experts[choice], row.data(), y.data());
      encode_row(options.result_payload, hidden, y.data(), travelled.data(), nullptr);
      decode_row(options.result_payload, hidden, travelled.data(), nullptr, y.data());
      for (int64_t i = 0; i < hidden; ++i) out.row(token)[i] += weights[choice] * y[static_cast<size_t>(i)];
    }
  }
}

}  // namespace plait::comm
