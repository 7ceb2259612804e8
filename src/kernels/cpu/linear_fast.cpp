// How the fast products are cut into pieces: over threads, panels, rows and inputs. No cut changes a bit of a result
// (linear_kernels.h), so all of them follow speed alone.
#include "base/assert.h"
#include "kernels/cpu/linear_kernels.h"
#include "kernels/cpu/linear_product.h"
#include "kernels/cpu/panels.h"

namespace plait::kernels {
namespace {

// Blocked products decode panels for a stretch of inputs once and multiply all rows of a block with them. Sizes: the
// decoded stretch of `kUnitPanels` panels and the sums of a block of rows stay in the L2 cache, one tile of x in L1.
constexpr int64_t kStretchWords = 256;
constexpr int64_t kBlockRows = 336;
constexpr int64_t kUnitPanels = 8;

// How the rows of one product are packed and which pieces of work it has.
struct Part {
  const Product* product = nullptr;
  int64_t tiles = 0;
  int64_t first_tile = 0;  // among the tiles of the call
  int64_t first_row = 0;   // among the rows of the call
  int64_t first_unit = 0;

  int64_t tile_begin(int64_t tile) const { return tile * product->rows / tiles; }
  int64_t tile_rows(int64_t tile) const { return tile_begin(tile + 1) - tile_begin(tile); }
};

class FastProducts {
 public:
  FastProducts(const Context& context, std::span<const Product> products)
      : context_(context),
        layout_(*products.front().weight),
        kernels_(linear_kernels(layout_.format, context.activation)),
        format_(static_cast<int>(layout_.format)) {
    parts_ = {context.workspace->get_array<Part>(kSlotParts, static_cast<int64_t>(products.size())), products.size()};
    plan(products);
  }

  void run() {
    pack_x();
    const int64_t scratch_bytes = decoded_bytes() + scale_bytes() + sums_bytes();
    auto* scratch = context_.workspace->get_array<std::byte>(kSlotThreadScratch, scratch_bytes * context_.pool->size());
    context_.pool->parallel_for(units_, units_per_grab_, [&](int64_t begin, int64_t end, int member) {
      for (int64_t unit = begin; unit < end; ++unit) run_unit(unit, scratch + member * scratch_bytes);
    });
  }

 private:
  bool is_direct(const Product& product) const { return product.rows <= kernels_.max_direct_rows; }

  void plan(std::span<const Product> products) {
    int64_t rows = 0, tiles = 0;
    for (size_t i = 0; i < products.size(); ++i) {
      Part& part = parts_[i];
      part = {&products[i], 0, tiles, rows, 0};
      const int64_t most = is_direct(products[i]) ? kernels_.max_direct_rows : kernels_.max_blocked_rows;
      part.tiles = (products[i].rows + most - 1) / most;
      tiles += part.tiles;
      rows += products[i].rows;
      largest_block_rows_ = std::max(largest_block_rows_, is_direct(products[i]) ? 0 : block_rows(part));
    }
    tiles_ = tiles;
    rows_ = rows;
    // Small enough that every thread gets several, large enough that a unit outweighs its dispatch.
    const int64_t panels = layout_.panels * static_cast<int64_t>(products.size());
    unit_panels_ = std::clamp<int64_t>(panels / (context_.pool->size() * 6) / 4 * 4, 4, kUnitPanels);
    chunks_ = (layout_.panels + unit_panels_ - 1) / unit_panels_;
    for (Part& part : parts_) {
      part.first_unit = units_;
      units_ += chunks_ * blocks(part);
    }
    // Below some microseconds of work, waking other threads costs more than it gives.
    const int64_t work = layout_.panels * layout_.padded_in * rows_ * kPanelOutputs;
    units_per_grab_ = work < 100'000 ? units_ : 1;
  }

  // Blocks of rows of a blocked product, cut at tiles.
  int64_t blocks(const Part& part) const {
    return is_direct(*part.product) ? 1 : (part.product->rows + kBlockRows - 1) / kBlockRows;
  }
  int64_t block_begin_tile(const Part& part, int64_t block) const { return block * part.tiles / blocks(part); }
  int64_t block_rows(const Part& part) const {  // of the largest block
    return (part.tiles + blocks(part) - 1) / blocks(part) * kernels_.max_blocked_rows;
  }

