// RMSNorm and LayerNorm with the residual addition in front, and their backward.
//
// Rows of up to 1 KiB take a warp each, eight to a block; wider ones a block. Forward reads x and
// branch, writes sum and y: 8 bytes an element in bf16. Backward: kTeams teams, each over rows of
// its own, keep the weights' gradients in registers and leave one row of partial sums each, added
// in order by a second kernel: the same bits every time. Reads x and dy, writes dx: 6 bytes an
// element. Bound by memory.
#include "runtime/device/args/norm.h"
#include "runtime/device/cuda/math.h"
#include "runtime/device/cuda/reduce.h"
#include "runtime/device/cuda/register.h"

namespace omni::cuda {
namespace {

constexpr int kTeams = 64;       // of the backward pass: fixed, for it decides the order of sums
constexpr int kMostVectors = 4;  // of a row, in the registers of a thread

template <typename T>
struct ForwardFields {
  using C = ComputeOf<T>;
  Matrix<T> x, branch, sum, y;
  const T *weight, *bias;  // bias null: none
  C *mean, *rstd;          // null: not wanted
  int64_t rows;
  int32_t width;
  C eps;
};

// kCount: elements a thread takes at once.
template <typename T, int kTeam, int kCount, bool kLayer>
__global__ void __launch_bounds__(kThreads) Forward(const __grid_constant__ ForwardFields<T> f) {
  using C = ComputeOf<T>;
  const int64_t row = int64_t{blockIdx.x} * (kThreads / kTeam) + threadIdx.x / kTeam;
  const int member = threadIdx.x % kTeam;
  if (row >= f.rows) return;  // a whole team
  const T* x = f.x.row(row);
  T* const sum = f.branch.data == nullptr ? nullptr : f.sum.row(row);
  C total{0}, squares{0};
  for (int i = member * kCount; i < f.width; i += kTeam * kCount) {
    T v[kCount];
    LoadElements(x + i, v);
    if (sum != nullptr) {
      T b[kCount];
      LoadElements(f.branch.row(row) + i, b);
#pragma unroll
      for (int j = 0; j < kCount; ++j) v[j] = Narrow<T>(Wide(v[j]) + Wide(b[j]));
      StoreElements(sum + i, v);
    }
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      total += Wide(v[j]);
      squares += Wide(v[j]) * Wide(v[j]);
    }
  }
  if (sum != nullptr) x = sum;  // each thread reads back what it wrote
  C mean{0};
  if constexpr (kLayer) {
    mean = TeamSum<kTeam>(total) / f.width;
    squares = C{0};
    for (int i = member * kCount; i < f.width; i += kTeam * kCount) {
      T v[kCount];
      LoadElements(x + i, v);
#pragma unroll
      for (int j = 0; j < kCount; ++j) squares += (Wide(v[j]) - mean) * (Wide(v[j]) - mean);
    }
  }
  const C rstd = InverseRoot(TeamSum<kTeam>(squares) / f.width + f.eps);
  if (member == 0 && f.mean != nullptr) f.mean[row] = mean;
  if (member == 0 && f.rstd != nullptr) f.rstd[row] = rstd;
  for (int i = member * kCount; i < f.width; i += kTeam * kCount) {
    T v[kCount], w[kCount], b[kCount];
    LoadElements(x + i, v);
    LoadElements(f.weight + i, w);
    if (kLayer && f.bias != nullptr) LoadElements(f.bias + i, b);
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const C normed = (Wide(v[j]) - mean) * rstd * Wide(w[j]);
      v[j] = Narrow<T>(kLayer && f.bias != nullptr ? normed + Wide(b[j]) : normed);
    }
    StoreElements(f.y.row(row) + i, v);
  }
}

template <typename T>
struct BackwardFields {
  using C = ComputeOf<T>;
  Matrix<T> x, grad_y, grad_sum, grad_x;  // grad_sum, grad_x null: none
  const T* weight;
  const C *mean, *rstd;
  C *weight_partial, *bias_partial;  // [kTeams, width]; null: not wanted
  int64_t rows;
  int32_t width;
};

