#include "runtime/device/cpu/processor.h"

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "runtime/base/config.h"

namespace omni::cpu {
namespace {

bool ProcessorHasAvx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}

std::string Wish() {
  const char* value = std::getenv("OMNI_CPU");
  return value == nullptr ? "" : value;
}

}  // namespace

absl::StatusOr<Processor> ParseProcessor(absl::string_view wish, bool has_avx512) {
  if (wish.empty()) return has_avx512 ? Processor::kAvx512 : Processor::kAvx2;
  if (wish == "avx2") return Processor::kAvx2;
  if (wish == "avx512" && has_avx512) return Processor::kAvx512;
  if (wish == "avx512") {
    return absl::InvalidArgumentError(
        "OMNI_CPU=avx512: this processor has no AVX-512 (F, DQ, BW, VL); unset it or set avx2");
  }
  const std::string nearest = NearestName(wish, {"avx2", "avx512"});
  return absl::InvalidArgumentError(absl::StrCat(
      "OMNI_CPU=", wish, ": expected avx2 or avx512, or nothing for what the processor has",
      nearest.empty() ? "" : absl::StrCat("; did you mean \"", nearest, "\"?")));
}

absl::StatusOr<Processor> ChosenProcessor() {
  static const absl::StatusOr<Processor> chosen = ParseProcessor(Wish(), ProcessorHasAvx512());
  return chosen;
}

bool HasAvx512() {
  static const bool has =
      ChosenProcessor().value_or(ProcessorHasAvx512() ? Processor::kAvx512 : Processor::kAvx2) ==
      Processor::kAvx512;
  return has;
}

std::string ProcessorText() {
  if (HasAvx512()) return "AVX-512";
  return ProcessorHasAvx512() ? "AVX2 (OMNI_CPU=avx2; the processor has AVX-512)" : "AVX2";
}

}  // namespace omni::cpu
