#include "jit/nvrtc_library.h"

#include <dlfcn.h>
#include <elf.h>
#include <fmt/ranges.h>
#include <link.h>

#include "base/environment.h"

namespace plait::jit {
namespace {

namespace fs = std::filesystem;

// Newest first. Any of them makes code for sm_90a; the last is what a toolkit for developers has.
constexpr const char* kLibraryNames[] = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"};
// Where it lies below a folder: itself, a toolkit, the wheels for CUDA 13 and 12.
constexpr const char* kSubfolders[] = {"", "lib64", "lib", "nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib"};

constexpr const char* kAdvice =
    "install it (CUDA toolkit 12 or 13; or only the library: pip install nvidia-cuda-nvrtc), and say where it is with "
    "PLAIT_NVRTC if it is none of these places";

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

std::string hex_of(const uint8_t* bytes, size_t count) {
  return fmt::format("{:02x}", fmt::join(bytes, bytes + count, ""));
}

// The GNU build id among the notes of one segment.
std::string build_id_in(const char* at, size_t left) {
  while (left >= sizeof(ElfW(Nhdr))) {
    ElfW(Nhdr) note;
    std::memcpy(&note, at, sizeof note);
    const size_t name_bytes = (size_t{note.n_namesz} + 3) / 4 * 4, text_bytes = (size_t{note.n_descsz} + 3) / 4 * 4;
    if (name_bytes > left || text_bytes > left || sizeof note + name_bytes + text_bytes > left) return "";
    const char* name = at + sizeof note;
    if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 && std::memcmp(name, "GNU", 4) == 0)
      return hex_of(reinterpret_cast<const uint8_t*>(name + name_bytes), note.n_descsz);
    at += sizeof note + name_bytes + text_bytes;
    left -= sizeof note + name_bytes + text_bytes;
  }
  return "";
}

struct BuildIdSearch {
  ElfW(Addr) address = 0;  // of something in the library
  std::string id;
};

int visit_object(dl_phdr_info* object, size_t, void* context) {
  auto& search = *static_cast<BuildIdSearch*>(context);
  const std::span segments(object->dlpi_phdr, object->dlpi_phnum);
  const bool is_it = std::ranges::any_of(segments, [&](const ElfW(Phdr) & segment) {
    const ElfW(Addr) begin = object->dlpi_addr + segment.p_vaddr;
    return segment.p_type == PT_LOAD && search.address >= begin && search.address < begin + segment.p_memsz;
  });
  if (!is_it) return 0;
  for (const ElfW(Phdr) & segment : segments)
    if (segment.p_type == PT_NOTE && search.id.empty())
      search.id = build_id_in(reinterpret_cast<const char*>(object->dlpi_addr + segment.p_vaddr), segment.p_memsz);
  return 1;
}

std::string build_id_of(const void* address_in_library) {
  BuildIdSearch search;
  search.address = reinterpret_cast<ElfW(Addr)>(address_in_library);
  dl_iterate_phdr(visit_object, &search);
  return search.id;
}

// Fills `function` from the library; false if it has no such name.
template <typename Function>
bool bind(void* library, const char* name, Function*& function) {
  function = reinterpret_cast<Function*>(dlsym(library, name));
  return function != nullptr;
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
  need("nvrtcGetCUBINSize", nvrtc.cubin_bytes);
  need("nvrtcGetCUBIN", nvrtc.cubin);
  need("nvrtcDestroyProgram", nvrtc.destroy);
  if (missing != nullptr)
    return unsupported(
        fmt::format("{} has no function {}: it is no libnvrtc of CUDA 12 or 13", file.string(), missing));
  Dl_info info{};
  nvrtc.path = dladdr(reinterpret_cast<void*>(nvrtc.version), &info) != 0 ? info.dli_fname : file.string();
  nvrtc.build = build_id_of(reinterpret_cast<const void*>(nvrtc.version));
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
