#include "tests/layout/toy_model.h"

namespace plait::test {
namespace {

Word mix(Word value) {
  value = (value ^ (value >> 31)) * 0x9e3779b97f4a7c15;
  value = (value ^ (value >> 29)) * 0xbf58476d1ce4e5b9;
  return value ^ (value >> 32);
}

// Differs between stages, layers and parts.
Word salt(int stage, int64_t layer, int part) {
  return (static_cast<Word>(stage) << 40) + (static_cast<Word>(layer) << 20) + static_cast<Word>(part) + 1;
}

Word digest(std::span<const Word> x) {
  Word value = 0;
  for (const Word word : x) value = mix(value + word);
  return value;
}

void add_part(Word value, std::span<Word> y) {
  for (size_t i = 0; i < y.size(); ++i) y[i] += value * (2 * i + 1);
}

enum Stage { kEmbed, kNorm, kProject, kKey, kHead, kDense, kShared, kGate, kExpert, kLogit };

void add_slices(Stage stage, int64_t layer, int base, std::span<const Word> x, Share width, std::span<Word> y) {
  const Word value = digest(x);
  for (int slice = 0; slice < kSlices; ++slice)
    if (width.has(slice)) add_part(mix(value ^ salt(stage, layer, base + slice)), y);
}

}  // namespace

Batch make_batch(int rows, int seed, bool many_logits) {
  Batch batch;
  int sequence = 0, left = 1 + seed % 3;
  for (int row = 0; row < rows; ++row) {
    if (left-- == 0) {
      ++sequence;
      left = static_cast<int>(mix(salt(seed, sequence, 0)) % 23);
    }
    batch.tokens.push_back(static_cast<int>(mix(salt(seed, row, 1)) % 1000));
    batch.sequence.push_back(sequence);
  }
  for (int row = 0; row < rows; ++row) {
    const bool is_last = row + 1 == rows || batch.sequence[row] != batch.sequence[row + 1];
    if (many_logits ? row >= rows / 3 : is_last) batch.logit_rows.push_back(row);
  }
  return batch;
}

void embed(int token, Share table, std::span<Word> y) {
  if (table.has(token % kVocabulary)) add_part(mix(salt(kEmbed, token, 0)), y);
}

void norm(std::span<const Word> x, std::span<Word> y) {
  const Word value = digest(x);
  for (size_t i = 0; i < y.size(); ++i) y[i] = mix(value ^ salt(kNorm, 0, static_cast<int>(i)));
}

void project_latent(int64_t layer, std::span<const Word> x, std::span<Word> y) {
  const Word value = digest(x);
  for (size_t i = 0; i < y.size(); ++i) y[i] = mix(value ^ salt(kProject, layer, static_cast<int>(i)));
}

Word key_of(int64_t layer, std::span<const Word> x) {
  return mix(digest(x) ^ salt(kKey, layer, 0));
}

std::vector<std::array<Word, kHeads>> sum_keys(std::span<const Word> keys, const Batch& batch, Share heads) {
  std::vector<std::array<Word, kHeads>> sums(keys.size());
  for (size_t row = 0; row < keys.size(); ++row) {
    // Padding sees itself only.
    const bool goes_on = row > 0 && row < batch.sequence.size() && batch.sequence[row] == batch.sequence[row - 1];
    for (int head = 0; head < kHeads; ++head)
      if (heads.has(head)) sums[row][head] = (goes_on ? sums[row - 1][head] : 0) + mix(keys[row] + head);
  }
  return sums;
}

void attend(int64_t layer, std::span<const Word> x, const std::array<Word, kHeads>& sums, Share heads,
            std::span<Word> y) {
  const Word value = digest(x);
  for (int head = 0; head < kHeads; ++head)
    if (heads.has(head)) add_part(mix(value ^ salt(kHead, layer, head)) * sums[head], y);
}

void dense_mlp(int64_t layer, std::span<const Word> x, Share width, std::span<Word> y) {
  add_slices(kDense, layer, 0, x, width, y);
}

void shared_expert(int64_t layer, std::span<const Word> x, Share width, std::span<Word> y) {
  add_slices(kShared, layer, 0, x, width, y);
}

std::array<int, kExpertsPerToken> route(int64_t layer, std::span<const Word> x) {
  const Word value = mix(digest(x) ^ salt(kGate, layer, 0));
  const int first = static_cast<int>(value % kExperts);
  return {first, static_cast<int>((first + 1 + value / kExperts % (kExperts - 1)) % kExperts)};
}

void expert(int64_t layer, int index, std::span<const Word> x, Share width, std::span<Word> y) {
  add_slices(kExpert, layer, index * kSlices, x, width, y);
}

Word logit(std::span<const Word> x, int token) {
  return mix(digest(x) ^ salt(kLogit, 0, token));
}

ModelFacts toy_facts(int64_t layers, bool low_rank_queries) {
  return {.layers = layers,
          .first_expert_layer = 2,
          .vocabulary = 129280,
          .hidden = 7168,
          .heads = 128,
          .qk_head_dim = 192,
          .v_head_dim = 128,
          .q_lora_rank = low_rank_queries ? 1536 : 0,
          .latent_width = 576,
          .dense_intermediate = 18432,
          .experts = 256,
          .experts_per_token = 8,
          .expert_intermediate = 2048,
          .shared_intermediate = 2048};
}

std::vector<std::array<Word, kVocabulary>> plain_logits(const ModelFacts& facts, const Batch& batch) {
  using Row = std::array<Word, kHidden>;
  const Share all;
  const size_t rows = batch.tokens.size();
  std::vector<Row> residual(rows), normed(rows);
  for (size_t row = 0; row < rows; ++row) embed(batch.tokens[row], all, residual[row]);
  const auto norm_all = [&] {
    for (size_t row = 0; row < rows; ++row) norm(residual[row], normed[row]);
  };
  for (int64_t layer = 0; layer < facts.layers; ++layer) {
    norm_all();
    std::vector<std::array<Word, kLatent>> latent(rows);
    const auto attention_input = [&](size_t row) -> std::span<const Word> {
      if (facts.q_lora_rank == 0) return normed[row];
      return latent[row];
    };
    std::vector<Word> keys(rows);
    for (size_t row = 0; row < rows; ++row) {
      project_latent(layer, normed[row], latent[row]);
      keys[row] = key_of(layer, attention_input(row));
    }
    const auto sums = sum_keys(keys, batch, all);
    for (size_t row = 0; row < rows; ++row) attend(layer, attention_input(row), sums[row], all, residual[row]);
    norm_all();
    for (size_t row = 0; row < rows; ++row) {
      if (!facts.layer_has_experts(layer)) {
        dense_mlp(layer, normed[row], all, residual[row]);
        continue;
      }
      shared_expert(layer, normed[row], all, residual[row]);
      Row routed{};
      for (const int index : route(layer, normed[row])) expert(layer, index, normed[row], all, routed);
      for (int i = 0; i < kHidden; ++i) residual[row][i] += kRoutedScale * routed[i];
    }
  }
  norm_all();
  std::vector<std::array<Word, kVocabulary>> logits;
  for (const int row : batch.logit_rows)
    for (int token = (logits.emplace_back(), 0); token < kVocabulary; ++token)
      logits.back()[token] = logit(normed[row], token);
  return logits;
}

}  // namespace plait::test
