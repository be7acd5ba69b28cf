// Attention alone, forward and backward, one thread: long segments of the benchmark models, many
// short ones, and one long one with grouped queries.
//
//   build/bin/attention_bench --benchmark_repetitions=5
//
// GFLOP/s count two products forward, five backward, and of causal scores only the half below
// the diagonal.
#include <benchmark/benchmark.h>

#include <memory>

#include "runtime/base/rng.h"
#include "runtime/ops/ops.h"

namespace omni {
namespace {

struct Shape {
  const char* name;
  int32_t segments, shortest, longest;
  int64_t heads, kv_heads, head_dim;
  bool causal;
};

void BM_Attention(benchmark::State& state, const Shape& shape) {
  KernelRegistry registry;
  RegisterCpuKernels(registry);
  DeviceOptions options;
  options.kernels = &registry;
  const auto device = *Device::Create(options);
  const auto stream = device->NewStream();
  TensorArena arena(*device);
  ExecContext setup{.device = *device, .stream = *stream, .arena = &arena};

  CounterRng rng(1, 2);
  std::vector<int32_t> cu_seqlens{0};
  double flop = 0;
  for (int32_t s = 0; s < shape.segments; ++s) {
    const auto length =
        shape.shortest + static_cast<int32_t>(rng.NextBelow(shape.longest - shape.shortest + 1));
    cu_seqlens.push_back(cu_seqlens.back() + length);
    const double pairs = shape.causal ? length * (length + 1.0) / 2 : 1.0 * length * length;
    flop += 7 * 2.0 * pairs * static_cast<double>(shape.head_dim * shape.heads);
  }
  const int64_t tokens = cu_seqlens.back();
  const auto random = [&](int64_t heads) {
    std::vector<float> host(tokens * heads * shape.head_dim);
    for (float& x : host) x = static_cast<float>(rng.NextUniform() - 0.5);
    return UploadNew<float>(setup, host, {tokens, heads, shape.head_dim});
  };
  const TensorView q = random(shape.heads), k = random(shape.kv_heads), v = random(shape.kv_heads);
  const TensorView grad = random(shape.heads);
  Tape tape(*device);
  for (auto _ : state) {
    tape.Reset();
    ExecContext ctx{.device = *device, .stream = *stream, .tape = &tape};
    const Var out = VarlenAttention(ctx, tape.Input(q, true), tape.Input(k, true),
                                    tape.Input(v, true), cu_seqlens, {.causal = shape.causal});
    tape.EndForward({&out, 1});
    const Tape::RootGrad root{out, grad};
    tape.Backward(ctx, {&root, 1});
  }
  state.counters["GFLOP/s"] =
      benchmark::Counter(flop / 1e9, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["tokens"] = static_cast<double>(tokens);
}

BENCHMARK_CAPTURE(BM_Attention, gpt, Shape{"gpt", 8, 256, 256, 8, 8, 64, true})
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_Attention, vit, Shape{"vit", 16, 256, 256, 6, 6, 64, false})
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_Attention, short_causal, Shape{"short", 60, 10, 60, 4, 2, 32, true})
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_Attention, short_full, Shape{"short", 60, 10, 60, 4, 4, 32, false})
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_Attention, long_grouped, Shape{"long", 1, 4096, 4096, 8, 2, 128, true})
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace omni

BENCHMARK_MAIN();
