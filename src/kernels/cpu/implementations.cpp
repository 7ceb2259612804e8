#include "kernels/cpu/implementations.h"

#include "base/assert.h"

namespace plait::kernels {
namespace {

constexpr Operations kReference = {
    .rms_norm = reference::rms_norm,
    .add_rms_norm = reference::add_rms_norm,
    .swiglu = reference::swiglu,
    .embed = reference::embed,
    .rope_interleaved = reference::rope_interleaved,
    .choose_experts = reference::choose_experts,
    .router_logits = reference::router_logits,
    .gather_rows = reference::gather_rows,
    .combine_rows = reference::combine_rows,
    .store_latents = reference::store_latents,
    .attend_absorbed = reference::attend_absorbed,
    .attend_expanded = reference::attend_expanded,
    .run_products = reference::run_products,
};

constexpr Operations kFast = {
    .rms_norm = fast::rms_norm,
    .add_rms_norm = fast::add_rms_norm,
    .swiglu = fast::swiglu,
    .embed = fast::embed,
    .rope_interleaved = fast::rope_interleaved,
    .choose_experts = fast::choose_experts,
    .router_logits = fast::router_logits,
    .gather_rows = fast::gather_rows,
    .combine_rows = fast::combine_rows,
    .store_latents = fast::store_latents,
    .attend_absorbed = fast::attend_absorbed,
    .attend_expanded = fast::attend_expanded,
    .run_products = fast::run_products,
};

const Operations* exact_operations = nullptr;

}  // namespace

const Operations& reference_operations() {
  return kReference;
}

const Operations& operations_of(const Context& context) {
  switch (context.implementation) {
    case Implementation::kReference:
      return kReference;
    case Implementation::kFast:
      return kFast;
    case Implementation::kExact:
      break;
  }
  PLAIT_ASSERT(exact_operations != nullptr, "exact operations are brought by tests");
  return *exact_operations;
}

void set_exact_operations(const Operations& operations) {
  exact_operations = &operations;
}

}  // namespace plait::kernels