// dx = rstd (g - [mean(g)] - xhat mean(g xhat)), g = dy weight, xhat = (x - mean) rstd.
template <typename T, int kTeam, int kVectors, bool kLayer>
__global__ void __launch_bounds__(kThreads) Backward(const __grid_constant__ BackwardFields<T> f) {
  using C = ComputeOf<T>;
  constexpr int kCount = Vector<T>::kSize;
  const int team = blockIdx.x * (kThreads / kTeam) + threadIdx.x / kTeam;
  const int member = threadIdx.x % kTeam;
  C grad_weight[kVectors * kCount] = {}, grad_bias[kVectors * kCount] = {};
  for (int64_t row = team; row < f.rows; row += kTeams) {
    const C rstd = f.rstd[row], mean = kLayer ? f.mean[row] : C{0};
    T x[kVectors][kCount], g[kVectors][kCount];
    C dot{0}, total{0};
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int i = (k * kTeam + member) * kCount;
      if (i >= f.width) break;
      LoadElements(f.x.row(row) + i, x[k]);
      LoadElements(f.grad_y.row(row) + i, g[k]);
      T w[kCount];
      LoadElements(f.weight + i, w);
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        const C normed = (Wide(x[k][j]) - mean) * rstd, grad = Wide(g[k][j]);
        grad_weight[k * kCount + j] += grad * normed;
        if (kLayer) grad_bias[k * kCount + j] += grad;
        total += grad * Wide(w[j]);
        dot += grad * Wide(w[j]) * normed;
      }
    }
    if (f.grad_x.data == nullptr) continue;
    dot = TeamSum<kTeam>(dot) / f.width;
    if (kLayer) total = TeamSum<kTeam>(total) / f.width;
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int i = (k * kTeam + member) * kCount;
      if (i >= f.width) break;
      T w[kCount], added[kCount];
      LoadElements(f.weight + i, w);
      if (f.grad_sum.data != nullptr) LoadElements(f.grad_sum.row(row) + i, added);
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        const C normed = (Wide(x[k][j]) - mean) * rstd;
        C grad = (Wide(g[k][j]) * Wide(w[j]) - (kLayer ? total : C{0}) - normed * dot) * rstd;
        if (f.grad_sum.data != nullptr) grad += Wide(added[j]);
        x[k][j] = Narrow<T>(grad);
      }
      StoreElements(f.grad_x.row(row) + i, x[k]);
    }
  }
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int i = (k * kTeam + member) * kCount;
    if (i >= f.width) break;
    const int64_t at = int64_t{team} * f.width + i;
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      if (f.weight_partial != nullptr) f.weight_partial[at + j] = grad_weight[k * kCount + j];
      if (kLayer && f.bias_partial != nullptr) f.bias_partial[at + j] = grad_bias[k * kCount + j];
    }
  }
}

template <typename C>
__global__ void __launch_bounds__(kThreads) AddPartials(const C* partial, int32_t width, C* to) {
  const int64_t i = ThreadNumber();
  if (i >= width) return;
  C sum{0};
  for (int team = 0; team < kTeams; ++team) sum += partial[int64_t{team} * width + i];
  to[i] += sum;
}

// Rows of 1 KiB: two vectors for each lane of a warp.
template <typename T>
constexpr int32_t NarrowWidth() {
  return 2 * 32 * Vector<T>::kSize;
}

template <typename T, bool kLayer>
cudaError_t RunForward(const NormForwardArgs& args, const KernelContext* context) {
  using C = ComputeOf<T>;
  const ForwardFields<T> f{.x = MatrixOf<T>(args.x_TH),
                           .branch = MatrixOf<T>(args.branch_TH),
                           .sum = MatrixOf<T>(args.sum_TH),
                           .y = MatrixOf<T>(args.y_TH),
                           .weight = static_cast<const T*>(args.weight_H.data),
                           .bias = static_cast<const T*>(args.bias_H.data),
                           .mean = static_cast<C*>(args.mean_T.data),
                           .rstd = static_cast<C*>(args.rstd_T.data),
                           .rows = NumRowsOf(args.x_TH),
                           .width = static_cast<int32_t>(WidthOf(args.x_TH)),
                           .eps = static_cast<C>(args.eps)};
  constexpr int kSize = Vector<T>::kSize;
  const bool wide =
      HaveWideRows(args.x_TH, args.branch_TH, args.sum_TH, args.y_TH, args.weight_H, args.bias_H);
  const cudaStream_t stream = StreamOf(context);
  if (f.width <= NarrowWidth<T>()) {
    const LaunchShape shape = ThreadEach(f.rows * 32);
    return wide ? Launch(Forward<T, 32, kSize, kLayer>, shape, stream, f)
                : Launch(Forward<T, 32, 1, kLayer>, shape, stream, f);
  }
  const LaunchShape shape = ThreadEach(f.rows * kThreads);
  return wide ? Launch(Forward<T, kThreads, kSize, kLayer>, shape, stream, f)
              : Launch(Forward<T, kThreads, 1, kLayer>, shape, stream, f);
}

