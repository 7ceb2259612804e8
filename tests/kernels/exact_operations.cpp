#include "tests/kernels/exact_operations.h"

#include <bit>
#include <unordered_map>

#include <fmt/format.h>

#include "base/assert.h"
#include "kernels/cpu/implementations.h"
#include "kernels/cpu/linear_product.h"

namespace plait::testing {
namespace {

using namespace kernels;

// -- Operations --

// Multiples of `unit` up to `most`.
struct Grid {
  float unit, most;
  float operator()(float x) const { return std::clamp(std::nearbyint(x / unit) * unit, -most, most); }
};
constexpr Grid kNorm{0x1p-2f, 3.75f};
constexpr Grid kRotation{0x1p-4f, 64.0f};
constexpr Grid kProbability{0x1p-12f, 1.0f};
constexpr Grid kAttention{0x1p-6f, 3.75f};
constexpr Grid kActivation{0x1p-4f, 3.75f};
constexpr Grid kExpertWeight{0x1p-6f, 4.0f};

void round_to(const Grid& grid, Rows rows) {
  for (int64_t i = 0; i < rows.rows; ++i) std::transform(rows.row(i), rows.row(i) + rows.cols, rows.row(i), grid);
}

namespace coarse {

void rms_norm(const Context& context, ConstRows x, const float* weight, float eps, Rows y) {
  reference_operations().rms_norm(context, x, weight, eps, y);
  round_to(kNorm, y);
}

void add_rms_norm(const Context& context, ConstRows delta, Rows residual, const float* weight, float eps, Rows y) {
  reference_operations().add_rms_norm(context, delta, residual, weight, eps, y);
  round_to(kNorm, y);
}

void swiglu(const Context& context, ConstRows gate_up, Rows y) {
  reference_operations().swiglu(context, gate_up, y);
  round_to(kActivation, y);
}

void rope_interleaved(const Context& context, const RopeTable& table, std::span<const int32_t> positions, HeadRows x) {
  reference_operations().rope_interleaved(context, table, positions, x);
  for (int64_t token = 0; token < x.tokens; ++token)
    for (int64_t head = 0; head < x.heads; ++head)
      std::transform(x.at(token, head), x.at(token, head) + x.width, x.at(token, head), kRotation);
}

void choose_experts(const Context& context, const GateConfig& config, ConstRows logits, const float* bias,
                    int32_t* expert_ids, float* expert_weights) {
  reference_operations().choose_experts(context, config, logits, bias, expert_ids, expert_weights);
  std::transform(expert_weights, expert_weights + logits.rows * config.experts_per_token, expert_weights,
                 kExpertWeight);
}

// In lanes: any order gives the same bits, and thousands of small models are run.
inline float dot(const float* a, const float* b, int64_t count) {
  std::array<float, 4> lanes{};
  int64_t k = 0;
  for (; k + 4 <= count; k += 4)
    for (int64_t lane = 0; lane < 4; ++lane) lanes[lane] += a[k + lane] * b[k + lane];
  for (; k < count; ++k) lanes[0] += a[k] * b[k];
  return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}

const float* weight_row(const PackedMatrix& weight, int64_t row) {
  PLAIT_ASSERT(weight.format() == WeightFormat::kF32, "exact operations compute with float32 weights");
  return weight.data().as<float>() + row * weight.in_features();
}

void router_logits(const Context&, ConstRows x, ConstRows weight, Rows logits) {
  for (int64_t t = 0; t < x.rows; ++t)
    for (int64_t e = 0; e < weight.rows; ++e) logits.row(t)[e] = dot(x.row(t), weight.row(e), x.cols);
}

void run_products(const Context&, std::span<const Product> products) {
  for (const Product& product : products) {
    const int64_t in = product.weight->in_features(), out = product.weight->out_features();
    const float* weights = weight_row(*product.weight, 0);
    for (int64_t i = 0; i < product.rows; ++i)
      for (int64_t j = 0; j < out; ++j)
        product.y[i * product.y_stride + j] = dot(product.x + i * product.x_stride, weights + j * in, in);
  }
}

// The first `visible` tokens. keys: [tokens, width of q]; out: [width of the values]
void attend(const float* q, ConstRows keys, ConstRows values, int64_t visible, float scale, std::vector<float>& scores,
            float* out) {
  scores.resize(visible);
  float maximum = -std::numeric_limits<float>::infinity();
  for (int64_t j = 0; j < visible; ++j) {
    scores[j] = scale * dot(q, keys.row(j), keys.cols);
    maximum = std::max(maximum, scores[j]);
  }
  double sum = 0;
  for (float& score : scores) sum += score = std::exp(score - maximum);
  std::fill_n(out, values.cols, 0.0f);
  for (int64_t j = 0; j < visible; ++j) {
    const float probability = kProbability(static_cast<float>(scores[j] / sum));
    for (int64_t c = 0; c < values.cols; ++c) out[c] += probability * values.row(j)[c];
  }
  std::transform(out, out + values.cols, out, kAttention);
}

// The cached rows of the span's sequence, [tokens, row width].
std::vector<float> load_latents(const LatentCache& cache, const AttentionSpan& span) {
  PLAIT_ASSERT(cache.dtype == DType::kF32, "exact operations keep a float32 cache");
  const int64_t width = cache.row_width();
  std::vector<float> latents(span.length() * width);
  for (int64_t token = 0; token < span.length(); ++token)
    std::copy_n(reinterpret_cast<const float*>(cached_row(cache, span.pages, token)), width,
                latents.data() + token * width);
  return latents;
}

void attend_absorbed(const Context&, HeadRows q, const LatentCache& cache, std::span<const AttentionSpan> spans,
                     float scale, HeadRows out) {
  std::vector<float> scores;
  for (const AttentionSpan& span : spans) {
    if (span.row_count == 0) continue;
    const std::vector<float> latents = load_latents(cache, span);
    const ConstRows rows(latents.data(), span.length(), cache.row_width());
    for (int64_t i = 0; i < span.row_count; ++i)
      for (int64_t head = 0; head < q.heads; ++head)
        attend(q.at(span.row_begin + i, head), rows, rows.slice_cols(0, cache.latent_width), span.position(i) + 1,
               scale, scores, out.at(span.row_begin + i, head));
  }
}

void attend_expanded(const Context& context, HeadRows q, const LatentCache& cache, const PackedMatrix& kv_b,
                     int64_t nope_width, std::span<const AttentionSpan> spans, float scale, HeadRows out) {
  std::vector<float> scores, expanded, keys;
  const int64_t head_width = nope_width + out.width;
  for (const AttentionSpan& span : spans) {
    if (span.row_count == 0) continue;
    const int64_t tokens = span.length();
    const std::vector<float> latents = load_latents(cache, span);
    const ConstRows rows(latents.data(), tokens, cache.row_width());
    expanded.resize(tokens * kv_b.out_features());
    const Rows key_values(expanded.data(), tokens, kv_b.out_features());
    linear(context, rows.slice_cols(0, cache.latent_width), kv_b, key_values);
    keys.resize(tokens * q.width);
    for (int64_t head = 0; head < q.heads; ++head) {
      for (int64_t j = 0; j < tokens; ++j) {
        std::copy_n(key_values.row(j) + head * head_width, nope_width, keys.data() + j * q.width);
        std::copy_n(rows.row(j) + cache.latent_width, cache.rope_width, keys.data() + j * q.width + nope_width);
      }
      const ConstRows values = key_values.slice_cols(head * head_width + nope_width, out.width);
      for (int64_t i = 0; i < span.row_count; ++i)
        attend(q.at(span.row_begin + i, head), ConstRows(keys.data(), tokens, q.width), values, span.position(i) + 1,
               scale, scores, out.at(span.row_begin + i, head));
    }
  }
}

}  // namespace coarse

constexpr Operations exact_operations(Operations operations) {
  operations.rms_norm = coarse::rms_norm;
  operations.add_rms_norm = coarse::add_rms_norm;
  operations.swiglu = coarse::swiglu;
  operations.rope_interleaved = coarse::rope_interleaved;
  operations.choose_experts = coarse::choose_experts;
  operations.router_logits = coarse::router_logits;
  operations.attend_absorbed = coarse::attend_absorbed;
  operations.attend_expanded = coarse::attend_expanded;
  operations.run_products = coarse::run_products;
  return operations;
}

const Operations& exact() {
  static const Operations operations = exact_operations(reference_operations());
  return operations;
}

// -- Audit --

// Of a sum, or of a value made of sums.
struct Terms {
  double magnitude = 0;
  double unit = std::numeric_limits<double>::infinity();  // a power of two that divides every term

