#include "checkpoint/safetensors.h"

#include <boost/json/basic_parser_impl.hpp>

#include "base/units.h"

namespace plait {
namespace {

constexpr size_t kLengthBytes = 8;
constexpr size_t kMaxRank = 16;
constexpr std::string_view kMetadata = "__metadata__";

// Hears the header's JSON as it is parsed and builds the entries: no tree in between, so a header of 100 MB costs no
// more memory than its names and shapes. Every on_...() returns whether to go on; after false, `failure` says why.
class HeaderReader {
 public:
  static constexpr size_t max_object_size = std::numeric_limits<size_t>::max();
  static constexpr size_t max_array_size = std::numeric_limits<size_t>::max();
  static constexpr size_t max_key_size = 1 << 16;
  static constexpr size_t max_string_size = kMaxSafetensorsHeaderBytes;

  using Code = boost::json::error_code;
  using Text = boost::json::string_view;

  std::vector<SafetensorsEntry> entries;
  std::optional<Error> failure;

  bool on_document_begin(Code&) { return true; }
  bool on_document_end(Code&) { return true; }
  bool on_comment_part(Text, Code&) { return true; }
  bool on_comment(Text, Code&) { return true; }
  bool on_number_part(Text, Code&) { return true; }

  bool on_key_part(Text part, size_t, Code&) {
    text_ += part;
    return true;
  }
  bool on_key(Text part, size_t, Code& code) {
    text_ += part;
    key_ = std::exchange(text_, {});
    return begin_field(code);
  }
  bool on_string_part(Text part, size_t, Code&) {
    if (wants_string()) text_ += part;
    return true;
  }
  bool on_string(Text part, size_t, Code& code) {
    if (wants_string()) text_ += part;
    return take_string(std::exchange(text_, {}), code);
  }

  bool on_object_begin(Code& code) {
    if (skipping()) return ++skipped_levels_, true;
    switch (place_) {
      case Place::kDocument:
        place_ = Place::kHeader;
        return true;
      case Place::kHeader:
        return begin_entry(code);
      default:
        return refuse_value("an object", code);
    }
  }
  bool on_object_end(size_t, Code& code) {
    if (skipped_levels_ > 0) return --skipped_levels_, true;
    if (place_ == Place::kTensor && !end_tensor(code)) return false;
    place_ = place_ == Place::kHeader ? Place::kDocument : Place::kHeader;
    return true;
  }
  bool on_array_begin(Code& code) {
    if (skipping()) return ++skipped_levels_, true;
    if (place_ != Place::kTensor || field_ == Field::kDType) return refuse_value("an array", code);
    place_ = Place::kNumbers;
    return true;
  }
  bool on_array_end(size_t, Code&) {
    if (skipped_levels_ > 0) return --skipped_levels_, true;
    place_ = Place::kTensor;
    return true;
  }

  bool on_int64(int64_t value, Text, Code& code) {
    if (skipping()) return true;
    if (value < 0) return refuse(corrupt(fmt::format("{}: negative number {}", where(), value)), code);
    return take_number(static_cast<uint64_t>(value), code);
  }
  bool on_uint64(uint64_t value, Text, Code& code) {
    if (skipping()) return true;
    return take_number(value, code);
  }
  bool on_double(double value, Text, Code& code) {
    if (skipping()) return true;
    return refuse(corrupt(fmt::format("{}: {} is not a whole number below 2^64", where(), value)), code);
  }
  bool on_bool(bool, Code& code) { return skipping() || refuse_value("a boolean", code); }
  bool on_null(Code& code) { return skipping() || refuse_value("null", code); }

 private:
  enum class Place { kDocument, kHeader, kMetadata, kTensor, kNumbers };
  enum class Field { kDType, kShape, kOffsets, kUnknown };

  bool refuse(Error error, Code& code) {
    failure = std::move(error);
    code = boost::json::error::syntax;
    return false;
  }
  bool refuse_value(std::string_view what, Code& code) {
    return refuse(corrupt(fmt::format("{}: {} does not belong there", where(), what)), code);
  }
  std::string where() const {
    switch (place_) {
      case Place::kDocument:
        return "the header, which must be a JSON object";
      case Place::kHeader:
        return fmt::format("entry \"{}\"", key_);
      case Place::kMetadata:
        return fmt::format("__metadata__ \"{}\"", key_);
      case Place::kTensor:
      case Place::kNumbers:
        return fmt::format("tensor \"{}\", {}", entry_.name, key_);
    }
    return {};
  }

