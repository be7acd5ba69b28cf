// What it costs that rows belong to experts: GroupedLinear against a dense Linear of the same FLOPs
// (as many rows, one weight of one expert's size), forward, backward for the input and backward for
// the weight. Both alternate, so that they meet the same noise; medians and 99th percentiles.
//
//   build/bin/moe_bench [--threads=2] [--runs=20] [--max_rows=4096]
//
//   BM_Grouped/input/rows:4096/in:512/out:1024/experts:8/even dense 91.2 (p99 80.1) grouped 88.0
//   (p99 78.9) GFLOP/s ratio 0.96
//
// Loads: even; skewed, expert e with a share of 1 / (e + 1); one expert with everything.
#include <algorithm>
#include <cstdio>

#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "runtime/device/device.h"
#include "runtime/ops/ops.h"

namespace omni {
namespace {

constexpr const char* kParts[] = {"forward", "input", "weight"};
constexpr const char* kLoads[] = {"even", "skewed", "one"};

struct Shape {
  int64_t rows, in, out, experts;
};
constexpr Shape kShapes[] = {
    {1024, 128, 352, 8}, {4096, 512, 1024, 8}, {4096, 512, 1024, 64}, {4096, 1024, 512, 64}};

std::vector<int32_t> Offsets(const Shape& shape, int load) {
  std::vector<double> shares;
  double sum = 0.0;
  for (int64_t e = 0; e < shape.experts; ++e) {
    shares.push_back(load == 0   ? 1.0
                     : load == 1 ? 1.0 / static_cast<double>(e + 1)
                                 : (e == 0 ? 1.0 : 0.0));
    sum += shares.back();
  }
  std::vector<int32_t> offsets = {0};
  double before = 0.0;
  for (const double share : shares) {
    before += share;
    offsets.push_back(static_cast<int32_t>(static_cast<double>(shape.rows) * before / sum + 0.5));
  }
  return offsets;
}

class Bench {
 public:
  explicit Bench(int32_t threads) {
    RegisterCpuKernels(kernels_);
    auto device = Device::Create(
        {.reserved_bytes = int64_t{4} << 30, .num_threads = threads, .kernels = &kernels_});
    OMNI_CHECK_OK(device.status());
    device_ = *std::move(device);
    stream_ = device_->NewStream();
  }

  void Compare(const Shape& shape, int load, int32_t runs) {
    TensorArena arena(*device_);
    ExecContext ctx{.device = *device_, .stream = *stream_, .tape = nullptr, .arena = &arena};
    const TensorView x = Random(ctx, {shape.rows, shape.in});
    const TensorView dy = Random(ctx, {shape.rows, shape.out});
    const Weight dense{.value = Random(ctx, {shape.out, shape.in}),
                       .grad = Random(ctx, {shape.out, shape.in})};
    const Weight grouped{.value = Random(ctx, {shape.experts, shape.out, shape.in}),
                         .grad = Random(ctx, {shape.experts, shape.out, shape.in})};
    const TensorView offsets = UploadNew<int32_t>(ctx, Offsets(shape, load), {shape.experts + 1});
    std::vector<double> seconds[3][2];  // [part][dense, grouped]
    Tape tape(*device_);
    for (int32_t run = -2; run < runs; ++run)
      for (const int side : {0, 1}) {
        tape.Reset();
        ExecContext taped{.device = *device_, .stream = *stream_, .tape = &tape};
        const Var input = tape.Input(x, true);
        absl::Time start = absl::Now();
        const auto lap = [&](int part) {
          const absl::Time now = absl::Now();
          if (run >= 0) seconds[part][side].push_back(absl::ToDoubleSeconds(now - start));
          start = absl::Now();
        };
        const Var y =
            side == 0 ? Linear(taped, input, dense) : GroupedLinear(taped, input, grouped, offsets);
        lap(0);
        const Tape::RootGrad root{y, dy};
        tape.BackwardInput(taped, {&root, 1});
        lap(1);
        tape.WeightGrad(taped);
        lap(2);
      }
    const double gflop = 2e-9 * static_cast<double>(shape.rows * shape.in * shape.out);
    for (int part = 0; part < 3; ++part) {
      double median[2], p99[2];
      for (const int side : {0, 1}) {
        std::vector<double>& times = seconds[part][side];
        std::sort(times.begin(), times.end());
        median[side] = times[times.size() / 2];
        p99[side] = times[times.size() * 99 / 100];
      }
      std::printf(
          "BM_Grouped/%s/rows:%lld/in:%lld/out:%lld/experts:%lld/%s dense %.1f (p99 %.1f) grouped "
          "%.1f (p99 %.1f) GFLOP/s ratio %.2f\n",
          kParts[part], static_cast<long long>(shape.rows), static_cast<long long>(shape.in),
          static_cast<long long>(shape.out), static_cast<long long>(shape.experts), kLoads[load],
          gflop / median[0], gflop / p99[0], gflop / median[1], gflop / p99[1],
          median[0] / median[1]);
    }
    std::fflush(stdout);
  }

 private:
  static TensorView Random(ExecContext& ctx, std::initializer_list<int64_t> sizes) {
    const TensorView view = ctx.New(DType::kFloat32, sizes);
    for (int64_t i = 0; i < view.num_elements(); ++i)
      view.ptr<float>()[i] = static_cast<float>((i * 2654435761u >> 16) % 2001) * 1e-3f - 1.0f;
    return view;
  }

  KernelRegistry kernels_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
};

int Main(int argc, char** argv) {
  int32_t threads = 2, runs = 20;
  int64_t max_rows = 4096;
  for (int i = 1; i < argc; ++i) {
    absl::string_view argument = argv[i];
    const bool known =
        (absl::ConsumePrefix(&argument, "--threads=") && absl::SimpleAtoi(argument, &threads)) ||
        (absl::ConsumePrefix(&argument, "--runs=") && absl::SimpleAtoi(argument, &runs)) ||
        (absl::ConsumePrefix(&argument, "--max_rows=") && absl::SimpleAtoi(argument, &max_rows));
    if (!known || threads < 1 || runs < 1) {
      std::fprintf(stderr, "%s: not understood\n", argv[i]);
      return 1;
    }
  }
  Bench bench(threads);
  for (const Shape& shape : kShapes)
    for (int load = 0; load < 3; ++load)
      if (shape.rows <= max_rows) bench.Compare(shape, load, runs);
  return 0;
}

}  // namespace
}  // namespace omni

int main(int argc, char** argv) { return omni::Main(argc, argv); }