// Any width, element by element: a block for each row of dx, then a thread for each column of a
// team's share of the rows.
template <typename T, bool kLayer>
__global__ void __launch_bounds__(kThreads) RowGrads(const __grid_constant__ BackwardFields<T> f) {
  using C = ComputeOf<T>;
  const int64_t row = blockIdx.x;
  const T *const x = f.x.row(row), *const g = f.grad_y.row(row);
  const C rstd = f.rstd[row], mean = kLayer ? f.mean[row] : C{0};
  C dot{0}, total{0};
  for (int i = threadIdx.x; i < f.width; i += kThreads) {
    const C grad = Wide(g[i]) * Wide(f.weight[i]);
    total += grad;
    dot += grad * (Wide(x[i]) - mean) * rstd;
  }
  dot = BlockSum(dot) / f.width;
  if (kLayer) total = BlockSum(total) / f.width;
  for (int i = threadIdx.x; i < f.width; i += kThreads) {
    const C normed = (Wide(x[i]) - mean) * rstd;
    C grad = (Wide(g[i]) * Wide(f.weight[i]) - (kLayer ? total : C{0}) - normed * dot) * rstd;
    if (f.grad_sum.data != nullptr) grad += Wide(f.grad_sum.row(row)[i]);
    f.grad_x.row(row)[i] = Narrow<T>(grad);
  }
}
template <typename T, bool kLayer>
__global__ void __launch_bounds__(kThreads)
    ColumnGrads(const __grid_constant__ BackwardFields<T> f) {
  using C = ComputeOf<T>;
  const int64_t column = ThreadNumber(), team = blockIdx.y;
  if (column >= f.width) return;
  C grad_weight{0}, grad_bias{0};
  for (int64_t row = team; row < f.rows; row += kTeams) {
    const C grad = Wide(f.grad_y.row(row)[column]);
    const C mean = kLayer ? f.mean[row] : C{0};
    grad_weight += grad * (Wide(f.x.row(row)[column]) - mean) * f.rstd[row];
    grad_bias += grad;
  }
  const int64_t at = team * f.width + column;
  if (f.weight_partial != nullptr) f.weight_partial[at] = grad_weight;
  if (kLayer && f.bias_partial != nullptr) f.bias_partial[at] = grad_bias;
}

template <typename T, bool kLayer>
cudaError_t LaunchBackward(const BackwardFields<T>& f, bool wide, cudaStream_t stream) {
  constexpr int kRound = kThreads * Vector<T>::kSize;
  const auto fused = [&](auto kernel, int team) {
    return Launch(kernel, {static_cast<unsigned>(kTeams * team / kThreads), kThreads}, stream, f);
  };
  if (wide && f.width <= NarrowWidth<T>()) return fused(Backward<T, 32, 2, kLayer>, 32);
  if (wide && f.width <= kRound) return fused(Backward<T, kThreads, 1, kLayer>, kThreads);
  if (wide && f.width <= 2 * kRound) return fused(Backward<T, kThreads, 2, kLayer>, kThreads);
  if (wide && f.width <= kMostVectors * kRound)
    return fused(Backward<T, kThreads, kMostVectors, kLayer>, kThreads);
  if (f.grad_x.data != nullptr) {
    const cudaError_t error =
        Launch(RowGrads<T, kLayer>, {static_cast<unsigned>(f.rows), kThreads}, stream, f);
    if (error != cudaSuccess) return error;
  }
  if (f.weight_partial == nullptr && f.bias_partial == nullptr) return cudaSuccess;
  return Launch(ColumnGrads<T, kLayer>, {dim3(BlocksFor(f.width), kTeams), kThreads}, stream, f);
}

