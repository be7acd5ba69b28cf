// Muon's orthogonalisation: products by cuBLASLt in fp32 (fp64 for fp64), 2 n^2 (2 m + n) FLOPs an
// iteration for a matrix whose smaller dim is n. The matrix is not transposed: the smaller Gram
// matrix is X X^T or X^T X, and the polynomial of it, which is symmetric, stands on that side.
#include "runtime/device/args/optimizer.h"
#include "runtime/device/cuda/map.h"
#include "runtime/device/cuda/math.h"
#include "runtime/device/cuda/matmul.h"
#include "runtime/device/cuda/register.h"
#include "runtime/device/cuda/squares.h"

namespace omni::cuda {
namespace {

constexpr double kA = 3.4445, kB = -4.7750, kC = 2.0315, kEps = 1e-7;

template <typename T, int kCount>
struct NormaliseBody {
  T* x;
  const double* squares;
  __device__ void operator()(int64_t, int64_t i) const {
    const T scale = static_cast<T>(1.0 / (Root(*squares) + kEps));
#pragma unroll
    for (int j = 0; j < kCount; ++j) x[i + j] *= scale;
  }
};
template <typename T, int kCount>
struct DiagonalBody {
  T* x;
  int64_t n;
  __device__ void operator()(int64_t, int64_t i) const {
#pragma unroll
    for (int j = 0; j < kCount; ++j) x[(i + j) * (n + 1)] += static_cast<T>(kA);
  }
};

template <typename T>
struct Places {
  int64_t squares = 0, partial, next, gram, poly, bytes;
  explicit Places(const TensorView& direction) {
    const int64_t rows = direction.sizes[0], cols = direction.sizes[1];
    const int64_t n = rows < cols ? rows : cols;
    const auto size = static_cast<int64_t>(sizeof(T));
    partial = 256;
    next = partial + PieceBytes(SquaresScratch(rows * cols));
    gram = next + PieceBytes(rows * cols * size);
    poly = gram + PieceBytes(n * n * size);
    bytes = poly + n * n * size;
  }
};
template <typename T>
int64_t Scratch(const NewtonSchulzArgs& args) {
  return Places<T>(args.direction).bytes;
}

template <typename T>
cudaError_t NewtonSchulz(const NewtonSchulzArgs& args, const KernelContext* context) {
  const cudaStream_t stream = StreamOf(context);
  const int64_t rows = args.direction.sizes[0], cols = args.direction.sizes[1];
  const bool is_wide = rows <= cols;
  const int64_t n = is_wide ? rows : cols;
  if (n == 0) return cudaSuccess;
  const Places<T> places(args.direction);
  auto* const scratch = static_cast<std::byte*>(context->scratch);
  auto* const squares = reinterpret_cast<double*>(scratch + places.squares);
  auto* const gram = reinterpret_cast<T*>(scratch + places.gram);
  auto* const poly = reinterpret_cast<T*>(scratch + places.poly);
  auto* x = static_cast<T*>(args.direction.data);
  auto* next = reinterpret_cast<T*>(scratch + places.next);
  const size_t bytes = rows * cols * sizeof(T);
  cudaError_t error = SumSquares(x, rows * cols, squares,
                                 reinterpret_cast<double*>(scratch + places.partial), stream);
  if (error == cudaSuccess)
    error = LaunchMap<1>(NormaliseBody<T, 1>{x, squares}, 1, 0, rows * cols, stream);
  const DType dtype = args.direction.dtype;
  const Product gram_of_x{.m = n,
                          .n = n,
                          .k = is_wide ? cols : rows,
                          .dtype = dtype,
                          .c_dtype = dtype,
                          .lda = cols,
                          .a_transposed = !is_wide,
                          .ldb = cols,
                          .b_transposed = is_wide,
                          .c = gram,
                          .ldc = n};
  for (int32_t step = 0; step < args.steps && error == cudaSuccess; ++step) {
    Product product = gram_of_x;
    product.a = product.b = x;
    error = Multiply(context, product);
    if (error != cudaSuccess) return error;
    error = cudaMemcpyAsync(poly, gram, n * n * sizeof(T), cudaMemcpyDeviceToDevice, stream);
    if (error != cudaSuccess) return error;
    error = Multiply(context, {.m = n,  // b A + c A^2
                               .n = n,
                               .k = n,
                               .dtype = dtype,
                               .c_dtype = dtype,
                               .a = gram,
                               .lda = n,
                               .b = gram,
                               .ldb = n,
                               .c = poly,
                               .ldc = n,
                               .alpha = kC,
                               .beta = kB});
    if (error == cudaSuccess)  // + a
      error = LaunchMap<1>(DiagonalBody<T, 1>{poly, n}, 1, 0, n, stream);
    if (error != cudaSuccess) return error;
    error = Multiply(context, {.m = rows,
                               .n = cols,
                               .k = n,
                               .dtype = dtype,
                               .c_dtype = dtype,
                               .a = is_wide ? poly : x,
                               .lda = is_wide ? n : cols,
                               .b = is_wide ? x : poly,
                               .ldb = is_wide ? cols : n,
                               .c = next,
                               .ldc = cols});
    T* const before = x;
    x = next;
    next = before;
  }
  if (error != cudaSuccess || x == args.direction.data) return error;
  return cudaMemcpyAsync(args.direction.data, x, bytes, cudaMemcpyDeviceToDevice, stream);
}

}  // namespace

void RegisterNewtonSchulz(KernelRegistry& registry) {
  registry.Register(MakeEntry<NewtonSchulzArgs, NewtonSchulz<double>, Scratch<double>>(
      OpId::kNewtonSchulz, DType::kFloat64, "f64_newton_schulz_cuda_lt"));
  registry.Register(MakeEntry<NewtonSchulzArgs, NewtonSchulz<float>, Scratch<float>>(
      OpId::kNewtonSchulz, DType::kFloat32, "f32_newton_schulz_cuda_lt"));
}

}  // namespace omni::cuda
