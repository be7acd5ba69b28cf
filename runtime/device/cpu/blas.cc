#include "runtime/device/cpu/blas.h"

#include <cstdlib>
#include <string_view>

// OpenBLAS' own start-up, which reads OPENBLAS_CORETYPE; not in cblas.h.
extern "C" {
void gotoblas_dynamic_quit(void);
void gotoblas_dynamic_init(void);
char* openblas_get_corename(void);
}

namespace omni::cpu {

bool HasAvx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}

namespace {

bool Choose() {
  if (!HasAvx512() || std::getenv("OPENBLAS_CORETYPE") != nullptr) return false;
  const std::string_view chosen = openblas_get_corename();
  if (chosen != "Haswell" && chosen != "Zen") return false;
  setenv("OPENBLAS_CORETYPE", "SkylakeX", 1);
  gotoblas_dynamic_quit();
  gotoblas_dynamic_init();
  // Not for child processes, which may hold another OpenBLAS.
  unsetenv("OPENBLAS_CORETYPE");
  return true;
}

}  // namespace

void UseWidestBlasKernels() { [[maybe_unused]] static const bool done = Choose(); }

}  // namespace omni::cpu
