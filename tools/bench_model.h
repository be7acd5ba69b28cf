// `omnitrain bench gpt|vit`: training steps (forward, backward, AdamW) of two models of fixed
// size built from our ops, timed. The same models as tools/bench/peer_torch.py runs in PyTorch,
// so that compare_peer.py can set one against the other.
//
//   gpt  hidden 512, 8 layers, 8 heads, SwiGLU 1408, vocabulary 8192, 8 sequences of 256 tokens
//   vit  hidden 384, 6 layers, 6 heads, GELU 1536, 16 pictures of 256 patches, 1000 classes
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace omni::tools {

struct BenchModelOptions {
  std::string model = "gpt";
  int32_t threads = 2;
  int32_t steps = 6;  // timed; one more comes before them
};

struct BenchModelResult {
  std::string model;
  int32_t threads = 0;
  std::vector<double> step_ms;      // of each timed step
  std::vector<double> step_cpu_ms;  // processor time of all threads: sound on a busy machine
  int64_t tokens_per_step = 0;
  double gflop_per_step = 0;  // matrix products, attention not halved for causality
  std::string processor;      // whose kernels ran (runtime/device/cpu/processor.h)
  double peak_gflops = 0;     // of fused multiply-adds on that many threads, measured before
  double loss_first = 0, loss_last = 0;
  int64_t pool_peak_bytes = 0;  // of the page pool
  int64_t rss_peak_bytes = 0;   // of the process
  // After the first step: all three should be zero.
  int64_t pool_growth_bytes = 0;  // rise of the pool's high water
  int64_t heap_growth_bytes = 0;  // bytes malloc took from the system
  int64_t page_faults = 0;        // minor faults, in all timed steps

  double median_ms() const;
  double best_ms() const;
  double best_cpu_ms() const;
  // Of the peak, which assumes that every thread has a core: at the median and the best step, and
  // of the processor time that the best step took.
  double median_share() const { return gflop_per_step * 1e3 / median_ms() / peak_gflops; }
  double best_share() const { return gflop_per_step * 1e3 / best_ms() / peak_gflops; }
  double cpu_share() const { return gflop_per_step * 1e3 * threads / best_cpu_ms() / peak_gflops; }
  std::string ToJson() const;  // one line
  std::string ToText() const;
};

// InvalidArgument for an unknown model or counts below one.
absl::StatusOr<BenchModelResult> BenchModel(const BenchModelOptions& options);

}  // namespace omni::tools