  // A field of a tensor that this reader does not know, like the format's own reader, is passed over.
  bool skipping() const { return place_ == Place::kTensor && field_ == Field::kUnknown; }

  bool wants_string() const { return place_ == Place::kTensor && field_ == Field::kDType; }

  bool begin_field(Code& code) {
    if (place_ != Place::kTensor || skipped_levels_ > 0) return true;
    static constexpr std::pair<std::string_view, Field> kFields[] = {
        {"dtype", Field::kDType}, {"shape", Field::kShape}, {"data_offsets", Field::kOffsets}};
    field_ = Field::kUnknown;
    for (const auto& [name, field] : kFields)
      if (key_ == name) field_ = field;
    if (field_ == Field::kUnknown) return true;
    const unsigned bit = 1U << static_cast<unsigned>(field_);
    if (seen_ & bit) return refuse(corrupt(fmt::format("{}: stands there twice", where())), code);
    seen_ |= bit;
    return true;
  }

  bool begin_entry(Code& code) {
    if (key_ == kMetadata) {
      if (std::exchange(has_metadata_, true)) return refuse(corrupt("__metadata__ stands there twice"), code);
      place_ = Place::kMetadata;
      return true;
    }
    place_ = Place::kTensor;
    field_ = Field::kUnknown;
    seen_ = 0;
    offsets_ = 0;
    entry_ = {};
    entry_.name = std::move(key_);
    return true;
  }

  bool end_tensor(Code& code) {
    constexpr unsigned kAllFields = 7;
    if (seen_ != kAllFields || offsets_ != 2)
      return refuse(corrupt(fmt::format("tensor \"{}\": needs dtype, shape and two data_offsets", entry_.name)), code);
    entries.push_back(std::move(entry_));
    return true;
  }

  bool take_string(const std::string& text, Code& code) {
    if (place_ == Place::kMetadata || skipping()) return true;
    if (!wants_string()) return refuse_value("a string", code);
    if (parse_dtype(text, entry_.dtype)) return true;
    return refuse(unsupported(fmt::format("tensor \"{}\": dtype \"{}\" is not known", entry_.name, text.substr(0, 32))),
                  code);
  }

  bool take_number(uint64_t value, Code& code) {
    if (place_ != Place::kNumbers) return refuse_value("a number", code);
    return field_ == Field::kShape ? take_dimension(value, code) : take_offset(value, code);
  }
  bool take_dimension(uint64_t value, Code& code) {
    if (entry_.shape.size() == kMaxRank)
      return refuse(corrupt(fmt::format("{}: more than {} dimensions", where(), kMaxRank)), code);
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
      return refuse(corrupt(fmt::format("{}: dimension {} is too large", where(), value)), code);
    entry_.shape.push_back(static_cast<int64_t>(value));
    return true;
  }
  bool take_offset(uint64_t value, Code& code) {
    if (offsets_ == 2) return refuse(corrupt(fmt::format("{}: more than two numbers", where())), code);
    (offsets_++ == 0 ? entry_.begin_bytes : entry_.end_bytes) = value;
    return true;
  }

