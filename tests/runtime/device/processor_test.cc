// OMNI_CPU: what it accepts, and that the kernel table follows it. ctest runs this program as it is
// and once more with OMNI_CPU=avx2.
#include "runtime/device/cpu/processor.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "runtime/device/args/linear.h"
#include "runtime/device/device.h"

namespace omni::cpu {
namespace {

TEST(ProcessorTest, ParsesWishes) {
  EXPECT_EQ(*ParseProcessor("", false), Processor::kAvx2);
  EXPECT_EQ(*ParseProcessor("", true), Processor::kAvx512);
  EXPECT_EQ(*ParseProcessor("avx2", false), Processor::kAvx2);
  EXPECT_EQ(*ParseProcessor("avx2", true), Processor::kAvx2);
  EXPECT_EQ(*ParseProcessor("avx512", true), Processor::kAvx512);
}

TEST(ProcessorTest, SaysWhatItExpected) {
  const auto unknown = ParseProcessor("avx", true);
  ASSERT_FALSE(unknown.ok());
  EXPECT_EQ(unknown.status().message(),
            "OMNI_CPU=avx: expected avx2 or avx512, or nothing for what the processor has; did you "
            "mean \"avx2\"?");
  const auto absent = ParseProcessor("avx512", false);
  ASSERT_FALSE(absent.ok());
  EXPECT_EQ(absent.status().message(),
            "OMNI_CPU=avx512: this processor has no AVX-512 (F, DQ, BW, VL); unset it or set avx2");
}

TEST(ProcessorTest, TheTableFollowsTheChoice) {
  const auto chosen = ChosenProcessor();
  ASSERT_TRUE(chosen.ok()) << chosen.status();
  const char* wish = std::getenv("OMNI_CPU");
  if (wish != nullptr && std::string(wish) == "avx2") {
    EXPECT_EQ(*chosen, Processor::kAvx2);
    EXPECT_EQ(ProcessorText().rfind("AVX2", 0), 0u);
  }
  KernelRegistry registry;
  RegisterCpuKernels(registry);
  const std::string suffix = *chosen == Processor::kAvx512 ? "_avx512" : "_avx2";
  int wide = 0;
  for (const OpId op :
       {OpId::kLinearForward, OpId::kLinearBackwardInput, OpId::kLinearBackwardWeight,
        OpId::kGroupedLinearForward, OpId::kGroupedLinearBackwardInput,
        OpId::kGroupedLinearBackwardWeight, OpId::kConv1dForward, OpId::kConv1dBackward,
        OpId::kCrossEntropyForward, OpId::kAttentionForward, OpId::kAttentionBackward,
        OpId::kRmsNormForward, OpId::kSwiGluBackward}) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      const KernelEntry* best = nullptr;
      for (const KernelEntry& entry : registry.entries())
        if (entry.op == op && entry.dtype == dtype &&
            (best == nullptr || entry.priority > best->priority))
          best = &entry;
      ASSERT_NE(best, nullptr);
      const std::string name = best->name;
      EXPECT_TRUE(name.size() > suffix.size() &&
                  name.compare(name.size() - suffix.size(), suffix.size(), suffix) == 0)
          << name;
    }
  }
  for (const KernelEntry& entry : registry.entries())
    wide += std::string(entry.name).find("_avx512") != std::string::npos ? 1 : 0;
  EXPECT_EQ(wide > 0, *chosen == Processor::kAvx512);
}

}  // namespace
}  // namespace omni::cpu
