// Names of a checkpoint's tensors: what they say about a tensor, and how to list many of them. Pure functions.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace plait {

// Whether the tensor belongs to a layer from `num_hidden_layers` on, that is, to multi-token prediction
// ("model.layers.61.eh_proj.weight" of a model with 61 layers). 0: the number of layers is not known, so never.
bool is_mtp_tensor(std::string_view name, int64_t num_hidden_layers);

// A table that follows from the configuration and that old exporters stored all the same.
bool is_rotary_table(std::string_view name);

// Names that differ only in numbers between dots, folded: "model.layers.{3-60}.mlp.experts.{0-255}.up_proj.weight
// (14848 tensors)". Nothing is left out and nothing is added. Sorted.
std::vector<std::string> fold_tensor_names(std::span<const std::string> names);

}  // namespace plait
