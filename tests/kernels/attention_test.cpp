#include "kernels/attention.h"

#include <cstdio>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/linear_kernels.h"
#include "tests/kernels/attention_fixture.h"
#include "tests/support/effort.h"

namespace plait::kernels {
namespace {

PLAIT_TEST_BOTH_IMPLEMENTATIONS(AttentionTest);

// kv_b and everything else that an Attention of either form needs.
struct Case {
  Case(Implementation implementation, const AttentionShape& shape, Form form)
      : kv_b(packed_kv_b(shape, 99)),
        packed(pack(implementation, kv_b, shape.heads * (shape.nope + shape.value), shape.latent)),
        attention{shape, form, &packed} {}
  std::vector<float> kv_b;
  PackedMatrix packed;
  Attention attention;
};

std::vector<float> run_at_once(const Context& context, const Attention& attention, Sequence& sequence, DType dtype,
                               int64_t page_tokens) {
  PagedCache cache(attention.shape, dtype, page_tokens, sequence.tokens / page_tokens + 3, 5);
  sequence.pages = cache.allocate(sequence.tokens);
  return run_step(context, attention, cache.view(), {{&sequence, 0, sequence.tokens}})[0];
}

void expect_same_bits(const std::vector<float>& a, const std::vector<float>& b, const std::string& what) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i)
    ASSERT_EQ(std::bit_cast<uint32_t>(a[i]), std::bit_cast<uint32_t>(b[i])) << what << ", element " << i;
}

TEST_P(AttentionTest, AgainstTheDefinitionOnRandomShapes) {
  std::mt19937 generator(11);
  const auto pick = [&](std::initializer_list<int64_t> values) { return values.begin()[generator() % values.size()]; };
  TestContext context(GetParam(), 2);
  double worst = 0;
  int cases = 0;
  for (; cases < 60; ++cases) {
    const AttentionShape shape{.heads = pick({1, 2, 3, 4, 5, 8, 16, 33}),
                               .latent = pick({1, 8, 16, 40, 64, 100, 512}),
                               .rope = pick({2, 6, 8, 64}),
                               .nope = pick({1, 12, 16, 128}),
                               .value = pick({1, 16, 20, 33, 128})};
    const Form form = cases % 2 == 0 ? Form::kAbsorbed : Form::kExpanded;
    const DType dtype = pick({0, 1}) == 0 ? DType::kF32 : DType::kBF16;
    Case setup(GetParam(), shape, form);
    // Scores of every size: where they are large, one token takes all.
    setup.attention.shape.scale =
        0.1f * static_cast<float>(pick({1, 3, 30})) / std::sqrt(static_cast<float>(setup.attention.query_width()));
    Sequence sequence = make_sequence(setup.attention, pick({1, 2, 63, 64, 65, 130}), cases);
    const std::vector<float> out = run_at_once(context, setup.attention, sequence, dtype, pick({1, 7, 64}));
    const int64_t width = shape.heads * setup.attention.out_width();
    for (const int64_t position : {int64_t{0}, sequence.tokens / 2, sequence.tokens - 1}) {
      const std::vector<double> expected = attend_by_definition(setup.attention, setup.kv_b, sequence, dtype, position);
      for (int64_t i = 0; i < width; ++i) {
        const double error = std::abs(out[position * width + i] - expected[i]);
        worst = std::max(worst, error);
        ASSERT_LT(error, 2e-5) << "case " << cases << " position " << position << " element " << i;
      }
    }
  }
  std::printf("%d shapes, largest error %.1e\n", cases, worst);
}

