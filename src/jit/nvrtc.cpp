#include "jit/nvrtc.h"

#include <fmt/ranges.h>

#include "base/launch_region.h"
#include "jit/compile_log.h"
#include "jit/cubin.h"
#include "jit/nvrtc_library.h"

namespace plait::jit {
namespace {

// What every kernel is compiled with; a change needs a new kKernelFormat. The report of resources goes to the log.
constexpr const char* kOwnOptions[] = {"--std=c++20", "--ptxas-options=-v"};

class Program {
 public:
  explicit Program(const NvrtcLibrary& nvrtc) : nvrtc_(nvrtc) {}
  ~Program() {
    if (program_ != nullptr) nvrtc_.destroy(&program_);
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  int create(const std::string& text, const std::string& file_name) {
    return nvrtc_.create(&program_, text.c_str(), file_name.c_str(), 0, nullptr, nullptr);
  }
  int compile(const std::vector<const char*>& options) {
    return nvrtc_.compile(program_, static_cast<int>(options.size()), options.data());
  }
  std::string log() const { return text_of(nvrtc_.log_bytes, nvrtc_.log); }
  std::string ptx() const { return text_of(nvrtc_.ptx_bytes, nvrtc_.ptx); }
  int take_cubin(std::string& cubin) const {
    size_t bytes = 0;
    if (const int result = nvrtc_.cubin_bytes(program_, &bytes); result != kNvrtcSuccess) return result;
    cubin.resize(bytes);
    return nvrtc_.cubin(program_, cubin.data());
  }

 private:
  // Empty if there is none.
  std::string text_of(int (*get_bytes)(NvrtcProgram*, size_t*), int (*get)(NvrtcProgram*, char*)) const {
    size_t bytes = 0;
    if (get_bytes(program_, &bytes) != kNvrtcSuccess) return "";
    std::string text(bytes, '\0');
    if (get(program_, text.data()) != kNvrtcSuccess) return "";
    text.resize(std::min(text.find('\0'), text.size()));
    return text;
  }

  const NvrtcLibrary& nvrtc_;
  NvrtcProgram* program_ = nullptr;
};

// "13.0.88". The library tells its major and minor version, but patch releases may give different code; all three
// numbers are in the first lines of any PTX, also of an empty program's.
std::string release_of(const NvrtcLibrary& nvrtc, int major, int minor, int architecture) {
  constexpr std::string_view kMark = "Cuda compilation tools, release";
  const std::string option = fmt::format("--gpu-architecture=compute_{}", architecture);
  Program empty(nvrtc);
  std::string release = fmt::format("{}.{}", major, minor);
  if (empty.create("", "release.cu") != kNvrtcSuccess || empty.compile({option.c_str()}) != kNvrtcSuccess)
    return release;
  const std::string ptx = empty.ptx();
  const size_t begin = ptx.find(", V" + release + ".", std::min(ptx.find(kMark), ptx.size()));
  if (begin == ptx.npos) return release;
  const size_t number = begin + std::strlen(", V");
  return ptx.substr(number, ptx.find_first_not_of(".0123456789", number) - number);
}

// 90 for "sm_90a".
int number_of(const std::string& architecture) {
  return std::atoi(architecture.c_str() + std::strlen("sm_"));
}

class Nvrtc : public Compiler {
 public:
  Nvrtc(NvrtcLibrary library, CompilerIdentity identity, std::vector<int> architectures)
      : nvrtc_(std::move(library)), identity_(std::move(identity)), architectures_(std::move(architectures)) {}

  const CompilerIdentity& identity() const override { return identity_; }

  Result<CompiledKernel> compile(const KernelSource& source) override {
    about_to_block("compiling a kernel");
    PLAIT_RETURN_IF_ERROR(validate(source));
    PLAIT_RETURN_IF_ERROR(check_architecture(source));
    const std::string unit = translation_unit(source), architecture = "--gpu-architecture=" + source.architecture;
    std::vector<const char*> options(std::begin(kOwnOptions), std::end(kOwnOptions));
    options.push_back(architecture.c_str());
    for (const std::string& option : source.options) options.push_back(option.c_str());

    // The program is named after the entry: a name that is no part of the key must not get into the cubin.
    Program program(nvrtc_);
    if (const int result = program.create(unit, source.entry + ".cu"); result != kNvrtcSuccess)
      return failure(source, result, "");
    if (const int result = program.compile(options); result != kNvrtcSuccess)
      return failure(source, result, program.log());
    CompiledKernel kernel;
    if (const int result = program.take_cubin(kernel.cubin); result != kNvrtcSuccess)
      return failure(source, result, program.log());
    PLAIT_RETURN_IF_ERROR(check_entry(source, kernel.cubin));
    const std::string log = program.log();
    kernel.resources = parse_resources(log, source.entry);
    kernel.remarks = remarks_of(log);
    return kernel;
  }

 private:
  Status check_architecture(const KernelSource& source) const {
    if (std::ranges::find(architectures_, number_of(source.architecture)) != architectures_.end()) return {};
    return unsupported(fmt::format("kernel '{}': {} {} does not know {}; it knows sm_{}", source.name, identity_.name,
                                   identity_.version, source.architecture, fmt::join(architectures_, ", sm_")));
  }

  // A text without the kernel compiles as well as any; better found here than when it is launched.
  static Status check_entry(const KernelSource& source, std::string_view cubin) {
    const std::vector<std::string> functions = functions_of_cubin(cubin);
    if (std::ranges::find(functions, source.entry) != functions.end()) return {};
    return invalid(fmt::format("kernel '{}': its text has no extern \"C\" __global__ function '{}'; it has '{}'",
                               source.name, source.entry, fmt::join(functions, "', '")));
  }

  Error failure(const KernelSource& source, int result, const std::string& log) const {
    std::string message =
        fmt::format("kernel '{}' does not compile for {} with {} {}: {}\n{}", source.name, source.architecture,
                    identity_.name, identity_.version, nvrtc_.error_text(result), errors_first(log));
    return result == kNvrtcOutOfMemory ? exhausted(std::move(message)) : invalid(std::move(message));
  }

  const NvrtcLibrary nvrtc_;
  const CompilerIdentity identity_;
  const std::vector<int> architectures_;
};

}  // namespace

Result<std::unique_ptr<Compiler>> load_nvrtc(const std::filesystem::path& library) {
  about_to_block("loading libnvrtc");
  PLAIT_ASSIGN_OR_RETURN(NvrtcLibrary nvrtc, load_nvrtc_library(library));
  int major = 0, minor = 0, count = 0;
  bool well = nvrtc.version(&major, &minor) == kNvrtcSuccess && nvrtc.count_architectures(&count) == kNvrtcSuccess;
  std::vector<int> architectures(static_cast<size_t>(std::max(count, 0)));
  well = well && nvrtc.architectures(architectures.data()) == kNvrtcSuccess;
  if (!well || count == 0) return unsupported(fmt::format("{} does not tell its version", nvrtc.path));
  CompilerIdentity identity{"nvrtc", release_of(nvrtc, major, minor, architectures.front())};
  return std::unique_ptr<Compiler>(
      std::make_unique<Nvrtc>(std::move(nvrtc), std::move(identity), std::move(architectures)));
}

}  // namespace plait::jit
