#include "runtime/device/cpu/fma_peak.h"

#include <immintrin.h>

#include <algorithm>
#include <ctime>
#include <thread>
#include <vector>

#include "runtime/device/cpu/processor.h"

namespace omni::cpu {
namespace {

constexpr int kRounds = 10000, kStretches = 100;
constexpr int kChains = 12;  // more than latency times units of any processor so far

double ThreadSeconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Each returns a value that depends on all it did.
float RoundsOfAvx2(float x) {
  const __m256 factor = _mm256_set1_ps(x), addend = _mm256_set1_ps(1e-9f);
  __m256 chain[kChains];
  for (__m256& c : chain) c = addend;
  for (int round = 0; round < kRounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) chain[i] = _mm256_fmadd_ps(chain[i], factor, addend);
  }
  for (int i = 1; i < kChains; ++i) chain[0] = _mm256_add_ps(chain[0], chain[i]);
  return _mm256_cvtss_f32(chain[0]);
}

__attribute__((target("avx512f"))) float RoundsOfAvx512(float x) {
  const __m512 factor = _mm512_set1_ps(x), addend = _mm512_set1_ps(1e-9f);
  __m512 chain[kChains];
  for (__m512& c : chain) c = addend;
  for (int round = 0; round < kRounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) chain[i] = _mm512_fmadd_ps(chain[i], factor, addend);
  }
  for (int i = 1; i < kChains; ++i) chain[0] = _mm512_add_ps(chain[0], chain[i]);
  return _mm512_cvtss_f32(chain[0]);
}

double OneThread() {
  const bool wide = HasAvx512();
  const double flops = 2.0 * (wide ? 16 : 8) * kChains * kRounds;
  double best = 1e9;
  volatile float factor = 1.0f;  // so that no round is known before
  for (int stretch = 0; stretch < kStretches; ++stretch) {
    const double begin = ThreadSeconds();
    factor = wide ? std::min(1.0f, 1.0f + RoundsOfAvx512(factor))
                  : std::min(1.0f, 1.0f + RoundsOfAvx2(factor));
    best = std::min(best, ThreadSeconds() - begin);
  }
  return 1e-9 * flops / best;
}

}  // namespace

double MeasureFmaPeak(int32_t num_threads) {
  std::vector<double> rates(num_threads);
  std::vector<std::thread> others;
  for (int32_t i = 1; i < num_threads; ++i)
    others.emplace_back([&rates, i] { rates[i] = OneThread(); });
  rates[0] = OneThread();
  for (std::thread& other : others) other.join();
  double sum = 0;
  for (const double rate : rates) sum += rate;
  return sum;
}

}  // namespace omni::cpu
