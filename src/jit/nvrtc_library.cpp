#include "jit/nvrtc_library.h"

#include <dlfcn.h>
#include <elf.h>
#include <fmt/ranges.h>
#include <link.h>

#include "base/environment.h"

#ifdef __SANITIZE_ADDRESS__
// libnvrtc keeps what it has allocated until the process ends; every program that may load it is told so.
extern "C" const char* __lsan_default_suppressions() {  // NOLINT
  return "leak:libnvrtc\n";
}
#endif

namespace plait::jit {
namespace {

namespace fs = std::filesystem;

// Newest first. Any of them makes code for sm_90a; the last is what a toolkit for developers has.
constexpr const char* kLibraryNames[] = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"};
// Where it lies below a folder: itself, a toolkit, the wheels for CUDA 13 and 12.
constexpr const char* kSubfolders[] = {"", "lib64", "lib", "nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib"};

constexpr const char* kAdvice =
    "install it (CUDA toolkit 12 or 13; or only the library: pip install nvidia-cuda-nvrtc), and say where it is with "
    "PLAIT_NVRTC if it is in none of these places";

void add_folder(const fs::path& folder, std::vector<fs::path>& files) {
  for (const char* name : kLibraryNames) files.push_back(folder / name);
}

// What somebody named: a file, or a folder in which it lies somewhere.
std::vector<fs::path> candidates_in(const fs::path& given) {
  std::error_code error;
  if (!fs::is_directory(given, error)) return {given};
  std::vector<fs::path> files;
  for (const char* subfolder : kSubfolders) add_folder(given / subfolder, files);
  return files;
}

// /usr/local/cuda, which the system's owner has chosen, then the others, newest first.
std::vector<fs::path> toolkits() {
  std::vector<fs::path> found;
  std::error_code error;
  for (auto at = fs::directory_iterator("/usr/local", error); !error && at != fs::directory_iterator();
       at.increment(error))
    if (at->path().filename().string().starts_with("cuda-")) found.push_back(at->path());
  std::ranges::sort(found, [](const fs::path& a, const fs::path& b) { return strverscmp(a.c_str(), b.c_str()) > 0; });
  found.insert(found.begin(), "/usr/local/cuda");
  return found;
}

// Fills `function` from the library; false if it has no such name.
template <typename Function>
bool bind(void* library, const char* name, Function*& function) {
  function = reinterpret_cast<Function*>(dlsym(library, name));
  return function != nullptr;
}

// libnvrtc opens its built-in functions by their name alone, and the loader does not look beside it. What is loaded
// already is found by its name, so they are loaded first; where they lie elsewhere the loader has to know them.
void load_builtins(const NvrtcLibrary& nvrtc) {
  int major = 0, minor = 0;
  if (nvrtc.version(&major, &minor) != 0) return;
  const fs::path builtins =
      fs::path(nvrtc.path).parent_path() / fmt::format("libnvrtc-builtins.so.{}.{}", major, minor);
  dlopen(builtins.c_str(), RTLD_NOW | RTLD_LOCAL);
}

Result<NvrtcLibrary> bind_all(void* library, const fs::path& file) {
  NvrtcLibrary nvrtc;
  const char* missing = nullptr;
  const auto need = [&](const char* name, auto& function) {
    if (!bind(library, name, function) && missing == nullptr) missing = name;
  };
  need("nvrtcVersion", nvrtc.version);
  need("nvrtcGetNumSupportedArchs", nvrtc.count_architectures);
  need("nvrtcGetSupportedArchs", nvrtc.architectures);
  need("nvrtcGetErrorString", nvrtc.error_text);
  need("nvrtcCreateProgram", nvrtc.create);
  need("nvrtcCompileProgram", nvrtc.compile);
  need("nvrtcGetProgramLogSize", nvrtc.log_bytes);
  need("nvrtcGetProgramLog", nvrtc.log);
  need("nvrtcGetPTXSize", nvrtc.ptx_bytes);
  need("nvrtcGetPTX", nvrtc.ptx);
  need("nvrtcGetCUBINSize", nvrtc.cubin_bytes);
  need("nvrtcGetCUBIN", nvrtc.cubin);
  need("nvrtcDestroyProgram", nvrtc.destroy);
  if (missing != nullptr)
    return unsupported(
        fmt::format("{} has no function {}: it is no libnvrtc of CUDA 12 or 13", file.string(), missing));
  Dl_info info{};
  nvrtc.path = dladdr(reinterpret_cast<void*>(nvrtc.version), &info) != 0 ? info.dli_fname : file.string();
  load_builtins(nvrtc);
  return nvrtc;
}

}  // namespace

std::vector<fs::path> nvrtc_candidates(const fs::path& given) {
  if (!given.empty()) return candidates_in(given);
  if (const auto named = environment(Variable::kNvrtc)) return candidates_in(*named);
  std::vector<fs::path> files(std::begin(kLibraryNames), std::end(kLibraryNames));
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  if (!error) add_folder(program.parent_path().parent_path() / "lib", files);
  for (const fs::path& toolkit : toolkits()) add_folder(toolkit / "lib64", files);
  return files;
}

Result<NvrtcLibrary> load_nvrtc_library(const fs::path& given) {
  std::vector<std::string> tried;
  for (const fs::path& file : nvrtc_candidates(given)) {
    if (void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL)) return bind_all(library, file);
    const char* reason = dlerror();
    std::error_code error;
    // A file that is there and does not load says why; of the others the place is enough.
    if (fs::exists(file, error))
      tried.push_back(reason != nullptr ? std::string(reason) : file.string());
    else
      tried.push_back(file.has_parent_path() ? file.string() : file.string() + " (loader's path)");
  }
  return not_found(fmt::format("libnvrtc, the run-time compiler for CUDA kernels, was not found: {}. Tried: {}",
                               kAdvice, fmt::join(tried, ", ")));
}

}  // namespace plait::jit
