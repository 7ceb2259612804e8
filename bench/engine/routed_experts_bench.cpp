// What keeping routed experts costs: steps of two engines that differ in nothing else, taken in turns, so that whatever
// else the machine does disturbs both alike. The demo model is the hard case: its steps are short beside its routing.
// Takes a model folder (models/demo-fp8).
#include <numeric>

#include "base/log.h"
#include "base/units.h"
#include "engine/engine.h"

namespace plait {
namespace {

using Clock = std::chrono::steady_clock;

std::unique_ptr<Engine> make_engine(const std::string& model, bool keep) {
  EngineOptions options;
  options.model_path = model;
  options.threads = 1;
  options.max_total_tokens = 1 << 16;
  options.keep_routed_experts = keep;
  auto engine = Engine::create(options);
  if (engine.has_error()) {
    fmt::print(stderr, "{}\n", engine.error().message);
    std::exit(1);
  }
  return std::move(engine).value();
}

// One step of `sequences` sequences that have `cached` tokens and get `tokens` more.
double step_seconds(Engine& engine, int64_t sequences, int64_t cached, int64_t tokens) {
  const SamplingParams greedy{.temperature = 0};
  const std::vector<SamplingRow> rows(static_cast<size_t>(sequences), SamplingRow{.params = &greedy});
  const int64_t pages_each = (cached + tokens + engine.page_tokens() - 1) / engine.page_tokens();
  StepBuilder builder(1);
  for (int64_t i = 0; i < sequences; ++i) {
    std::vector<int32_t> ids(static_cast<size_t>(tokens)), pages(static_cast<size_t>(pages_each));
    for (size_t j = 0; j < ids.size(); ++j)
      ids[j] = static_cast<int32_t>((i * 131 + static_cast<int64_t>(j) * 7) % 500);
    std::iota(pages.begin(), pages.end(), static_cast<int32_t>(i * pages_each));
    builder.add(ids, cached, pages, cached == 0 ? tokens : cached, 1);
  }
  const Step step = std::move(builder).build();
  const auto begin = Clock::now();
  engine.execute(step, rows);
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<int64_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

int run(const std::string& model) {
  log::initialise(log::Level::kWarning, "");
  const auto plain = make_engine(model, false), keeping = make_engine(model, true);
  fmt::print("{}, one thread; routed experts kept: {}\n", model,
             format_bytes(keeping->memory_plan().routed_expert_bytes));
  fmt::print("{:<24}{:>12}{:>12}{:>10}\n", "step", "without", "with", "ratio");
  const struct {
    const char* what;
    int64_t sequences, cached, tokens;
    int steps;
  } cases[] = {
      {"decode, batch 1", 1, 128, 1, 6000}, {"decode, batch 16", 16, 128, 1, 600}, {"prefill, 512", 1, 0, 512, 60}};
  for (const auto& one : cases) {
    std::vector<double> without, with, ratios;
    for (int i = 0; i < one.steps; ++i) {
      // The second of two finds caches warm: each is the first half of the time.
      for (const bool keep : {i % 2 == 0, i % 2 != 0})
        (keep ? with : without)
            .push_back(step_seconds(keep ? *keeping : *plain, one.sequences, one.cached, one.tokens));
      ratios.push_back(with.back() / without.back());
    }
    fmt::print("{:<24}{:>12}{:>12}{:>10.4f}\n", one.what, format_seconds(median(without)), format_seconds(median(with)),
               median(ratios));
  }
  return 0;
}

}  // namespace
}  // namespace plait

int main(int count, char** arguments) {
  return plait::run(count > 1 ? arguments[1] : PLAIT_SOURCE_DIR "/models/demo-fp8");
}
