// Which part of a model one rank holds.
//
// Plain values, a function of the rank's place in the topology. A shard with every count 1 and all layers is the whole
// model. Parts of a width are cut at multiples of a unit (the blocks of FP8 scales), so they may differ in size by one
// unit, and are empty where there are more ranks than units.
#pragma once

#include <cstdint>
#include <limits>

namespace plait {

struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
  bool contains(int64_t value) const { return value >= begin && value < end; }
};

// Part `index` of `count`.
struct ShardPart {
  int64_t index = 0;
  int64_t count = 1;

  Range of(int64_t size, int64_t unit = 1) const {
    const int64_t units = (size + unit - 1) / unit;
    const auto cut = [&](int64_t part) { return part == count ? size : part * units / count * unit; };
    return {cut(index), cut(index + 1)};
  }
};

struct ModelShard {
  Range layers{0, std::numeric_limits<int64_t>::max()};  // of this pipeline stage; it is cut off at the model's last
  ShardPart heads;                                       // of attention
  ShardPart dense_width;                                 // of the FFN of layers without experts
  ShardPart shared_width;                                // of the shared experts
  ShardPart experts;                                     // of the routed experts: whole ones
  ShardPart expert_width;                                // of each routed expert
  ShardPart embedding;                                   // of the vocabulary; ids of other parts give zeros
  ShardPart head;                                        // of the vocabulary: columns of the logits

  Range layers_of(int64_t num_hidden_layers) const {
    return {layers.begin, layers.end < num_hidden_layers ? layers.end : num_hidden_layers};
  }
  bool is_first_stage() const { return layers.begin == 0; }
  bool is_last_stage(int64_t num_hidden_layers) const { return layers.end >= num_hidden_layers; }
};

}  // namespace plait
