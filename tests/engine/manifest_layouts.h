// The models and layouts whose kernels are counted, compiled and documented.
#pragma once

#include <string>
#include <vector>

#include "tests/model/published_configs.h"
#include "topology/parallel_config.h"

namespace plait::testing {

struct ManifestLayout {
  std::string name;
  ModelConfig config;
  ParallelConfig parallel;
};

inline std::vector<ManifestLayout> manifest_layouts() {
  const ParallelConfig experts{
      .tp_size = 8, .dp_size = 8, .enable_dp_attention = true, .ep_size = 8, .moe_a2a_backend = MoeA2a::kAllToAll};
  return {{"DeepSeek-V3 tp8 dp8 ep8 a2a", deepseek_v3(), experts},
          {"Kimi-K2 tp8 dp8 ep8 a2a", kimi_k2(), experts},
          {"DeepSeek-V3 tp8 pp4", deepseek_v3(), {.tp_size = 8, .pp_size = 4}},
          {"DeepSeek-V2-Lite tp1", deepseek_v2_lite(), {}}};
}

}  // namespace plait::testing
