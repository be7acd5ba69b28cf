// A linear map of its own for each run of rows, the runs known on the device alone. A block makes a
// tile of 32 x 32 results from tiles of 32 in shared memory, on the FMA units: for exactness, and
// until products on tensor cores take their sizes from the device. Runs that do not cover the rows
// in order raise kBadOffsets, and their rows are left alone.
#include "runtime/device/args/grouped_linear.h"
#include "runtime/device/cuda/kernel.h"
#include "runtime/device/cuda/register.h"

namespace omni::cuda {
namespace {

constexpr int kTile = 32, kRowsPerThread = kTile * kTile / kThreads;

struct Groups {
  const int32_t* offsets;  // [count + 1]
  int32_t count;
  int64_t rows;
};
Groups GroupsOf(const TensorView& offsets, int64_t rows) {
  return {static_cast<const int32_t*>(offsets.data), static_cast<int32_t>(offsets.sizes[0] - 1),
          rows};
}
__global__ void __launch_bounds__(kThreads)
    CheckGroups(const __grid_constant__ Groups groups, int32_t* flags) {
  for (int32_t e = threadIdx.x; e < groups.count; e += kThreads)
    if (groups.offsets[e] > groups.offsets[e + 1]) Raise(flags, kBadOffsets);
  if (threadIdx.x == 0 && (groups.offsets[0] != 0 || groups.offsets[groups.count] != groups.rows))
    Raise(flags, kBadOffsets);
}

// The rows of group e, none where they are not among those there are.
struct Run {
  int64_t begin, end;
};
__device__ __forceinline__ Run RunOf(const Groups& groups, int32_t e) {
  const int64_t begin = groups.offsets[e], end = groups.offsets[e + 1];
  if (begin < 0 || begin > end || end > groups.rows) return {0, 0};
  return {begin, end};
}

template <typename C>
struct Tiles {
  C a[kTile][kTile + 1], b[kTile][kTile + 1];
};

// sums += the product of one pair of tiles: a is [row][k], b is [k][column].
template <typename C>
__device__ __forceinline__ void AddTiles(const Tiles<C>& tiles, C (&sums)[kRowsPerThread]) {
  const int column = threadIdx.x % kTile, first = threadIdx.x / kTile;
  for (int k = 0; k < kTile; ++k) {
    const C b = tiles.b[k][column];
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i)
      sums[i] += tiles.a[first + i * (kThreads / kTile)][k] * b;
  }
}

// y[r] = op(w_e) x[r]: the output is wide n, x is wide k. kTransposed: w_e is [n, k], else [k, n].
template <typename T, bool kTransposed>
__global__ void __launch_bounds__(kThreads)
    RowsKernel(const __grid_constant__ Groups groups, const __grid_constant__ Matrix<const T> x,
               const T* weights, int64_t group_stride, const __grid_constant__ Matrix<T> y,
               int64_t n, int64_t k) {
  using C = ComputeOf<T>;
  Tiles<C>& tiles = BlockShared<Tiles<C>>();
  const int32_t e = blockIdx.z;
  const Run run = RunOf(groups, e);
  const int64_t first_column = int64_t{blockIdx.x} * kTile;
  const T* const w = weights + e * group_stride;
  const int column = threadIdx.x % kTile, line = threadIdx.x / kTile;
  for (int64_t row = run.begin + int64_t{blockIdx.y} * kTile; row < run.end;
       row += int64_t{gridDim.y} * kTile) {
    C sums[kRowsPerThread] = {};
    for (int64_t k0 = 0; k0 < k; k0 += kTile) {
      for (int i = line; i < kTile; i += kThreads / kTile) {
        const bool has_a = row + i < run.end && k0 + column < k;
        tiles.a[i][column] = has_a ? Wide(x.row(row + i)[k0 + column]) : C{0};
        if constexpr (kTransposed) {
          const bool has_b = first_column + i < n && k0 + column < k;
          tiles.b[column][i] = has_b ? Wide(w[(first_column + i) * k + k0 + column]) : C{0};
        } else {
          const bool has_b = k0 + i < k && first_column + column < n;
          tiles.b[i][column] = has_b ? Wide(w[(k0 + i) * n + first_column + column]) : C{0};
        }
      }
      __syncthreads();
      AddTiles(tiles, sums);
      __syncthreads();
    }
    for (int i = 0; i < kRowsPerThread; ++i) {
      const int64_t r = row + line + i * (kThreads / kTile);
      if (r < run.end && first_column + column < n)
        y.row(r)[first_column + column] = Narrow<T>(sums[i]);
    }
  }
}

// grad_w_e [O, I] += dy^T x over the rows of e.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    WeightKernel(const __grid_constant__ Groups groups, const __grid_constant__ Matrix<const T> x,
                 const __grid_constant__ Matrix<const T> grad_y, ComputeOf<T>* grad_weights,
                 int64_t group_stride, int64_t outputs, int64_t inputs) {
  using C = ComputeOf<T>;
  Tiles<C>& tiles = BlockShared<Tiles<C>>();
  const int32_t e = blockIdx.z;
  const Run run = RunOf(groups, e);
  if (run.begin == run.end) return;
  const int64_t o = int64_t{blockIdx.y} * kTile, in = int64_t{blockIdx.x} * kTile;
  const int column = threadIdx.x % kTile, line = threadIdx.x / kTile;
  C sums[kRowsPerThread] = {};
  for (int64_t row = run.begin; row < run.end; row += kTile) {
    for (int i = line; i < kTile; i += kThreads / kTile) {
      const bool is_there = row + i < run.end;
      tiles.a[column][i] =
          is_there && o + column < outputs ? Wide(grad_y.row(row + i)[o + column]) : C{0};
      tiles.b[i][column] =
          is_there && in + column < inputs ? Wide(x.row(row + i)[in + column]) : C{0};
    }
    __syncthreads();
    AddTiles(tiles, sums);
    __syncthreads();
  }
  C* const to = grad_weights + e * group_stride;
  for (int i = 0; i < kRowsPerThread; ++i) {
    const int64_t output = o + line + i * (kThreads / kTile);
    if (output < outputs && in + column < inputs) to[output * inputs + in + column] += sums[i];
  }
}

