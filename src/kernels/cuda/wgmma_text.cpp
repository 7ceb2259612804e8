#include "kernels/cuda/wgmma_text.h"

namespace plait::cuda {
namespace {

// "%0, %1, ... "
std::string numbered(const char* format, int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += (i > 0 ? ", " : "") + fmt::format(fmt::runtime(format), i);
  return text;
}

}  // namespace

std::string multiply_text(GemmFormat format, int columns) {
  const int registers = columns / 2;
  const bool fp8 = format == GemmFormat::kFp8;
  return fmt::format(
      "__device__ __forceinline__ void multiply(float (&d)[{0}], uint64_t a, uint64_t b, int add) {{\n"
      "  asm volatile(\"{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{1}, 0;\\n\"\n"
      "    \"wgmma.mma_async.sync.aligned.m64n{2}k{3}.f32.{4} {{{5}}}, %{0}, %{6}, p, 1, 1{7};\\n}}\"\n"
      "    : {8} : \"l\"(a), \"l\"(b), \"r\"(add));\n"
      "}}\n",
      registers, registers + 2, columns, fp8 ? 32 : 16, fp8 ? "e4m3.e4m3" : "bf16.bf16", numbered("%{}", registers),
      registers + 1, fp8 ? "" : ", 0, 0", numbered("\"+f\"(d[{}])", registers));
}

}  // namespace plait::cuda