// The promise of context.h: whatever else happens, the same bits.
void check_invariance(Implementation implementation, const AttentionShape& shape, int64_t tokens, Form form,
                      DType dtype, const std::vector<int64_t>& chunks, int& cases) {
  Case setup(implementation, shape, form);
  const Attention& attention = setup.attention;
  Sequence sequence = make_sequence(attention, tokens, 1);
  Sequence before = make_sequence(attention, 40, 2), after = make_sequence(attention, 71, 3);
  TestContext alone(implementation);
  const std::vector<float> expected = run_at_once(alone, attention, sequence, dtype, 64);
  for (const float value : expected) ASSERT_TRUE(std::isfinite(value));

  const std::vector<int> thread_counts = kSanitized ? std::vector{1, 3} : std::vector{1, 2, 3, 4};
  const std::vector<int64_t> page_sizes = kSanitized ? std::vector<int64_t>{16} : std::vector<int64_t>{1, 16, 64};
  for (const int threads : thread_counts) {
    for (const int64_t page_tokens : page_sizes) {
      for (const int64_t chunk : chunks) {
        if (threads > 1 && (page_tokens != 16 || chunk < 16)) continue;  // short steps are for one thread anyway
        TestContext context(implementation, threads);
        PagedCache cache(shape, dtype, page_tokens, (tokens + 40 + 71) / page_tokens + 9, 17);
        for (Sequence* each : {&sequence, &before, &after}) each->pages = cache.allocate(each->tokens);
        run_step(context, attention, cache.view(), {{&before, 0, 20}, {&after, 0, 71}});
        std::vector<float> rows;
        for (int64_t first = 0; first < tokens; first += chunk) {
          const int64_t count = std::min(chunk, tokens - first), other = 20 + first / chunk % 20;
          // Rows of other sequences before and after, their place and number changing from step to step.
          std::vector<Piece> pieces = {{&sequence, first, count}};
          if (first / chunk % 3 != 0) pieces.insert(pieces.begin(), {&before, other, 1 + other % 3 * (40 - other) / 3});
          if (first / chunk % 2 != 0) pieces.push_back({&after, 70, 1});
          const auto results = run_step(context, attention, cache.view(), pieces);
          const auto& mine = results[pieces[0].sequence == &sequence ? 0 : 1];
          rows.insert(rows.end(), mine.begin(), mine.end());
        }
        expect_same_bits(rows, expected,
                         fmt::format("chunks of {}, pages of {}, {} threads", chunk, page_tokens, threads));
        ++cases;
      }
    }
  }
}

TEST_P(AttentionTest, SameBitsHoweverTheSequenceIsCut) {
  int cases = 0;
  for (const Form form : {Form::kAbsorbed, Form::kExpanded}) {
    for (const DType dtype : {DType::kF32, DType::kBF16})
      check_invariance(GetParam(), {}, 150, form, dtype, {150, 1, 3, 16}, cases);
    if (GetParam() == Implementation::kFast)
      check_invariance(GetParam(), {.heads = 16, .latent = 512, .rope = 64, .nope = 128, .value = 128, .scale = 0.1f},
                       70, form, DType::kBF16, {70, 16}, cases);
  }
  std::printf("%d ways to cut a sequence\n", cases);
}

// Long enough for several partitions of absorbed queries and several stretches of expanded keys.
TEST_P(AttentionTest, SameBitsOverPartitionsAndStretches) {
  if (kSanitized && GetParam() == Implementation::kReference) GTEST_SKIP() << "plain loops that shorter tests run too";
  const AttentionShape shape{.heads = 2, .latent = 16, .rope = 4, .nope = 8, .value = 8};
  int cases = 0;
  for (const Form form : {Form::kAbsorbed, Form::kExpanded})
    check_invariance(GetParam(), shape, 1300, form, DType::kF32, {1300, 517}, cases);
  std::printf("%d ways to cut a sequence\n", cases);
}