  int64_t words() const { return layout_.padded_in / kernels_.inputs_per_word; }
  uint32_t* tile_x(const Part& part, int64_t tile) const {
    return packed_x_ + (part.first_row + part.tile_begin(tile)) * words();
  }

  void pack_x() {
    packed_x_ = context_.workspace->get_array<uint32_t>(kSlotPackedX, rows_ * words());
    const int64_t grain = rows_ * words() < 65536 ? tiles_ : 1;
    context_.pool->parallel_for(tiles_, grain, [&](int64_t begin, int64_t end, int) {
      const Part* part = &parts_[0];
      for (int64_t tile = begin; tile < end; ++tile) {
        while (tile >= part->first_tile + part->tiles) ++part;
        pack_tile(*part, tile - part->first_tile);
      }
    });
  }

  void pack_tile(const Part& part, int64_t tile) const {
    const int64_t rows = part.tile_rows(tile);
    for (int64_t i = 0; i < rows; ++i)
      kernels_.pack_row(part.product->x + (part.tile_begin(tile) + i) * part.product->x_stride, layout_.in_features,
                        layout_.padded_in, context_.activation, rows, tile_x(part, tile) + i * 16);
  }

  void run_unit(int64_t unit, std::byte* scratch) const {
    const auto after = std::upper_bound(parts_.begin(), parts_.end(), unit,
                                        [](int64_t value, const Part& part) { return value < part.first_unit; });
    const Part& part = *std::prev(after);
    const int64_t local = unit - part.first_unit;
    const int64_t panel = local % chunks_ * unit_panels_;
    const int64_t panels = std::min(unit_panels_, layout_.panels - panel);
    if (is_direct(*part.product))
      run_direct(part, panel, panels);
    else
      run_blocked(part, local / chunks_, panel, panels, scratch);
  }

  const std::byte* stored_panel(const Part& part, int64_t panel) const {
    return part.product->weight->data().as<std::byte>() + panel * layout_.panel_bytes;
  }

  void run_direct(const Part& part, int64_t panel, int64_t panels) const {
    const Product& product = *part.product;
    const auto& kernel = kernels_.direct[format_][product.rows];
    DirectCall call{.x = tile_x(part, 0),
                    .panel_bytes = layout_.panel_bytes,
                    .padded_in = layout_.padded_in,
                    .y_stride = product.y_stride};
    for (const int64_t end = panel + panels; panel < end;) {
      const bool wide = end - panel >= kernel.panels;
      call.weights = stored_panel(part, panel);
      call.y = product.y + panel * kPanelOutputs;
      call.outputs = layout_.out_features - panel * kPanelOutputs;
      (wide ? kernel.wide : kernel.single)(call);
      panel += wide ? kernel.panels : 1;
    }
  }

  // Scratch of one thread: decoded panels, their scales, sums.
  int64_t decoded_bytes() const {
    return largest_block_rows_ > 0 ? kUnitPanels * kStretchWords * kPanelOutputs * 4 : 0;
  }
  int64_t scale_bytes() const { return kUnitPanels * kPanelOutputs * 4; }
  int64_t sums_bytes() const { return kUnitPanels * largest_block_rows_ * kPanelOutputs * 4; }

  struct Block {
    const Part& part;
    int64_t first_tile, last_tile;
    int64_t first_row, rows;
    int64_t panel, panels;
    std::byte* decoded;
    float* sums;  // [panel][row][16]
  };

