// Speed of single ops through their public functions, forward, backward for the input and
// backward for the weight apart, on 1 and 2 threads.
//
//   build/bin/ops_bench [--benchmark_filter=linear]
//
// FLOP/s where products bound an op, bytes/s (each tensor read or written once) where memory does.
#include <benchmark/benchmark.h>

#include "runtime/device/device.h"
#include "runtime/ops/ops.h"

namespace omni {
namespace {

// Everything a timed op needs, on its own device.
class Bench {
 public:
  explicit Bench(int64_t num_threads) {
    RegisterCpuKernels(registry_);
    auto device = Device::Create({.reserved_bytes = int64_t{4} << 30,
                                  .num_threads = static_cast<int32_t>(num_threads),
                                  .kernels = &registry_});
    OMNI_CHECK_OK(device.status());
    device_ = *std::move(device);
    stream_ = device_->NewStream();
    arena_ = std::make_unique<TensorArena>(*device_);
    tape_ = std::make_unique<Tape>(*device_);
  }

  TensorView Tensor(std::initializer_list<int64_t> sizes) {
    const TensorView view =
        arena_->New(DType::kFloat32, absl::MakeConstSpan(sizes.begin(), sizes.size()));
    for (int64_t i = 0; i < view.num_elements(); ++i)
      view.ptr<float>()[i] = static_cast<float>((i * 2654435761u >> 16) % 2001) * 1e-3f - 1.0f;
    return view;
  }
  TensorView Integers(int64_t count, int64_t below) {
    const TensorView view = arena_->New(DType::kInt32, absl::MakeConstSpan(&count, 1));
    for (int64_t i = 0; i < count; ++i)
      view.ptr<int32_t>()[i] = static_cast<int32_t>((i * 7919) % below);
    return view;
  }
  Weight Parameter(std::initializer_list<int64_t> sizes) {
    return {.value = Tensor(sizes), .grad = Tensor(sizes)};
  }

  enum Part { kForward, kInput, kWeight };
  // Times one part of an op: op(ctx, x) -> its output.
  template <typename Op>
  void Run(benchmark::State& state, Part part, const TensorView& x, const Op& op) {
    ExecContext ctx{.device = *device_, .stream = *stream_, .tape = tape_.get()};
    TensorView grad;
    for (auto _ : state) {
      state.PauseTiming();
      tape_->Reset();
      const Var input = tape_->Input(x, true);
      if (part == kForward) state.ResumeTiming();
      const Var output = op(ctx, input);
      if (part == kForward) continue;
      tape_->EndForward({});
      if (grad.empty()) {
        grad = arena_->New(output.value.dtype, output.value.shape());
        for (int64_t i = 0; i < grad.num_elements(); ++i) grad.ptr<float>()[i] = 1.0f;
      }
      const Tape::RootGrad root{output, grad};
      if (part == kInput) state.ResumeTiming();
      tape_->BackwardInput(ctx, {&root, 1});
      if (part == kInput) continue;
      state.ResumeTiming();
      tape_->WeightGrad(ctx);
    }
  }

