#include "kernels/cuda/gemm_table.h"

#include <algorithm>
#include <cerrno>
#include <set>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <unistd.h>

#include "base/json.h"
#include "base/log.h"
#include "jit/cache.h"
#include "jit/cache_files.h"
#include "kernels/cuda/gemm_chooser.h"

namespace plait::cuda {
namespace {

namespace bj = boost::json;

constexpr std::string_view kFormatName = "plait kernel table";
constexpr double kMostSeconds = 3600;
constexpr size_t kShownDigits = 16;

// -- Words of a shape

template <typename Enum>
struct Word {
  Enum value;
  const char* text;
};
constexpr Word<GemmRows> kRowsWords[] = {{GemmRows::kDense, "dense"},
                                         {GemmRows::kContiguous, "contiguous"},
                                         {GemmRows::kMasked, "masked"},
                                         {GemmRows::kBatched, "batched"}};
constexpr Word<GemmFormat> kFormatWords[] = {{GemmFormat::kFp8, "fp8"}, {GemmFormat::kBf16, "bf16"}};
constexpr Word<GemmResult> kResultWords[] = {{GemmResult::kBf16, "bf16"}, {GemmResult::kF32, "f32"}};

template <typename Enum, size_t Count>
const char* word_of(const Word<Enum> (&words)[Count], Enum value) {
  return std::ranges::find(words, value, &Word<Enum>::value)->text;
}

template <typename Enum, size_t Count>
Result<Enum> value_of(const Word<Enum> (&words)[Count], const json::Fields& fields, std::string_view key) {
  PLAIT_ASSIGN_OR_RETURN(const std::string text, fields.required_string(key));
  std::string known;
  for (const auto& [value, word] : words) {
    if (text == word) return value;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", word);
  }
  return fields.error(key, fmt::format("must be one of {}, not \"{}\"", known, text));
}

// -- Reading

Status refuse_unknown(const json::Fields& fields, std::initializer_list<std::string_view> known) {
  for (const auto& field : fields.raw())
    if (std::ranges::find(known, std::string_view(field.key())) == known.end())
      return fields.error(field.key(), "is no field of a kernel table");
  return {};
}

Result<const bj::array*> required_array(const json::Fields& fields, std::string_view key) {
  const bj::value* value = fields.find(key);
  if (value == nullptr) return fields.error(key, "is missing");
  if (!value->is_array()) return fields.error(key, fmt::format("must be an array, not {}", json::describe(*value)));
  return &value->get_array();
}

Result<json::Fields> object_at(const bj::array& array, size_t i, const std::string& path) {
  if (!array[i].is_object())
    return corrupt(fmt::format("{}[{}]: must be an object, not {}", path, i, json::describe(array[i])));
  return json::Fields(array[i].get_object(), ErrorKind::kCorrupt, fmt::format("{}[{}].", path, i));
}

Result<GemmShape> read_shape(const json::Fields& fields) {
  GemmShape shape;
  PLAIT_ASSIGN_OR_RETURN(shape.rows, value_of(kRowsWords, fields, "rows"));
  PLAIT_ASSIGN_OR_RETURN(shape.format, value_of(kFormatWords, fields, "format"));
  PLAIT_ASSIGN_OR_RETURN(shape.n, fields.required_integer("n", {1, int64_t{1} << 31}));
  PLAIT_ASSIGN_OR_RETURN(shape.k, fields.required_integer("k", {1, int64_t{1} << 31}));
  PLAIT_ASSIGN_OR_RETURN(const int64_t groups, fields.required_integer("groups", {1, 1 << 20}));
  shape.groups = static_cast<int>(groups);
  PLAIT_ASSIGN_OR_RETURN(shape.result, value_of(kResultWords, fields, "result"));
  return shape;
}

using Choices = std::vector<GemmTable::Choice>;

Result<GemmTable::Choice> read_choice(const json::Fields& fields, const DeviceModel& device, const GemmShape& shape) {
  PLAIT_RETURN_IF_ERROR(refuse_unknown(fields, {"rows", "kernel", "us"}));
  GemmTable::Choice choice;
  PLAIT_ASSIGN_OR_RETURN(choice.rows, fields.required_integer("rows", {1, int64_t{1} << 40}));
  if (rows_class(choice.rows) != choice.rows)
    return fields.error(
        "rows", fmt::format("{} is not the largest row count of a class: {} is", choice.rows, rows_class(choice.rows)));
  PLAIT_ASSIGN_OR_RETURN(const std::string name, fields.required_string("kernel"));
  const std::optional<GemmKernel> kernel = find_candidate(device, shape, choice.rows, name);
  if (!kernel)
    return fields.error("kernel", fmt::format("there is no kernel \"{}\" for {} rows of {} on {}", name, choice.rows,
                                              describe(shape), device.name));
  choice.kernel = *kernel;
  PLAIT_ASSIGN_OR_RETURN(const double us, fields.required_number("us", {1e-3, kMostSeconds * 1e6}));
  choice.seconds = us * 1e-6;
  return choice;
}

Result<Choices> read_choices(const json::Fields& product, std::string_view key, const DeviceModel& device,
                             const GemmShape& shape) {
  PLAIT_ASSIGN_OR_RETURN(const bj::array* array, required_array(product, key));
  Choices choices;
  for (size_t i = 0; i < array->size(); ++i) {
    PLAIT_ASSIGN_OR_RETURN(const json::Fields fields, object_at(*array, i, product.path_of(key)));
    PLAIT_ASSIGN_OR_RETURN(GemmTable::Choice choice, read_choice(fields, device, shape));
    if (!choices.empty() && choice.rows <= choices.back().rows)
      return fields.error("rows", fmt::format("{} stands behind {}: classes ascend, and each stands once", choice.rows,
                                              choices.back().rows));
    choices.push_back(choice);
  }
  return choices;
}

Result<GemmTable::Product> read_product(const json::Fields& fields, const DeviceModel& device) {
  PLAIT_RETURN_IF_ERROR(
      refuse_unknown(fields, {"rows", "format", "n", "k", "groups", "result", "fastest", "deterministic"}));
  GemmTable::Product product;
  PLAIT_ASSIGN_OR_RETURN(product.shape, read_shape(fields));
  if (auto valid = validate(product.shape, GemmConfig{}); valid.has_error())
    return fields.error("n", valid.error().message);
  PLAIT_ASSIGN_OR_RETURN(product.fastest, read_choices(fields, "fastest", device, product.shape));
  PLAIT_ASSIGN_OR_RETURN(product.deterministic, read_choices(fields, "deterministic", device, product.shape));
  const SummingOrder order = deterministic_order(product.shape);
  for (const GemmTable::Choice& choice : product.deterministic)
    if (summing_order(choice.kernel) != order)
      return fields.error("deterministic",
                          fmt::format("{} has {}, the others of this product {}", name_of(choice.kernel),
                                      describe(summing_order(choice.kernel)), describe(order)));
  return product;
}

Status check_origin(const json::Fields& fields, const DeviceModel& device) {
  PLAIT_ASSIGN_OR_RETURN(const std::string format, fields.required_string("format"));
  if (format != kFormatName)
    return fields.error("format", fmt::format("is \"{}\": this is no {}", format, kFormatName));
  PLAIT_ASSIGN_OR_RETURN(const int64_t version, fields.required_integer("version"));
  if (version != kGemmTableVersion)
    return unsupported(
        fmt::format("version: the table has version {}, and this program reads {}: make it again with "
                    "`plait bench --tune`",
                    version, kGemmTableVersion));
  PLAIT_ASSIGN_OR_RETURN(const std::string sources, fields.required_string("kernel_sources"));
  if (sources != gemm_sources_digest())
    return unsupported(
        fmt::format("kernel_sources: the table was measured with other kernels ({}) than this program "
                    "has ({}): make it again with `plait bench --tune`",
                    sources, gemm_sources_digest()));
  PLAIT_ASSIGN_OR_RETURN(const std::string name, fields.required_string("device"));
  if (name != device.name)
    return invalid(fmt::format("device: the table was measured on {}, and this device is {}", name, device.name));
  return {};
}

Result<GemmTable> read_table(const bj::object& object, const DeviceModel& device) {
  const json::Fields fields(object, ErrorKind::kCorrupt);
  PLAIT_RETURN_IF_ERROR(check_origin(fields, device));
  PLAIT_RETURN_IF_ERROR(
      refuse_unknown(fields, {"format", "version", "kernel_sources", "device", "gpu", "compiler", "products"}));
  GemmTable table{.device = device.name};
  PLAIT_ASSIGN_OR_RETURN(table.gpu, fields.required_string("gpu"));
  PLAIT_ASSIGN_OR_RETURN(table.compiler, fields.required_string("compiler"));
  PLAIT_ASSIGN_OR_RETURN(const bj::array* products, required_array(fields, "products"));
  for (size_t i = 0; i < products->size(); ++i) {
    PLAIT_ASSIGN_OR_RETURN(const json::Fields each, object_at(*products, i, "products"));
    PLAIT_ASSIGN_OR_RETURN(GemmTable::Product product, read_product(each, device));
    if (table.find(product.shape) != nullptr)
      return corrupt(fmt::format("products[{}]: {} stands in the table twice", i, describe(product.shape)));
    table.products.push_back(std::move(product));
  }
  return table;
}

// -- Writing

void write_choices(const char* key, const Choices& choices, std::string& text) {
  text += fmt::format(",\n     \"{}\": [", key);
  for (const GemmTable::Choice& choice : choices)
    text +=
        fmt::format("{}\n      {{\"rows\": {}, \"kernel\": \"{}\", \"us\": {:.3f}}}",
                    &choice == &choices.front() ? "" : ",", choice.rows, name_of(choice.kernel), choice.seconds * 1e6);
  text += "]";
}

std::string quoted(const std::string& text) {
  return bj::serialize(bj::string(text));
}

Error write_error(const std::filesystem::path& file, int problem) {
  return io_error(fmt::format("{}: the kernel table cannot be written", file.string()), problem);
}

}  // namespace

const GemmTable::Product* GemmTable::find(const GemmShape& shape) const {
  const auto product = std::ranges::find(products, shape, &Product::shape);
  return product == products.end() ? nullptr : &*product;
}

const GemmKernel* GemmTable::find(const GemmShape& shape, int64_t largest_rows, bool deterministic) const {
  const Product* product = find(shape);
  if (product == nullptr) return nullptr;
  const Choices& choices = deterministic ? product->deterministic : product->fastest;
  const auto choice = std::ranges::lower_bound(choices, largest_rows, {}, &Choice::rows);
  return choice == choices.end() || choice->rows != largest_rows ? nullptr : &choice->kernel;
}

std::string describe(const GemmShape& shape) {
  return fmt::format("{} {}{} n {} k {}{}", word_of(kFormatWords, shape.format), word_of(kRowsWords, shape.rows),
                     shape.result == GemmResult::kF32 ? " to f32" : "", shape.n, shape.k,
                     shape.groups > 1 ? fmt::format(" groups {}", shape.groups) : "");
}

std::string gemm_sources_digest() {
  static const std::string digest = [] {
    std::string keys;
    for (const GemmFormat format : {GemmFormat::kFp8, GemmFormat::kBf16}) {
      const GemmShape shape{.format = format, .n = 128, .k = 128};
      keys += to_hex(kernel_key(gemm_source(shape, {}), {})) + to_hex(kernel_key(narrow_gemm_source(shape, {}), {}));
    }
    return to_hex(sha256(keys)).substr(0, kShownDigits);
  }();
  return digest;
}

std::string to_json(const GemmTable& table) {
  std::string text = fmt::format(
      "{{\"format\": \"{}\", \"version\": {},\n \"device\": {}, \"gpu\": {}, \"compiler\": {}, \"kernel_sources\": "
      "\"{}\",\n"
      " \"products\": [",
      kFormatName, kGemmTableVersion, quoted(table.device), quoted(table.gpu), quoted(table.compiler),
      gemm_sources_digest());
  for (const GemmTable::Product& product : table.products) {
    const auto& [rows, format, n, k, groups, result] = product.shape;  // all of it: a table must tell shapes apart
    text += fmt::format(
        "{}\n    {{\"rows\": \"{}\", \"format\": \"{}\", \"n\": {}, \"k\": {}, \"groups\": {}, \"result\": \"{}\"",
        &product == &table.products.front() ? "" : ",", word_of(kRowsWords, rows), word_of(kFormatWords, format), n, k,
        groups, word_of(kResultWords, result));
    write_choices("fastest", product.fastest, text);
    write_choices("deterministic", product.deterministic, text);
    text += "}";
  }
  return text + "]}\n";
}

Result<GemmTable> parse_gemm_table(std::string_view text, const DeviceModel& device) {
  auto object = json::parse_object(text);
  if (object.has_error()) return corrupt(std::move(object).error().message);
  return read_table(*object, device);
}

Result<GemmTable> read_gemm_table(const std::filesystem::path& file, const DeviceModel& device) {
  PLAIT_ASSIGN_OR_RETURN(const bj::object object, json::read_object_file(file));
  auto table = read_table(object, device);
  if (table.has_error()) return std::move(table).error().within(file.string());
  return table;
}

Status write_gemm_table(const std::filesystem::path& file, const GemmTable& table) {
  jit::CacheFiles& files = *jit::CacheFiles::real();
  const std::filesystem::path folder = file.has_parent_path() ? file.parent_path() : ".";
  if (const int problem = files.make_directory(folder)) return write_error(file, problem);
  const std::filesystem::path temporary = fmt::format("{}.{}.tmp", file.string(), getpid());
  files.remove(temporary);  // of a process that had this number and died
  if (const int problem = files.create(temporary, to_json(table), jit::CacheFiles::Durability::kSynced))
    return write_error(file, problem);
  if (const int problem = files.rename(temporary, file)) {
    files.remove(temporary);
    return write_error(file, problem);
  }
  if (const int problem = files.sync_directory(folder)) return write_error(file, problem);
  return {};
}

std::filesystem::path default_gemm_table_file(const DeviceModel& device) {
  const std::filesystem::path kernels = jit::default_cache_directory();
  return kernels.empty() ? kernels : kernels.parent_path() / "kernel-tables" / (device.name + ".json");
}

Status use_gemm_table(const std::string& flag, DeviceModel& device) {
  device.table = nullptr;
  if (flag == "none") return {};
  const bool automatic = flag == "auto";
  const std::filesystem::path file = automatic ? default_gemm_table_file(device) : std::filesystem::path(flag);
  std::error_code ignored;
  if (automatic && (file.empty() || !std::filesystem::exists(file, ignored))) return {};
  auto table = read_gemm_table(file, device);
  if (table.has_error()) {
    if (!automatic) return std::move(table).error().within("--kernel-table");
    log::warning("{}; kernels are chosen by the cost model", table.error().message);
    return {};
  }
  device.table = std::make_shared<const GemmTable>(std::move(table).value());
  return {};
}

std::string gemm_table_digest(const DeviceModel& device) {
  if (device.table == nullptr) return "none";
  return to_hex(sha256(to_json(*device.table)));
}

}  // namespace plait::cuda