unsigned TilesOf(int64_t count) { return static_cast<unsigned>((count + kTile - 1) / kTile); }

// Blocks by rows, as many as the runs have if they are even; longer ones go round.
template <typename T, bool kTransposed>
cudaError_t RunRows(const Groups& groups, const TensorView& x, const TensorView& weights,
                    const TensorView& y, const KernelContext* context) {
  if (groups.rows == 0) return cudaSuccess;
  const int64_t n = WidthOf(y), k = WidthOf(x);
  const cudaError_t error =
      Launch(CheckGroups, {1, kThreads}, StreamOf(context), groups, context->flags);
  if (error != cudaSuccess) return error;
  const dim3 grid(TilesOf(n), TilesOf((groups.rows + groups.count - 1) / groups.count),
                  static_cast<unsigned>(groups.count));
  return Launch(RowsKernel<T, kTransposed>, {grid, kThreads}, StreamOf(context), groups,
                MatrixOf<const T>(x), static_cast<const T*>(weights.data), weights.strides[0],
                MatrixOf<T>(y), n, k);
}
template <typename T>
cudaError_t Forward(const GroupedLinearForwardArgs& args, const KernelContext* context) {
  return RunRows<T, true>(GroupsOf(args.offsets_E1, args.x_RI.sizes[0]), args.x_RI, args.weight_EOI,
                          args.y_RO, context);
}
template <typename T>
cudaError_t BackwardInput(const GroupedLinearBackwardInputArgs& args,
                          const KernelContext* context) {
  return RunRows<T, false>(GroupsOf(args.offsets_E1, args.grad_y_RO.sizes[0]), args.grad_y_RO,
                           args.weight_EOI, args.grad_x_RI, context);
}
template <typename T>
cudaError_t BackwardWeight(const GroupedLinearBackwardWeightArgs& args,
                           const KernelContext* context) {
  const Groups groups = GroupsOf(args.offsets_E1, args.x_RI.sizes[0]);
  if (groups.rows == 0) return cudaSuccess;
  const cudaError_t error =
      Launch(CheckGroups, {1, kThreads}, StreamOf(context), groups, context->flags);
  if (error != cudaSuccess) return error;
  const int64_t outputs = args.grad_weight_EOI.sizes[1], inputs = args.grad_weight_EOI.sizes[2];
  const dim3 grid(TilesOf(inputs), TilesOf(outputs), static_cast<unsigned>(groups.count));
  return Launch(WeightKernel<T>, {grid, kThreads}, StreamOf(context), groups,
                MatrixOf<const T>(args.x_RI), MatrixOf<const T>(args.grad_y_RO),
                static_cast<ComputeOf<T>*>(args.grad_weight_EOI.data),
                args.grad_weight_EOI.strides[0], outputs, inputs);
}

template <typename T>
void Register(KernelRegistry& registry, DType dtype, const char* forward, const char* input,
              const char* weight) {
  registry.Register(
      MakeEntry<GroupedLinearForwardArgs, Forward<T>>(OpId::kGroupedLinearForward, dtype, forward));
  registry.Register(MakeEntry<GroupedLinearBackwardInputArgs, BackwardInput<T>>(
      OpId::kGroupedLinearBackwardInput, dtype, input));
  registry.Register(MakeEntry<GroupedLinearBackwardWeightArgs, BackwardWeight<T>>(
      OpId::kGroupedLinearBackwardWeight, dtype, weight));
}

}  // namespace

void RegisterGroupedLinear(KernelRegistry& registry) {
  Register<double>(registry, DType::kFloat64, "f64_grouped_linear_fwd_cuda",
                   "f64_grouped_linear_bwd_input_cuda", "f64_grouped_linear_bwd_weight_cuda");
  Register<float>(registry, DType::kFloat32, "f32_grouped_linear_fwd_cuda",
                  "f32_grouped_linear_bwd_input_cuda", "f32_grouped_linear_bwd_weight_cuda");
  Register<__nv_bfloat16>(registry, DType::kBFloat16, "bf16_grouped_linear_fwd_cuda",
                          "bf16_grouped_linear_bwd_input_cuda",
                          "bf16_grouped_linear_bwd_weight_cuda");
}

}  // namespace omni::cuda
