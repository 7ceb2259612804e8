// One row of logits of the largest vocabulary (Kimi-K2's), shaped like a language model's: a few likely tokens, a long
// tail. "flat" is the worst case of top_p: every token is as likely as any other.
#include <cmath>

#include <benchmark/benchmark.h>

#include "engine/philox.h"
#include "engine/sampler.h"

namespace plait {
namespace {

constexpr int64_t kVocab = 163840;

std::vector<float> peaked_logits() {
  std::vector<float> logits(kVocab);
  for (size_t i = 0; i < logits.size(); ++i) {
    const double u = uniform_of(1, i) + 1e-12;
    logits[i] = static_cast<float>(-2 * std::log(u) + 3 * uniform_of(2, i));  // exponential tail upwards
  }
  return logits;
}

void run(benchmark::State& state, const SamplingParams& params, std::vector<float> values, SamplingRow row = {}) {
  ThreadPool pool(1);
  row.params = &params;
  const SamplingRow rows[] = {row};
  for (auto _ : state) benchmark::DoNotOptimize(sample(pool, Rows(values.data(), 1, kVocab), rows));
  state.SetBytesProcessed(state.iterations() * kVocab * static_cast<int64_t>(sizeof(float)));
}

void greedy(benchmark::State& state) {
  run(state, {.temperature = 0}, peaked_logits());
}
void temperature_only(benchmark::State& state) {
  run(state, {.temperature = 0.8, .seed = 1}, peaked_logits());
}
void top_p_95(benchmark::State& state) {
  run(state, {.temperature = 0.6, .top_p = 0.95, .seed = 1}, peaked_logits());
}
void top_p_95_flat(benchmark::State& state) {
  run(state, {.temperature = 1, .top_p = 0.95, .seed = 1}, std::vector<float>(kVocab, 0.5F));
}
void top_k_50_min_p(benchmark::State& state) {
  run(state, {.temperature = 0.8, .top_k = 50, .min_p = 0.05, .seed = 1}, peaked_logits());
}
void greedy_with_20_logprobs(benchmark::State& state) {
  run(state, {.temperature = 0}, peaked_logits(), {.want_logprob = true, .top_logprobs = 20});
}

BENCHMARK(greedy);
BENCHMARK(temperature_only);
BENCHMARK(top_p_95);
BENCHMARK(top_p_95_flat);
BENCHMARK(top_k_50_min_p);
BENCHMARK(greedy_with_20_logprobs);

}  // namespace
}  // namespace plait
