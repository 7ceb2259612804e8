// How the fast products are cut into pieces: over threads, panels, rows and inputs. No cut changes a bit of a result
// (linear_kernels.h), so all of them follow speed alone.
#include "base/assert.h"
#include "kernels/cpu/implementations.h"
#include "kernels/cpu/linear_kernels.h"
#include "kernels/cpu/linear_product.h"
#include "kernels/cpu/panels.h"

namespace plait::kernels {
namespace {

// A unit of work: some panels times a block of rows. If the rows are more than one tile, a stretch of the unit's panels
// waits in the L2 cache for all tiles; if they are one tile, a stretch of x waits there for all panels.
constexpr int64_t kUnitPanels = 8;
constexpr int64_t kStretchPanelBytes = 32 << 10;
constexpr int64_t kStretchTileBytes = 512 << 10;
constexpr int64_t kBlockTiles = 40;
constexpr int64_t kFewestBlockTiles = 8;
constexpr int64_t kUnitsPerThread = 6;

// How the rows of one product are packed and which units of work it has.
struct Part {
  const Product* product = nullptr;
  int64_t tiles = 0;
  int64_t blocks = 1;      // of tiles
  int64_t first_tile = 0;  // among the tiles of the call
  int64_t first_row = 0;   // among the rows of the call
  int64_t first_unit = 0;

  int64_t tile_begin(int64_t tile) const { return tile * product->rows / tiles; }
  int64_t tile_rows(int64_t tile) const { return tile_begin(tile + 1) - tile_begin(tile); }
  int64_t block_begin(int64_t block) const { return block * tiles / blocks; }
};

class FastProducts {
 public:
  FastProducts(const Context& context, std::span<const Product> products)
      : context_(context),
        layout_(*products.front().weight),
        table_(linear_kernels(layout_.format, context.activation)),
        parts_(context.workspace->get_array<Part>(kSlotParts, static_cast<int64_t>(products.size())), products.size()) {
    plan_tiles(products);
    plan_units();
  }

  void run() {
    pack_x();
    const int64_t scratch_bytes = decodes_ ? kUnitPanels * decoded_panel_bytes(stretch_of_many_tiles()) : 0;
    auto* scratch = context_.workspace->get_array<std::byte>(kSlotThreadScratch, scratch_bytes * context_.pool->size());
    context_.pool->parallel_for(units_, units_per_grab_, [&](int64_t begin, int64_t end, int member) {
      for (int64_t unit = begin; unit < end; ++unit) run_unit(unit, scratch + member * scratch_bytes);
    });
  }

 private:
  // What a unit computes: rows of tiles [first_tile, last_tile), outputs of panels [panel, panel + panels).
  struct Unit {
    const Part& part;
    int64_t first_tile, last_tile;
    int64_t panel, panels;
    std::byte* scratch;
  };

  void plan_tiles(std::span<const Product> products) {
    for (size_t i = 0; i < products.size(); ++i) {
      const int64_t rows = products[i].rows;
      const bool single = rows <= table_.max_single_rows;
      const int64_t tiles = single ? 1 : (rows + table_.max_tile_rows - 1) / table_.max_tile_rows;
      parts_[i] = {.product = &products[i], .tiles = tiles, .first_tile = tiles_, .first_row = rows_};
      tiles_ += tiles;
      rows_ += rows;
      decodes_ |= !single && layout_.format == WeightFormat::kF8Block;
    }
  }

  // Units are small enough that every thread gets several, and large enough to outweigh their dispatch.
  void plan_units() {
    const int64_t wanted = context_.pool->size() * kUnitsPerThread;
    const int64_t panels = layout_.panels * static_cast<int64_t>(parts_.size());
    unit_panels_ = std::clamp<int64_t>(panels / wanted / 4 * 4, 4, kUnitPanels);
    chunks_ = (layout_.panels + unit_panels_ - 1) / unit_panels_;
    const int64_t chunks = chunks_ * static_cast<int64_t>(parts_.size());
    for (Part& part : parts_) {
      const int64_t for_cache = (part.tiles + kBlockTiles - 1) / kBlockTiles;
      const int64_t for_threads = std::min((wanted + chunks - 1) / chunks, part.tiles / kFewestBlockTiles);
      part.blocks = std::max(for_cache, for_threads);
      part.first_unit = units_;
      units_ += chunks_ * part.blocks;
    }
    // Below some microseconds of work, waking other threads costs more than it gives.
    const int64_t work = layout_.panels * kPanelOutputs * layout_.padded_in * rows_;
    units_per_grab_ = work < 100'000 ? units_ : 1;
  }

  int64_t words(int64_t inputs) const { return inputs / table_.inputs_per_word; }

  uint32_t* tile_x(const Part& part, int64_t tile) const {
    return packed_x_ + (part.first_row + part.tile_begin(tile)) * words(layout_.padded_in);
  }