// A query past 16384 tokens has longer partitions; the cache is mostly one repeated row to keep the test quick.
TEST_P(AttentionTest, LongContextAgainstTheDefinition) {
  if (kSanitized && GetParam() == Implementation::kReference) GTEST_SKIP() << "plain loops that shorter tests run too";
  const AttentionShape shape{.heads = 1, .latent = 4, .rope = 2, .nope = 4, .value = 4, .scale = 1};
  for (const Form form : {Form::kAbsorbed, Form::kExpanded}) {
    Case setup(GetParam(), shape, form);
    Sequence sequence = make_sequence(setup.attention, 33000, 4);
    TestContext context(GetParam(), 2);
    PagedCache cache(shape, DType::kF32, 128, 300, 5);
    sequence.pages = cache.allocate(sequence.tokens);
    const std::vector<AttentionSpan> everything = {{sequence.pages, 0, 0, sequence.tokens}};
    store_latents(context, ConstRows(sequence.latents.data(), sequence.tokens, shape.row_width()), everything,
                  cache.view());
    const auto out = run_step(context, setup.attention, cache.view(), {{&sequence, sequence.tokens - 3, 3}})[0];
    const auto expected = attend_by_definition(setup.attention, setup.kv_b, sequence, DType::kF32, sequence.tokens - 1);
    for (size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(out[2 * expected.size() + i], expected[i], 5e-5);
  }
}

// Both forms are the same mathematics: exactly in double, within rounding in float32.
TEST_P(AttentionTest, AbsorbedIsExpanded) {
  const AttentionShape shape{.heads = 4, .latent = 64, .rope = 16, .nope = 32, .value = 24, .scale = 0.1f};
  Case expanded(GetParam(), shape, Form::kExpanded), absorbed(GetParam(), shape, Form::kAbsorbed);
  Sequence sequence = make_sequence(expanded.attention, 90, 6);
  Sequence moved{.latents = sequence.latents, .tokens = sequence.tokens};
  const int64_t head_rows = shape.nope + shape.value;
  for (int64_t row = 0; row < sequence.tokens * shape.heads; ++row) {
    const float* q = &sequence.queries[row * (shape.nope + shape.rope)];
    const float* w = &expanded.kv_b[row % shape.heads * head_rows * shape.latent];
    for (int64_t c = 0; c < shape.latent; ++c) {
      double sum = 0;
      for (int64_t n = 0; n < shape.nope; ++n) sum += double{q[n]} * w[n * shape.latent + c];
      moved.queries.push_back(static_cast<float>(sum));
    }
    moved.queries.insert(moved.queries.end(), q + shape.nope, q + shape.nope + shape.rope);
  }
  // out[h] = W_UV u[h]
  const auto values_of = [&](const auto& u, int64_t row, int64_t v) {
    const float* w = &expanded.kv_b[(row % shape.heads * head_rows + shape.nope + v) * shape.latent];
    double sum = 0;
    for (int64_t c = 0; c < shape.latent; ++c) sum += double{u[row * shape.latent + c]} * w[c];
    return sum;
  };

  const int64_t last = sequence.tokens - 1;
  const auto exact = attend_by_definition(expanded.attention, expanded.kv_b, sequence, DType::kF32, last);
  const auto exact_latent = attend_by_definition(absorbed.attention, absorbed.kv_b, moved, DType::kF32, last);
  TestContext context(GetParam(), 2);
  const auto out = run_at_once(context, expanded.attention, sequence, DType::kF32, 16);
  const auto latent = run_at_once(context, absorbed.attention, moved, DType::kF32, 16);
  for (int64_t h = 0; h < shape.heads; ++h)
    for (int64_t v = 0; v < shape.value; ++v)
      ASSERT_NEAR(exact[h * shape.value + v], values_of(exact_latent, h, v), 1e-7);  // absorbed queries are float32
  for (int64_t row = 0; row < sequence.tokens * shape.heads; ++row)
    for (int64_t v = 0; v < shape.value; ++v)
      ASSERT_NEAR(out[row * shape.value + v], values_of(latent, row, v), 3e-5) << row;
}

// What a query must not see is NaN here: later rows of its own chunk, the rest of its last page, other pages.
TEST_P(AttentionTest, NothingLeaksFromTheFuture) {
  int cases = 0;
  for (const Form form : {Form::kAbsorbed, Form::kExpanded}) {
    for (const int64_t bad : {1, 5, 63, 64, 70, 99}) {
      Case setup(GetParam(), {}, form);
      TestContext context(GetParam());
      Sequence sequence = make_sequence(setup.attention, 100, 8);
      const std::vector<float> good = run_at_once(context, setup.attention, sequence, DType::kF32, 16);
      std::fill_n(&sequence.latents[bad * setup.attention.shape.row_width()], setup.attention.shape.row_width(), kNaN);
      const std::vector<float> out = run_at_once(context, setup.attention, sequence, DType::kF32, 16);
      const int64_t seen = bad * setup.attention.shape.heads * setup.attention.out_width();
      expect_same_bits({good.begin(), good.begin() + seen}, {out.begin(), out.begin() + seen}, "rows before NaN");
      EXPECT_TRUE(std::isnan(out[seen])) << "a query that sees NaN must show it";
      ++cases;
    }
  }
  std::printf("%d poisoned sequences\n", cases);
}

// Scores that leave float32's range for exp, and infinite ones.
TEST_P(AttentionTest, ExtremeScores) {
  const AttentionShape shape{.heads = 1, .latent = 1, .rope = 2, .scale = 1};
  const Attention attention{shape, Form::kAbsorbed};
  const auto run = [&](const std::vector<float>& keys, float q) {  // value = key
    Sequence sequence{.tokens = std::ssize(keys)};
    for (const float key : keys) sequence.latents.insert(sequence.latents.end(), {key, 0, 0});
    for (size_t i = 0; i < keys.size(); ++i) sequence.queries.insert(sequence.queries.end(), {q, 0, 0});
    TestContext context(GetParam());
    return run_at_once(context, attention, sequence, DType::kF32, 16).back();
  };
  EXPECT_EQ(run({1, 300, 2}, 1), 300);  // the others weigh exp(-298): nothing
  EXPECT_EQ(run({-1e30f, -2e30f}, 1e8f), -1e30f);
  std::vector<float> rising(200);
  std::iota(rising.begin(), rising.end(), 0.0f);
  EXPECT_NEAR(run(rising, 50), 199, 1e-4);  // the maximum rises in every tile
  // -3e38 * 10 is -infinity: such tokens have no weight, also when they fill whole tiles
  std::vector<float> hidden(130, -3e38f);
  hidden.push_back(2);
  EXPECT_EQ(run(hidden, 10), 2);
  hidden.insert(hidden.end(), 70, -3e38f);
  EXPECT_EQ(run(hidden, 10), 2);
}

TEST_P(AttentionTest, NoRows) {
  Case setup(GetParam(), {}, Form::kExpanded);
  TestContext context(GetParam(), 2);
  PagedCache cache({}, DType::kF32, 16, 2, 1);
  Sequence sequence = make_sequence(setup.attention, 10, 1);
  sequence.pages = cache.allocate(10);
  for (const Form form : {Form::kAbsorbed, Form::kExpanded}) {
    setup.attention.form = form;
    setup.attention(context, nullptr, cache.view(), {}, 0, nullptr);
    const AttentionSpan nothing{.pages = sequence.pages, .first_position = 4};
    setup.attention(context, nullptr, cache.view(), {&nothing, 1}, 0, nullptr);
  }
  store_latents(context, ConstRows(nullptr, 0, 48), {}, cache.view());
}

TEST_P(AttentionTest, LatentsAreStoredRoundedToNearestEven) {
  TestContext context(GetParam());
  const AttentionShape shape{.latent = 19, .rope = 2};
  PagedCache cache(shape, DType::kBF16, 2, 6, 3);
  std::vector<float> latents = random_values(5 * shape.row_width(), 1);
  const std::vector<float> special = {
      1.00390625f, 1.01171875f, kNaN,  std::bit_cast<float>(0x7f800001u), std::numeric_limits<float>::infinity(),
      3.4e38f,     -0.0f,       1e-40f};
  std::ranges::copy(special, latents.begin());
  const std::vector<int32_t> pages = cache.allocate(5);
  const AttentionSpan span{pages, 0, 0, 5};
  store_latents(context, ConstRows(latents.data(), 5, shape.row_width()), {&span, 1}, cache.view());
  for (int64_t i = 0; i < 5; ++i)
    for (int64_t c = 0; c < shape.row_width(); ++c) {
      const auto* page = static_cast<const uint16_t*>(cache.view().data) + pages[i / 2] * 2 * shape.row_width();
      ASSERT_EQ(page[i % 2 * shape.row_width() + c], BFloat16(latents[i * shape.row_width() + c]).bits)
          << i << " " << c;
    }
}

// Every published number of heads, and what tensor parallelism leaves of it.
TEST(AttentionImplementations, FastAgreesWithReference) {
  double worst = 0;
  int cases = 0;
  for (const int64_t heads : {4, 8, 16, 64, 128}) {
    for (const Form form : {Form::kAbsorbed, Form::kExpanded}) {
      AttentionShape shape{.heads = heads, .latent = 512, .rope = 64, .nope = 128, .value = 128, .scale = 0.1147214f};
      if (heads > 16) shape.nope = shape.value = 16;  // the reference takes its time
      std::vector<std::vector<float>> results;
      for (const Implementation implementation : {Implementation::kReference, Implementation::kFast}) {
        Case setup(implementation, shape, form);
        Sequence sequence = make_sequence(setup.attention, heads > 16 ? 5 : 70, 2);
        TestContext context(implementation, 2);
        results.push_back(run_at_once(context, setup.attention, sequence, DType::kBF16, 16));
      }
      for (size_t i = 0; i < results[0].size(); ++i) {
        worst = std::max(worst, std::abs(double{results[0][i]} - results[1][i]));
        ASSERT_NEAR(results[0][i], results[1][i], 2e-4);
      }
      ++cases;
    }
  }
  std::printf("%d shapes, largest difference %.1e\n", cases, worst);
}

// Vectors of every width have a layout of their own. Widths that fill them, and others; heads that do, and others.
TEST(AttentionImplementations, EveryInstructionSetAgainstTheDefinition) {
  int cases = 0;
  std::set<std::string_view> names;
  for (const std::string_view target : linear_targets()) {
    ASSERT_TRUE(select_linear_target(target));
    names.insert(attention_kernels().name);
    for (const int64_t heads : {1, 6, 16, 21}) {
      for (const auto& [latent, rope] : {std::pair<int64_t, int64_t>{512, 64}, {288, 32}, {300, 18}, {5, 2}}) {
        const AttentionShape shape{.heads = heads, .latent = latent, .rope = rope, .scale = 0.1f};
        const Attention attention{shape, Form::kAbsorbed};
        Sequence sequence = make_sequence(attention, 67, cases);
        const DType dtype = cases % 2 == 0 ? DType::kBF16 : DType::kF32;
        TestContext context(Implementation::kFast);
        const std::vector<float> out = run_at_once(context, attention, sequence, dtype, 16);
        for (const int64_t position : {2, 66}) {
          const std::vector<double> expected = attend_by_definition(attention, {}, sequence, dtype, position);
          for (int64_t i = 0; i < heads * latent; ++i)
            ASSERT_NEAR(out[position * heads * latent + i], expected[i], 2e-5)
                << attention_kernels().name << ", " << heads << " heads, " << latent << " + " << rope << ", " << i;
        }
        ++cases;
      }
    }
  }
  select_linear_target({});
  std::printf("%d shapes, instruction sets: %s\n", cases, fmt::format("{}", fmt::join(names, " ")).c_str());
}

}  // namespace
}  // namespace plait::kernels