  Place place_ = Place::kDocument;
  Field field_ = Field::kUnknown;
  int skipped_levels_ = 0;
  bool has_metadata_ = false;
  unsigned seen_ = 0;  // bit set of Field, for the tensor in hand
  int offsets_ = 0;    // numbers of data_offsets so far
  std::string text_, key_;
  SafetensorsEntry entry_;
};

Result<std::vector<SafetensorsEntry>> read_header(std::string_view header) {
  if (header.empty() || header.front() != '{') return corrupt("the header does not begin with '{'");
  boost::json::parse_options options;
  options.max_depth = 8;
  boost::json::basic_parser<HeaderReader> parser(options);
  boost::json::error_code code;
  const size_t parsed = parser.write_some(false, header.data(), header.size(), code);
  HeaderReader& reader = parser.handler();
  if (reader.failure) return std::move(*reader.failure);
  if (!code && parsed < header.size()) code = boost::json::error::extra_data;
  if (code) return corrupt(fmt::format("the header is not valid JSON: {} at byte {}", code.message(), parsed));
  return std::move(reader.entries);
}

Status check_names(const std::vector<SafetensorsEntry>& entries) {
  std::vector<std::string_view> names;
  names.reserve(entries.size());
  for (const SafetensorsEntry& entry : entries) names.push_back(entry.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) return corrupt(fmt::format("tensor \"{}\" stands in the header twice", *twice));
  return {};
}

// Bytes that shape and dtype ask for; nothing if they do not fit 64 bits.
std::optional<uint64_t> bytes_of(const SafetensorsEntry& entry) {
  auto bytes = static_cast<uint64_t>(size_of(entry.dtype));
  for (const int64_t dimension : entry.shape)
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(dimension), &bytes)) return std::nullopt;
  return bytes;
}

// Sorts by offset and checks that the tensors cover the data exactly: no overlap, no gap, nothing left over.
Status check_offsets(std::vector<SafetensorsEntry>& entries, uint64_t data_bytes) {
  std::sort(entries.begin(), entries.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    return std::tie(a.begin_bytes, a.end_bytes, a.name) < std::tie(b.begin_bytes, b.end_bytes, b.name);
  });
  uint64_t covered = 0;
  for (const SafetensorsEntry& entry : entries) {
    const auto wrong = [&](const std::string& what) {
      return corrupt(
          fmt::format("tensor \"{}\": data_offsets [{}, {}) {}", entry.name, entry.begin_bytes, entry.end_bytes, what));
    };
    if (entry.end_bytes < entry.begin_bytes) return wrong("end before they begin");
    if (entry.end_bytes > data_bytes) return wrong(fmt::format("leave the {} bytes of data in the file", data_bytes));
    if (entry.begin_bytes < covered) return wrong("overlap another tensor");
    if (entry.begin_bytes > covered) return wrong(fmt::format("leave a gap after byte {}", covered));
    const std::optional<uint64_t> needed = bytes_of(entry);
    const std::string shape = fmt::format("{} [{}]", name_of(entry.dtype), fmt::join(entry.shape, ", "));
    if (!needed) return wrong(fmt::format("cannot hold {}: its size overflows", shape));
    if (*needed != entry.end_bytes - entry.begin_bytes)
      return wrong(fmt::format("do not fit {}, which has {} bytes", shape, *needed));
    covered = entry.end_bytes;
  }
  if (covered != data_bytes)
    return corrupt(fmt::format("{} bytes after the last tensor's data belong to no tensor", data_bytes - covered));
  return {};
}

}  // namespace

Result<std::vector<SafetensorsEntry>> parse_safetensors(std::span<const std::byte> file) {
  if (file.size() < kLengthBytes)
    return corrupt(fmt::format("{} bytes are too few for a safetensors file", file.size()));
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), kLengthBytes);
  const uint64_t rest = file.size() - kLengthBytes;
  if (header_bytes > kMaxSafetensorsHeaderBytes)
    return corrupt(fmt::format("a header of {} bytes; at most {} are allowed. Is this a safetensors file?",
                               header_bytes, kMaxSafetensorsHeaderBytes));
  if (header_bytes > rest)
    return corrupt(fmt::format("a header of {} bytes in a file of {} bytes: the file is cut off", header_bytes,
                               format_bytes(file.size())));
  const std::string_view header(reinterpret_cast<const char*>(file.data()) + kLengthBytes, header_bytes);
  PLAIT_ASSIGN_OR_RETURN(std::vector<SafetensorsEntry> entries, read_header(header));
  PLAIT_RETURN_IF_ERROR(check_names(entries));
  PLAIT_RETURN_IF_ERROR(check_offsets(entries, rest - header_bytes));
  for (SafetensorsEntry& entry : entries) {
    entry.begin_bytes += kLengthBytes + header_bytes;
    entry.end_bytes += kLengthBytes + header_bytes;
  }
  return entries;
}

}  // namespace plait