  void pack_x() {
    const int64_t all_words = rows_ * words(layout_.padded_in);
    packed_x_ = context_.workspace->get_array<uint32_t>(kSlotPackedX, all_words);
    context_.pool->parallel_for(tiles_, all_words < 65536 ? tiles_ : 1, [&](int64_t begin, int64_t end, int) {
      const auto after = std::upper_bound(parts_.begin(), parts_.end(), begin,
                                          [](int64_t tile, const Part& part) { return tile < part.first_tile; });
      auto part = std::prev(after);
      for (int64_t tile = begin; tile < end; ++tile) {
        if (tile == part->first_tile + part->tiles) ++part;
        pack_tile(*part, tile - part->first_tile);
      }
    });
  }

  void pack_tile(const Part& part, int64_t tile) const {
    const int64_t rows = part.tile_rows(tile);
    const float* x = part.product->x + part.tile_begin(tile) * part.product->x_stride;
    for (int64_t i = 0; i < rows; ++i)
      table_.pack_row(x + i * part.product->x_stride, layout_.in_features, layout_.padded_in, context_.activation, rows,
                      tile_x(part, tile) + i * 16);
  }

  void run_unit(int64_t index, std::byte* scratch) const {
    const auto after = std::upper_bound(parts_.begin(), parts_.end(), index,
                                        [](int64_t value, const Part& part) { return value < part.first_unit; });
    const Part& part = *std::prev(after);
    const int64_t block = (index - part.first_unit) / chunks_, chunk = (index - part.first_unit) % chunks_;
    const int64_t panel = chunk * unit_panels_;
    const Unit unit{part,
                    part.block_begin(block),
                    part.block_begin(block + 1),
                    panel,
                    std::min(unit_panels_, layout_.panels - panel),
                    scratch};
    const int64_t stretch = part.tiles == 1 ? stretch_of_one_tile(part.product->rows) : stretch_of_many_tiles();
    for (int64_t k = 0; k < layout_.padded_in; k += stretch)
      run_stretch(unit, k, std::min(stretch, layout_.padded_in - k));
  }

  // Stretches of inputs are multiples of the scale blocks.
  int64_t stretch_of_one_tile(int64_t rows) const {
    return kStretchTileBytes / (rows * 4) * table_.inputs_per_word / kScaleInputs * kScaleInputs;
  }
  int64_t stretch_of_many_tiles() const {
    const int64_t bytes = decodes_ ? table_.decoded_bytes : layout_.element_bytes();
    return kStretchPanelBytes / (kPanelOutputs * bytes) / kScaleInputs * kScaleInputs;
  }
  int64_t decoded_panel_bytes(int64_t inputs) const {
    return (inputs * table_.decoded_bytes + (inputs + kScaleInputs - 1) / kScaleInputs * int64_t{sizeof(float)}) *
           kPanelOutputs;
  }

  void run_stretch(const Unit& unit, int64_t k, int64_t inputs) const {
    const Product& product = *unit.part.product;
    int form = static_cast<int>(layout_.format);
    PanelCall call{
        .panel_bytes = layout_.panel_bytes, .inputs = inputs, .y_stride = product.y_stride, .accumulate = k > 0};
    const std::byte* weights =
        product.weight->data().as<std::byte>() + unit.panel * layout_.panel_bytes + layout_.input_offset(k);
    if (form == static_cast<int>(WeightFormat::kF8Block) && unit.part.tiles > 1) {
      form = kDecodedF8;
      call.panel_bytes = decoded_panel_bytes(inputs);
      for (int64_t n = 0; n < unit.panels; ++n)
        table_.decode(weights + n * layout_.panel_bytes, inputs, unit.scratch + n * call.panel_bytes);
      weights = unit.scratch;
    }
    for (int64_t tile = unit.first_tile; tile < unit.last_tile; ++tile) {
      const int64_t rows = unit.part.tile_rows(tile);
      const LinearKernels::Sizes& kernel = table_.kernels[form][rows];
      call.x = tile_x(unit.part, tile) + words(k) * rows;
      for (int64_t n = 0; n < unit.panels;) {
        const bool wide = unit.panels - n >= kernel.panels;
        const int64_t output = (unit.panel + n) * kPanelOutputs;
        call.weights = weights + n * call.panel_bytes;
        call.y = product.y + unit.part.tile_begin(tile) * product.y_stride + output;
        call.outputs = layout_.out_features - output;
        (wide ? kernel.wide : kernel.single)(call);
        n += wide ? kernel.panels : 1;
      }
    }
  }

  const Context& context_;
  const PanelLayout layout_;
  const LinearKernels& table_;
  const std::span<Part> parts_;
  int64_t tiles_ = 0, rows_ = 0;
  bool decodes_ = false;  // some e4m3 panels, before they meet several tiles
  int64_t unit_panels_ = 0, chunks_ = 0, units_ = 0, units_per_grab_ = 1;
  uint32_t* packed_x_ = nullptr;
};

}  // namespace

void fast::run_products(const Context& context, std::span<const Product> products) {
  FastProducts(context, products).run();
}

}  // namespace plait::kernels
