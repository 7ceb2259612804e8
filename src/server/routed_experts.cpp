#include "server/routed_experts.h"

#include <array>
#include <cstring>

namespace plait {
namespace {

constexpr size_t kPieceBytes = 192 << 10;  // of ids, before they become text
constexpr size_t kFormatBytes = 64;

constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

// Two characters for each value of 12 bits.
const std::array<char, 2 * 4096>& pairs() {
  static const auto table = [] {
    std::array<char, 2 * 4096> made{};
    for (size_t i = 0; i < 4096; ++i) {
      made[2 * i] = kAlphabet[i >> 6];
      made[2 * i + 1] = kAlphabet[i & 63];
    }
    return made;
  }();
  return table;
}

constexpr size_t base64_size(size_t bytes) {
  return (bytes + 2) / 3 * 4;
}

void append_base64(std::string& out, std::string_view bytes) {
  const auto& table = pairs();
  const auto* in = reinterpret_cast<const unsigned char*>(bytes.data());
  size_t at = out.size();
  out.resize(at + base64_size(bytes.size()));
  char* to = out.data() + at;
  size_t left = bytes.size();
  for (; left >= 3; left -= 3, in += 3, to += 4) {
    const uint32_t group = static_cast<uint32_t>(in[0]) << 16 | static_cast<uint32_t>(in[1]) << 8 | in[2];
    std::memcpy(to, table.data() + 2 * (group >> 12), 2);
    std::memcpy(to + 2, table.data() + 2 * (group & 4095), 2);
  }
  if (left == 0) return;
  const uint32_t group = static_cast<uint32_t>(in[0]) << 16 | (left == 2 ? static_cast<uint32_t>(in[1]) << 8 : 0);
  std::memcpy(to, table.data() + 2 * (group >> 12), 2);
  to[2] = left == 2 ? kAlphabet[group >> 6 & 63] : '=';
  to[3] = '=';
}

class RoutedExpertsText : public ByteSource {
 public:
  RoutedExpertsText(RoutedExpertShape shape, RoutedExpertsFormat format, std::shared_ptr<const std::string> rows,
                    int64_t count)
      : shape_(std::move(shape)),
        id_bytes_(format == RoutedExpertsFormat::kInt32 ? sizeof(int32_t) : static_cast<size_t>(shape_.id_bytes)),
        row_bytes_(static_cast<size_t>(shape_.layers * shape_.experts_per_token) * id_bytes_),
        // whole groups of three bytes, so that pieces follow each other without padding
        rows_per_piece_(std::max<size_t>(kPieceBytes / std::max<size_t>(row_bytes_, 1) / 3, 1) * 3),
        rows_(std::move(rows)),
        count_(static_cast<size_t>(count)) {}

  size_t size() const override { return base64_size(count_ * row_bytes_); }

  void append_piece(std::string& out) override {
    const size_t end = std::min(count_, next_ + rows_per_piece_);
    ids_.assign((end - next_) * row_bytes_, '\0');
    for (char* row = ids_.data(); next_ < end; ++next_, row += row_bytes_) widen_row(next_, row);
    append_base64(out, ids_);
  }

 private:
  void widen_row(size_t index, char* row) const {
    const auto k = static_cast<size_t>(shape_.experts_per_token), kept_bytes = static_cast<size_t>(shape_.id_bytes);
    const char* kept = rows_->data() + index * static_cast<size_t>(shape_.row_bytes());
    for (const int64_t layer : shape_.expert_layers) {
      char* to = row + static_cast<size_t>(layer) * k * id_bytes_;
      // Little-endian and not negative: the bytes above are zeros already.
      for (size_t i = 0; i < k; ++i, to += id_bytes_, kept += kept_bytes) std::memcpy(to, kept, kept_bytes);
    }
  }

  const RoutedExpertShape shape_;
  const size_t id_bytes_;
  const size_t row_bytes_;
  const size_t rows_per_piece_;
  const std::shared_ptr<const std::string> rows_;
  const size_t count_;
  size_t next_ = 0;
  std::string ids_;
};

}  // namespace

RoutedExpertsChoice read_routed_experts(RequestFields& fields, const ApiContext& context) {
  RoutedExpertsChoice choice;
  choice.wanted = fields.boolean("return_routed_experts").value_or(false);
  choice.start = fields.integer("routed_experts_start_len", {}).value_or(0);
  const std::string format = fields.text("routed_experts_format", kFormatBytes).value_or("int32");
  if (format != "int32" && format != "compact")
    fields.fail("routed_experts_format", "must be \"int32\" or \"compact\"");
  if (format == "compact") choice.format = RoutedExpertsFormat::kCompact;
  if (choice.wanted && !context.routed_experts)
    fields.refuse("return_routed_experts",
                  "this server does not keep routed experts; start it with --enable-return-routed-experts");
  return choice;
}

void apply(const RoutedExpertsChoice& choice, Request& request) {
  request.return_routed_experts = choice.wanted;
  request.routed_experts_start = choice.start;
}

std::unique_ptr<ByteSource> routed_experts_text(RoutedExpertShape shape, RoutedExpertsFormat format,
                                                std::shared_ptr<const std::string> rows, int64_t count) {
  return std::make_unique<RoutedExpertsText>(std::move(shape), format, std::move(rows), count);
}

void append_routed_experts(AnswerText& out, const ApiContext& context, RoutedExpertsFormat format,
                           const ClientSequence& sequence) {
  const RoutedExpertShape& shape = *context.routed_experts;
  if (format == RoutedExpertsFormat::kCompact)
    out.text += shape.id_bytes == 1 ? R"("routed_experts_dtype":"uint8",)" : R"("routed_experts_dtype":"uint16",)";
  out.text += R"("routed_experts":")";
  out.append(routed_experts_text(shape, format, sequence.routed_rows(), sequence.routed_row_count()));
  out.text += '"';
}

}  // namespace plait
