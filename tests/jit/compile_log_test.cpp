#include "jit/compile_log.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace plait::jit {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// As CUDA 13.0 and 12.8 print it: a kernel, a function that it calls, and advice.
constexpr const char* kReport =
    "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized\n"
    "ptxas info    : 0 bytes gmem, 16 bytes cmem[4]\n"
    "ptxas info    : Compiling entry function 'other' for 'sm_90a'\n"
    "ptxas info    : Function properties for other\n"
    "ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
    "ptxas info    : Used 8 registers, used 0 barriers\n"
    "ptxas info    : Compile time = 1.000 ms\n"
    "ptxas info    : Compiling entry function 'gemm' for 'sm_90a'\n"
    "ptxas info    : Function properties for gemm\n"
    "    256 bytes stack frame, 84 bytes spill stores, 120 bytes spill loads\n"
    "ptxas info    : Used 168 registers, used 1 barriers, 256 bytes cumulative stack size, 4096 bytes smem\n"
    "ptxas info    : Compile time = 489.316 ms\n"
    "ptxas info    : Function properties for helper\n"
    "ptxas         .     8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads\n";

TEST(CompileLog, ResourcesOfTheKernelThatWasAskedFor) {
  const KernelResources expected{
      .registers = 168, .shared_bytes = 4096, .stack_bytes = 256, .spill_store_bytes = 84, .spill_load_bytes = 120};
  EXPECT_EQ(parse_resources(kReport, "gemm"), expected);
  EXPECT_EQ(parse_resources(kReport, "other"), KernelResources{.registers = 8});
  EXPECT_EQ(parse_resources(kReport, "gem"), std::nullopt);
  EXPECT_EQ(parse_resources("", "gemm"), std::nullopt);
  EXPECT_EQ(parse_resources("ptxas info : another wording altogether\n", "gemm"), std::nullopt);
}

TEST(CompileLog, RemarksAreWhatIsNotTheReport) {
  EXPECT_EQ(remarks_of(kReport),
            "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized");
}

TEST(CompileLog, TheFirstErrorComesFirstAndTheRestIsBounded) {
  EXPECT_EQ(errors_first("k.cu(1): warning #177-D: unused\n  int a;\n\nk.cu(2): error: no b\n  b = 1;\n  ^\n"),
            "k.cu(2): error: no b\n  b = 1;\n  ^\nk.cu(1): warning #177-D: unused\n  int a;");
  EXPECT_EQ(errors_first("only words\n"), "only words");
  std::string long_log;
  for (int i = 0; i < 5000; ++i) long_log += fmt::format("k.cu({}): warning: something\n", i);
  long_log += "ptxas fatal   : the end\n";
  const std::string bounded = errors_first(long_log);
  EXPECT_THAT(bounded, StartsWith("ptxas fatal   : the end\nk.cu(0): warning"));
  EXPECT_THAT(bounded, HasSubstr(" bytes more"));
  EXPECT_LT(bounded.size(), kMaxLogBytes + 100);
}

}  // namespace
}  // namespace plait::jit