 private:
  KernelRegistry registry_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<TensorArena> arena_;
  std::unique_ptr<Tape> tape_;
};

void Rate(benchmark::State& state, const char* name, double per_iteration) {
  state.counters[name] = benchmark::Counter(
      per_iteration, benchmark::Counter::kIsIterationInvariantRate, benchmark::Counter::kIs1000);
}

// {threads, part, rows, in, out}
void LinearOp(benchmark::State& state) {
  Bench bench(state.range(0));
  const int64_t rows = state.range(2), in = state.range(3), out = state.range(4);
  const TensorView x = bench.Tensor({rows, in});
  const Weight weight = bench.Parameter({out, in}), bias = bench.Parameter({out});
  bench.Run(state, static_cast<Bench::Part>(state.range(1)), x,
            [&](ExecContext& ctx, const Var& v) { return Linear(ctx, v, weight, &bias); });
  Rate(state, "FLOP/s", 2.0 * static_cast<double>(rows * in * out));
}
void LinearSizes(benchmark::internal::Benchmark* b) {
  const std::vector<std::vector<int64_t>> sizes = {
      {2048, 512, 1536}, {2048, 512, 2816}, {2048, 1408, 512}, {2048, 512, 512},
      {4096, 384, 1536}, {1500, 128, 352},  {512, 128, 256},   {24, 128, 704}};
  for (const int64_t threads : {1, 2})
    for (const auto& size : sizes)
      for (int64_t part = 0; part < 3; ++part) b->Args({threads, part, size[0], size[1], size[2]});
}
BENCHMARK(LinearOp)->Apply(LinearSizes)->UseRealTime();

// {threads, part, rows, width, classes}: 2 products forward without gradients, here all 3.
void CrossEntropyOp(benchmark::State& state) {
  Bench bench(state.range(0));
  const int64_t rows = state.range(1), width = state.range(2), classes = state.range(3);
  const TensorView x = bench.Tensor({rows, width}), targets = bench.Integers(rows, classes);
  const Weight head = bench.Parameter({classes, width});
  bench.Run(state, Bench::kForward, x, [&](ExecContext& ctx, const Var& v) {
    return LinearCrossEntropy(ctx, v, head, targets, 1.0 / static_cast<double>(rows)).loss;
  });
  Rate(state, "FLOP/s", 6.0 * static_cast<double>(rows * width * classes));
}
BENCHMARK(CrossEntropyOp)
    ->ArgsProduct({{1, 2}, {2048}, {512}, {8192}})
    ->ArgsProduct({{1, 2}, {512}, {128}, {512}})
    ->UseRealTime();

enum RowOp { kRmsNorm, kAddRmsNorm, kAddLayerNorm, kSwiGlu, kGeluErf, kGeluTanh };

// {threads, part, rows, width, op}
void RowWiseOp(benchmark::State& state) {
  Bench bench(state.range(0));
  const int64_t rows = state.range(2), width = state.range(3);
  const bool forward = state.range(1) == Bench::kForward;
  const TensorView x = bench.Tensor({rows, width});
  const Weight weight = bench.Parameter({width}), bias = bench.Parameter({width});
  const auto op = [&](ExecContext& ctx, const Var& v) {
    switch (static_cast<RowOp>(state.range(4))) {
      case kRmsNorm:
        return RmsNorm(ctx, v, weight, 1e-6f);
      case kAddRmsNorm:
        return AddRmsNorm(ctx, v, v, weight, 1e-6f).normed_TH;
      case kAddLayerNorm:
        return AddLayerNorm(ctx, v, v, weight, &bias, 1e-6f).normed_TH;
      case kSwiGlu:
        return SwiGlu(ctx, v);
      case kGeluErf:
        return Gelu(ctx, v, GeluKind::kErf);
      default:
        return Gelu(ctx, v, GeluKind::kTanh);
    }
  };
  bench.Run(state, static_cast<Bench::Part>(state.range(1)), x, op);
  constexpr double kForwardStreams[] = {2, 4, 4, 1.5, 2, 2};
  constexpr double kBackwardStreams[] = {3, 3, 3, 2.5, 3, 3};
  const double streams = (forward ? kForwardStreams : kBackwardStreams)[state.range(4)];
  Rate(state, "bytes/s", streams * 4.0 * static_cast<double>(rows * width));
}
BENCHMARK(RowWiseOp)
    ->ArgsProduct({{1, 2}, {0, 1}, {2048}, {512}, {kRmsNorm, kAddRmsNorm, kAddLayerNorm}})
    ->ArgsProduct({{1, 2}, {0, 1}, {2048}, {2816}, {kSwiGlu}})
    ->ArgsProduct({{1, 2}, {0, 1}, {2048}, {1536}, {kGeluErf, kGeluTanh}})
    ->UseRealTime();

}  // namespace
}  // namespace omni

BENCHMARK_MAIN();
