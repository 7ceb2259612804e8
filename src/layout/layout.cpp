#include "layout/layout.h"

namespace plait {

std::string describe(const TokenAxes& axes, const Layout& layout) {
  std::string text = layout.sharded.empty() ? "all rows everywhere"
                                            : fmt::format("rows sharded over {}", axes.to_string(layout.sharded));
  if (layout.order == RowOrderKind::kContext) text += " in context order";
  return text;
}

std::string describe(const TokenAxes& axes, const Placement& placement) {
  std::string text = describe(axes, placement.layout);
  if (!placement.owed.empty()) text += fmt::format(", sum owed over {}", axes.to_string(placement.owed));
  return text;
}

}  // namespace plait