  void add(double term) {
    if (term == 0) return;
    magnitude += std::abs(term);
    int exponent = 0;
    const auto mantissa = static_cast<uint64_t>(std::ldexp(std::abs(std::frexp(term, &exponent)), 53));
    unit = std::min(unit, std::ldexp(1.0, exponent - 53 + std::countr_zero(mantissa)));
  }
  void add(const Terms& other, double factor = 1) {
    Terms scaled;
    scaled.add(factor);
    if (other.magnitude == 0 || factor == 0) return;
    magnitude += std::abs(factor) * other.magnitude;
    unit = std::min(unit, scaled.unit * other.unit);
  }
  double units() const { return magnitude == 0 ? 0 : magnitude / unit; }
};

struct Audit {
  ExactnessAudit::Findings findings;
  std::unordered_map<const float*, Terms> terms;  // of values in memory that sums made; others are one term each

  // What was stored there may be another value by now, written by a copy: the larger of both is safe.
  Terms of(const float* value) const {
    Terms own;
    own.add(*value);
    if (const auto known = terms.find(value); known != terms.end()) {
      own.magnitude = std::max(own.magnitude, known->second.magnitude);
      own.unit = std::min(own.unit, known->second.unit);
    }
    return own;
  }
  void note(const char* operation, const float* value, const Terms& sum, double exact) {
    terms[value] = sum;
    ++findings.sums;
    const int bits = sum.magnitude == 0 ? 0 : static_cast<int>(std::ceil(std::log2(sum.units())));
    if (bits > findings.bits) {
      findings.bits = bits;
      findings.widest = operation;
    }
    if ((sum.units() > 0x1p24 || exact != double{*value}) && findings.problem.empty())
      findings.problem = fmt::format("{}: {} terms' magnitude in units of {}, sum {}, got {}", operation, sum.magnitude,
                                     sum.unit, exact, *value);
  }
};
Audit* audit = nullptr;

void audited_products(const Context& context, std::span<const Product> products) {
  coarse::run_products(context, products);
  for (const Product& product : products)
    for (int64_t i = 0; i < product.rows; ++i)
      for (int64_t j = 0; j < product.weight->out_features(); ++j) {
        const float* x = product.x + i * product.x_stride;
        const float* weights = coarse::weight_row(*product.weight, j);
        Terms sum;
        double exact = 0;
        for (int64_t k = 0; k < product.weight->in_features(); ++k) {
          sum.add(double{x[k]} * weights[k]);
          exact += double{x[k]} * weights[k];
        }
        audit->note("product", product.y + i * product.y_stride + j, sum, exact);
      }
}

// Ranks that divide an expert's width scale parts of its sum.
void audited_combine_rows(const Context& context, ConstRows x, const ExpertOrder& order, const float* weights,
                          int64_t k, Rows y) {
  std::vector<std::pair<Terms, double>> sums;
  for (int64_t t = 0; t < y.rows; ++t)
    for (int64_t j = 0; j < y.cols; ++j) {
      auto& [sum, exact] = sums.emplace_back(audit->of(y.row(t) + j), y.row(t)[j]);
      for (int64_t pair = t * k; pair < (t + 1) * k; ++pair) {
        const float* value = x.row(order.row_of_pair[pair]) + j;
        sum.add(audit->of(value), weights[pair]);
        exact += double{weights[pair]} * *value;
      }
    }
  exact().combine_rows(context, x, order, weights, k, y);
  for (int64_t i = 0; i < y.rows * y.cols; ++i)
    audit->note("sum of experts", y.row(i / y.cols) + i % y.cols, sums[i].first, sums[i].second);
}

void audited_embed(const Context& context, const EmbeddingTable& table, std::span<const int32_t> token_ids, Rows y) {
  exact().embed(context, table, token_ids, y);
  for (int64_t i = 0; i < y.rows; ++i)
    for (int64_t j = 0; j < y.cols; ++j) audit->terms.erase(y.row(i) + j);
}

// The terms of all layers together: ranks may add a residual to a summand.
void audited_add_rms_norm(const Context& context, ConstRows delta, Rows residual, const float* weight, float eps,
                          Rows y) {
  std::vector<std::pair<Terms, double>> sums;
  for (int64_t i = 0; i < delta.rows; ++i)
    for (int64_t j = 0; j < delta.cols; ++j) {
      auto& [sum, exact] = sums.emplace_back(audit->of(residual.row(i) + j), residual.row(i)[j]);
      sum.add(audit->of(delta.row(i) + j));
      exact += delta.row(i)[j];
    }
  coarse::add_rms_norm(context, delta, residual, weight, eps, y);
  for (int64_t i = 0; i < delta.rows * delta.cols; ++i)
    audit->note("residual", residual.row(i / delta.cols) + i % delta.cols, sums[i].first, sums[i].second);
}

const Operations& audited() {
  static const Operations operations = [] {
    Operations all = exact();
    all.run_products = audited_products;
    all.combine_rows = audited_combine_rows;
    all.embed = audited_embed;
    all.add_rms_norm = audited_add_rms_norm;
    return all;
  }();
  return operations;
}

}  // namespace

void install_exact_operations() {
  set_exact_operations(exact());
}

ExactnessAudit::ExactnessAudit() {
  PLAIT_ASSERT(audit == nullptr, "one audit at a time");
  audit = new Audit;
  set_exact_operations(audited());
}

ExactnessAudit::~ExactnessAudit() {
  set_exact_operations(exact());
  delete std::exchange(audit, nullptr);
}

const ExactnessAudit::Findings& ExactnessAudit::findings() const {
  return audit->findings;
}

}  // namespace plait::testing