int64_t BackwardScratch(const NormBackwardArgs& args) {
  const int64_t each = int64_t{kTeams} * WidthOf(args.x_TH);
  return (args.grad_weight_H.empty() ? 0 : each * SizeOf(args.grad_weight_H.dtype)) +
         (args.grad_bias_H.empty() ? 0 : each * SizeOf(args.grad_bias_H.dtype));
}

template <typename T, bool kLayer>
cudaError_t RunBackward(const NormBackwardArgs& args, const KernelContext* context) {
  using C = ComputeOf<T>;
  const int64_t rows = NumRowsOf(args.x_TH), width = WidthOf(args.x_TH);
  if (rows == 0) return cudaSuccess;
  auto* const partials = static_cast<C*>(context->scratch);
  C* const weight_partial = args.grad_weight_H.empty() ? nullptr : partials;
  C* const bias_partial = args.grad_bias_H.empty()    ? nullptr
                          : weight_partial == nullptr ? partials
                                                      : partials + kTeams * width;
  const BackwardFields<T> f{.x = MatrixOf<T>(args.x_TH),
                            .grad_y = MatrixOf<T>(args.grad_y_TH),
                            .grad_sum = MatrixOf<T>(args.grad_sum_TH),
                            .grad_x = MatrixOf<T>(args.grad_x_TH),
                            .weight = static_cast<const T*>(args.weight_H.data),
                            .mean = static_cast<const C*>(args.mean_T.data),
                            .rstd = static_cast<const C*>(args.rstd_T.data),
                            .weight_partial = weight_partial,
                            .bias_partial = bias_partial,
                            .rows = rows,
                            .width = static_cast<int32_t>(width)};
  const cudaStream_t stream = StreamOf(context);
  const bool wide =
      HaveWideRows(args.x_TH, args.grad_y_TH, args.grad_sum_TH, args.grad_x_TH, args.weight_H);
  cudaError_t error = LaunchBackward<T, kLayer>(f, wide, stream);
  const auto add = [&](const C* partial, const TensorView& to) {
    if (error != cudaSuccess || partial == nullptr) return;
    error = Launch(AddPartials<C>, ThreadEach(width), stream, partial, f.width,
                   static_cast<C*>(to.data));
  };
  add(weight_partial, args.grad_weight_H);
  add(bias_partial, args.grad_bias_H);
  return error;
}

template <typename T>
void RegisterAs(KernelRegistry& registry, DType dtype, const char* const (&names)[4]) {
  registry.Register(
      MakeEntry<NormForwardArgs, RunForward<T, false>>(OpId::kRmsNormForward, dtype, names[0]));
  registry.Register(MakeEntry<NormBackwardArgs, RunBackward<T, false>, BackwardScratch>(
      OpId::kRmsNormBackward, dtype, names[1]));
  registry.Register(
      MakeEntry<NormForwardArgs, RunForward<T, true>>(OpId::kLayerNormForward, dtype, names[2]));
  registry.Register(MakeEntry<NormBackwardArgs, RunBackward<T, true>, BackwardScratch>(
      OpId::kLayerNormBackward, dtype, names[3]));
}

}  // namespace

void RegisterNorms(KernelRegistry& registry) {
  RegisterAs<double>(registry, DType::kFloat64,
                     {"f64_rmsnorm_fwd_cuda", "f64_rmsnorm_bwd_cuda", "f64_layernorm_fwd_cuda",
                      "f64_layernorm_bwd_cuda"});
  RegisterAs<float>(registry, DType::kFloat32,
                    {"f32_rmsnorm_fwd_cuda", "f32_rmsnorm_bwd_cuda", "f32_layernorm_fwd_cuda",
                     "f32_layernorm_bwd_cuda"});
  RegisterAs<__nv_bfloat16>(registry, DType::kBFloat16,
                            {"bf16_rmsnorm_fwd_cuda", "bf16_rmsnorm_bwd_cuda",
                             "bf16_layernorm_fwd_cuda", "bf16_layernorm_bwd_cuda"});
}

}  // namespace omni::cuda
