#include "engine/kernel_rehearsal.h"

#include <algorithm>
#include <map>
#include <thread>

#include <boost/json/array.hpp>

#include "base/json.h"
#include "engine/first_touch.h"

namespace plait {
namespace {

using json::Fields;

Result<StepMode> mode_of(const std::string& word) {
  if (word == "prefill") return StepMode::kPrefill;
  if (word == "decode") return StepMode::kDecode;
  return invalid(fmt::format("modes: '{}' is neither prefill nor decode", word));
}

Result<std::vector<StepMode>> modes_of(const Fields& fields) {
  std::vector<StepMode> modes;
  const boost::json::value* words = fields.find("modes");
  if (!words) return std::vector{StepMode::kPrefill, StepMode::kDecode};
  if (!words->is_array()) return fields.error("modes", "must be a list");
  for (const boost::json::value& word : words->get_array()) {
    PLAIT_ASSIGN_OR_RETURN(const std::string text, json::to_string(word));
    PLAIT_ASSIGN_OR_RETURN(const StepMode mode, mode_of(text));
    modes.push_back(mode);
  }
  return modes;
}

Result<jit::ManifestEntry> kernel_of(const Fields& fields) {
  jit::ManifestEntry kernel;
  PLAIT_ASSIGN_OR_RETURN(kernel.source.name, fields.required_string("name"));
  PLAIT_ASSIGN_OR_RETURN(kernel.source.text, fields.required_string("text"));
  PLAIT_ASSIGN_OR_RETURN(kernel.source.entry, fields.required_string("entry"));
  PLAIT_ASSIGN_OR_RETURN(kernel.compile_seconds, fields.required_number("seconds", {.min = 0, .max = 3600}));
  PLAIT_ASSIGN_OR_RETURN(const auto constants, fields.object("constants"));
  if (constants) {
    for (const auto& constant : constants->raw()) {
      const std::string name(constant.key());
      PLAIT_ASSIGN_OR_RETURN(kernel.source.constants[name], constants->required_integer(name));
    }
  }
  kernel.calls = {"none: a rehearsal"};
  PLAIT_RETURN_IF_ERROR(validate(kernel.source));
  return kernel;
}

class DelayingCompiler : public jit::Compiler {
 public:
  DelayingCompiler(std::unique_ptr<jit::Compiler> compiler, std::map<Digest, double> seconds)
      : compiler_(std::move(compiler)), seconds_(std::move(seconds)) {}

  const jit::CompilerIdentity& identity() const override { return compiler_->identity(); }
  Result<jit::CompiledKernel> compile(const jit::KernelSource& source) override {
    const auto at = seconds_.find(kernel_key(source, identity()));
    if (at != seconds_.end()) std::this_thread::sleep_for(std::chrono::duration<double>(at->second));
    return compiler_->compile(source);
  }

 private:
  const std::unique_ptr<jit::Compiler> compiler_;
  const std::map<Digest, double> seconds_;
};

}  // namespace

Result<KernelRehearsal> KernelRehearsal::read(const std::filesystem::path& file) {
  PLAIT_ASSIGN_OR_RETURN(const boost::json::object object, json::read_object_file(file));
  const auto in_file = [&](Error error) { return std::move(error).within(file.string()); };
  const boost::json::value* kernels = object.if_contains("kernels");
  if (!kernels || !kernels->is_array()) return in_file(invalid("kernels: must be a list"));
  KernelRehearsal rehearsal;
  for (const boost::json::value& value : kernels->get_array()) {
    const std::string path = fmt::format("kernels[{}].", rehearsal.entries_.size());
    if (!value.is_object()) return in_file(invalid(path + " must be an object"));
    const Fields fields(value.get_object(), ErrorKind::kInvalid, path);
    auto kernel = kernel_of(fields);
    if (kernel.has_error()) return in_file(std::move(kernel).error());
    auto ranks = fields.integers("ranks", {.min = 0});
    if (ranks.has_error()) return in_file(std::move(ranks).error());
    auto modes = modes_of(fields);
    if (modes.has_error()) return in_file(std::move(modes).error());
    rehearsal.entries_.push_back({std::move(kernel).value(), std::move(ranks).value().value_or(std::vector<int64_t>()),
                                  std::move(modes).value()});
  }
  std::ranges::sort(rehearsal.entries_, {}, [](const Entry& entry) { return entry.kernel.source.name; });
  return rehearsal;
}

jit::KernelManifest KernelRehearsal::manifest_of(int rank, DisaggregationMode role) const {
  jit::KernelManifest manifest;
  for (const Entry& entry : entries_) {
    const bool on_rank = entry.ranks.empty() || std::ranges::find(entry.ranks, rank) != entry.ranks.end();
    const bool in_role = std::ranges::any_of(entry.modes, [&](StepMode mode) { return has_mode(role, mode); });
    if (on_rank && in_role) manifest.kernels.push_back(entry.kernel);
  }
  return manifest;
}

std::unique_ptr<jit::Compiler> delay_compiles(std::unique_ptr<jit::Compiler> compiler, double factor,
                                              std::span<const std::shared_ptr<const jit::KernelManifest>> manifests) {
  std::map<Digest, double> seconds;
  for (const auto& manifest : manifests)
    for (const jit::ManifestEntry& entry : manifest->kernels)
      seconds[kernel_key(entry.source, compiler->identity())] = factor * entry.compile_seconds;
  return std::make_unique<DelayingCompiler>(std::move(compiler), std::move(seconds));
}

}  // namespace plait
