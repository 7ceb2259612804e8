#include "tests/model/goldens.h"

#include "base/assert.h"

namespace plait::testing {

double GoldenPrompt::range() const {
  const auto [low, high] = std::minmax_element(logits.begin(), logits.end());
  return *high - *low;
}

std::vector<std::string> golden_names() {
  return {"v2-lite", "v2", "v3", "kimi-k2", "demo", "demo-fp8"};
}

std::filesystem::path golden_path(const std::string& name) {
  const std::filesystem::path root = PLAIT_SOURCE_DIR;
  return name.starts_with("demo") ? root / "models" / name : root / "tests/data/goldens" / name;
}

GoldenFolder GoldenFolder::read(const std::string& name) {
  const std::filesystem::path path = golden_path(name);
  GoldenFolder folder;
  folder.name = name;
  auto config = read_model_config(path);
  PLAIT_ASSERT(config.has_value(), config.has_error() ? config.error().message : "");
  folder.config = std::move(config).value();
  folder.weights = TensorSet::read(path / "model.safetensors");

  const TensorSet expected = TensorSet::read(path / "expected.safetensors");
  for (int i = 0; expected.has(fmt::format("p{}.input_ids", i)); ++i) {
    const std::string prefix = fmt::format("p{}.", i);
    GoldenPrompt& prompt = folder.prompts.emplace_back();
    prompt.input_ids = expected.get(prefix + "input_ids").ints();
    prompt.logits = expected.get(prefix + "logits").floats();
    prompt.logit_rows = expected.get(prefix + "logits").shape[0];
    prompt.greedy = expected.get(prefix + "greedy").ints();
    for (int64_t layer = 0; layer <= folder.config.num_hidden_layers; ++layer) {
      const std::string hidden = fmt::format("{}hidden.{}", prefix, layer);
      const std::string routed = fmt::format("{}routed.model.layers.{}.mlp.gate", prefix, layer);
      if (expected.has(hidden)) prompt.hidden[layer] = expected.get(hidden).floats();
      if (expected.has(routed)) prompt.routed[layer] = expected.get(routed).ints();
    }
  }
  PLAIT_ASSERT(!folder.prompts.empty(), "no goldens in " + path.string());
  return folder;
}

}  // namespace plait::testing
