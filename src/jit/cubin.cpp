#include "jit/cubin.h"

#include <elf.h>

namespace plait::jit {
namespace {

constexpr uint16_t kCudaMachine = 190;        // EM_CUDA
constexpr uint8_t kFirstAbiOfSecondByte = 8;  // from CUDA 13 on, e_flags has the architecture in its second byte

// A T at `offset`; zeros where the file does not reach.
template <typename T>
T at(std::string_view file, uint64_t offset) {
  T value{};
  if (offset <= file.size() && sizeof(T) <= file.size() - offset) std::memcpy(&value, file.data() + offset, sizeof(T));
  return value;
}

std::string_view name_at(std::string_view file, uint64_t offset) {
  if (offset >= file.size()) return {};
  file.remove_prefix(offset);
  return file.substr(0, std::min(file.find('\0'), file.size()));
}

Elf64_Ehdr header_of(std::string_view cubin) {
  const auto header = at<Elf64_Ehdr>(cubin, 0);
  const bool is_cubin = std::memcmp(header.e_ident, ELFMAG, SELFMAG) == 0 && header.e_machine == kCudaMachine &&
                        header.e_shentsize == sizeof(Elf64_Shdr);
  return is_cubin ? header : Elf64_Ehdr{};
}

}  // namespace

int architecture_of_cubin(std::string_view cubin) {
  const Elf64_Ehdr header = header_of(cubin);
  const bool second_byte = header.e_ident[EI_ABIVERSION] >= kFirstAbiOfSecondByte;
  return static_cast<int>((second_byte ? header.e_flags >> 8 : header.e_flags) & 0xff);
}

std::vector<std::string> functions_of_cubin(std::string_view cubin) {
  const Elf64_Ehdr header = header_of(cubin);
  std::vector<std::string> names;
  for (uint64_t i = 0; i < header.e_shnum; ++i) {
    const auto section = at<Elf64_Shdr>(cubin, header.e_shoff + i * sizeof(Elf64_Shdr));
    if (section.sh_type != SHT_SYMTAB || section.sh_size > cubin.size()) continue;
    const auto strings = at<Elf64_Shdr>(cubin, header.e_shoff + section.sh_link * sizeof(Elf64_Shdr));
    for (uint64_t offset = 0; offset < section.sh_size; offset += sizeof(Elf64_Sym)) {
      const auto symbol = at<Elf64_Sym>(cubin, section.sh_offset + offset);
      if (ELF64_ST_TYPE(symbol.st_info) == STT_FUNC && ELF64_ST_BIND(symbol.st_info) == STB_GLOBAL)
        names.emplace_back(name_at(cubin, strings.sh_offset + symbol.st_name));
    }
  }
  return names;
}

}  // namespace plait::jit