  void run_blocked(const Part& part, int64_t index, int64_t panel, int64_t panels, std::byte* scratch) const {
    const int64_t first_tile = block_begin_tile(part, index), last_tile = block_begin_tile(part, index + 1);
    const int64_t first_row = part.tile_begin(first_tile), rows = part.tile_begin(last_tile) - first_row;
    const Block block{part,      first_tile, last_tile,
                      first_row, rows,       panel,
                      panels,    scratch,    reinterpret_cast<float*>(scratch + decoded_bytes() + scale_bytes())};
    std::memset(block.sums, 0, static_cast<size_t>(panels * rows * kPanelOutputs) * sizeof(float));
    const bool scaled = layout_.format == WeightFormat::kF8Block;
    const int64_t stretch = scaled ? kScaleInputs : kStretchWords * kernels_.inputs_per_word;
    for (int64_t k = 0; k < layout_.padded_in; k += stretch)
      multiply_stretch(block, k, std::min(stretch, layout_.padded_in - k));
    store(block);
  }

  // Inputs [k, k + inputs) of all rows and panels of a block.
  void multiply_stretch(const Block& block, int64_t k, int64_t inputs) const {
    const bool scaled = layout_.format == WeightFormat::kF8Block;
    const int64_t offset =
        scaled || layout_.format == WeightFormat::kBF16 ? layout_.pair_offset(k, 0) : k * kPanelOutputs * 4;
    auto* scales = reinterpret_cast<float*>(block.decoded + decoded_bytes());
    BlockedCall call{.words = inputs / kernels_.inputs_per_word,
                     .scales = scaled ? scales : nullptr,
                     .scale_stride = kPanelOutputs,
                     .sums_stride = block.rows * kPanelOutputs};
    const auto decode = kernels_.decode[format_];
    const std::byte* weights = stored_panel(block.part, block.panel) + offset;
    call.weight_stride_bytes = decode ? call.words * kPanelOutputs * 4 : layout_.panel_bytes;
    if (decode) {
      for (int64_t n = 0; n < block.panels; ++n)
        decode(weights + n * layout_.panel_bytes, inputs, block.decoded + n * call.weight_stride_bytes);
    }
    if (scaled) {
      for (int64_t n = 0; n < block.panels; ++n)
        std::memcpy(scales + n * kPanelOutputs, stored_panel(block.part, block.panel + n) + layout_.scale_offset(k, 0),
                    kPanelOutputs * sizeof(float));
    }
    const std::byte* first = decode ? block.decoded : weights;
    for (int64_t tile = block.first_tile; tile < block.last_tile; ++tile) {
      const int64_t rows = block.part.tile_rows(tile);
      const auto& kernel = kernels_.blocked[scaled][rows];
      call.x = tile_x(block.part, tile) + k / kernels_.inputs_per_word * rows;
      for (int64_t n = 0; n < block.panels;) {
        const bool wide = block.panels - n >= kernel.panels;
        call.weights = first + n * call.weight_stride_bytes;
        call.scales = scaled ? scales + n * kPanelOutputs : nullptr;
        call.sums = block.sums + n * call.sums_stride + (block.part.tile_begin(tile) - block.first_row) * kPanelOutputs;
        (wide ? kernel.wide : kernel.single)(call);
        n += wide ? kernel.panels : 1;
      }
    }
  }

  void store(const Block& block) const {
    const Product& product = *block.part.product;
    for (int64_t n = 0; n < block.panels; ++n) {
      const int64_t output = (block.panel + n) * kPanelOutputs;
      const auto outputs = static_cast<size_t>(std::min(kPanelOutputs, layout_.out_features - output));
      for (int64_t i = 0; i < block.rows; ++i)
        std::memcpy(product.y + (block.first_row + i) * product.y_stride + output,
                    block.sums + (n * block.rows + i) * kPanelOutputs, outputs * sizeof(float));
    }
  }

  const Context& context_;
  const PanelLayout layout_;
  const LinearKernels& kernels_;
  const int format_;
  std::span<Part> parts_;
  int64_t tiles_ = 0, rows_ = 0;
  int64_t largest_block_rows_ = 0;
  int64_t unit_panels_ = 0, chunks_ = 0, units_ = 0, units_per_grab_ = 1;
  uint32_t* packed_x_ = nullptr;
};

}  // namespace

void run_products_fast(const Context& context, std::span<const Product> products) {
  FastProducts(context, products).run();
}

}  // namespace plait::kernels
