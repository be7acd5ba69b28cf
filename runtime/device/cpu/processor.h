// Which builds of the CPU kernels run: the widest this processor has, unless the environment's
// OMNI_CPU names one. The one place that decides it; all who choose a kernel ask here.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace omni::cpu {

enum class Processor { kAvx2, kAvx512 };

// What OMNI_CPU = `wish` means on a processor with or without AVX-512: "" the widest, "avx2" or
// "avx512" that one. InvalidArgument: an unknown name, or one this processor lacks.
absl::StatusOr<Processor> ParseProcessor(absl::string_view wish, bool has_avx512);

// Of this process, read once. A wrong OMNI_CPU is an error, which a program says before it starts
// (Device::Create says it too); kernels then take the widest.
absl::StatusOr<Processor> ChosenProcessor();

// True if the AVX-512 builds of our kernels (vector_math.h) are there and chosen.
bool HasAvx512();

// For people: "AVX-512", "AVX2" or "AVX2 (OMNI_CPU=avx2; the processor has AVX-512)".
std::string ProcessorText();

}  // namespace omni::cpu
