// The stages of a model's layers as the planner sees them: what layout each needs, what it leaves, what sum it owes.
//
// One pure function makes the declarations from the model's facts, the configuration and the form of the step. No stage
// communicates between its neighbours: what it moves inside itself (KV latents, dispatch, logits) is declared here.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "layout/layout.h"
#include "layout/norm_place.h"
#include "topology/model_facts.h"

namespace plait {

enum class StageKind : uint8_t {
  kEmbedding,         // ids are known everywhere; the table is cut by vocabulary over attn_tp
  kAddNorm,           // residual += delta; delta = rms_norm(residual)
  kLatentProjection,  // q_a and kv_a: makes rows narrower before they are gathered; whole weights on every rank
  kAttention,         // heads are cut over attn_tp
  kDenseMlp,          // width is cut over the dense group
  kSharedExpert,      // whole weights on every rank; its output is added to the residual
  kExperts,           // gate and routed experts; with a2a none also the shared expert, cut over the expert block
  kResidualAdd,       // delta += residual, which then is empty
  kSendReceive,       // to the next pipeline stage
  kSelectRows,        // rows whose logits are wanted, residual added in; other ranks' rows count as zeros of a sum
  kHead,              // vocabulary is cut over attn_tp (--enable-dp-lm-head) or the stage
};
const char* name_of(StageKind kind);

// Runs of the model that are planned as one. Layers of a kind are alike.
enum class SegmentKind : uint8_t { kEmbedding, kDenseLayer, kExpertLayer, kStageBoundary, kHead };
inline constexpr int kSegmentKinds = 5;
const char* name_of(SegmentKind kind);

enum class CollectiveKind : uint8_t {
  kAllReduce,
  kReduceScatter,  // variable-size where rows are uneven
  kAllGather,      // likewise
  kSlice,          // local: keep own rows
  kAllToAll,
  kSendReceive,
};
const char* name_of(CollectiveKind kind);

// What a stage moves inside itself.
struct StageTraffic {
  std::string what;
  CollectiveKind kind = CollectiveKind::kAllGather;
  AxisSet axes;
  int64_t row_bytes = 0;        // of a token (for logits: of a selected row; of history: of a cached token)
  bool after = false;           // the stage's work; else before or during it
  double rows_per_token = 1.0;  // copies that leave the rank: those of a token's experts that are elsewhere
  bool of_history = false;      // as many rows as the step's sequences have cached before it, by whole pages
};

struct StageDeclaration {
  StageKind kind = StageKind::kAddNorm;
  NormPlace norm = NormPlace::kAttention;  // of kAddNorm
  std::optional<Layout> needs;             // absent: works row by row in any layout
  AxisSet owes;                            // over these axes of the layout that it needs
  int64_t width = 0;                       // elements of a row that it leaves
  double row_flops = 0;                    // of the work that ranks with the same rows repeat
  bool scales_routed = false;              // multiplies the routed experts' sum by routed_scaling_factor
  bool adds_shared = false;                // contains the shared expert
  std::vector<StageTraffic> inside;
};

// How a step uses the ranks; a plan is made for each form.
struct StepForm {
  bool context_parallel = false;  // rows are divided over the context ranks (uses_context_parallel)
  int64_t tokens = 2048;          // expected rows of a data-parallel rank; for costs only
  int64_t logit_rows = 1;         // expected rows with logits of a data-parallel rank
};

std::vector<StageDeclaration> declare_stages(SegmentKind kind, const ModelFacts& facts, const ParallelConfig& config,
                                             const TokenAxes& axes, const StepForm& form);

// Layers of a pipeline stage: the first stages have one more where they cannot be divided evenly.
int stage_of_layer(int64_t layer, int64_t layers, int stages);

}  // namespace plait
