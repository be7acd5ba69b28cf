// AdamW and Muon. AdamW is bound by memory (four reads, three writes an element); Newton-Schulz
// is GEMMs of the smaller dim, 2 n^2 (2 m + n) FLOPs an iteration for an [n, m] matrix, n <= m.
#include "runtime/device/args/optimizer.h"

#include <cblas.h>

#include <cmath>
#include <type_traits>
#include <vector>

#include "runtime/device/cpu/kernel_helpers.h"
#include "runtime/device/cpu/register.h"

namespace omni::cpu {
namespace {

template <typename T>
int32_t AdamW(const void* raw, const KernelContext* context) {
  const auto& args = *static_cast<const AdamWArgs*>(raw);
  T* weight = args.weight.ptr<T>();
  const T* grad = args.grad.ptr<T>();
  T* first = args.first_moment.ptr<T>();
  T* second = args.second_moment.ptr<T>();
  const T scale = static_cast<T>(args.grad_scale), beta1 = static_cast<T>(args.beta1),
          beta2 = static_cast<T>(args.beta2), eps = static_cast<T>(args.eps),
          keep = static_cast<T>(1 - args.lr * args.weight_decay),
          rate = static_cast<T>(args.lr / args.correction1),
          inverse2 = static_cast<T>(1 / args.correction2);
  // By value: what a store might change, the compiler would read again for each element.
  ParallelForRows(*context, args.weight.num_elements(), 1, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T g = grad[i] * scale;
      const T m = beta1 * first[i] + (1 - beta1) * g;
      const T v = beta2 * second[i] + (1 - beta2) * g * g;
      first[i] = m;
      second[i] = v;
      weight[i] = keep * weight[i] - rate * m / (std::sqrt(v * inverse2) + eps);
    }
  });
  return 0;
}

constexpr int64_t kSumChunk = 16384;

int64_t NumSumChunks(const TensorView& x) { return (x.num_elements() + kSumChunk - 1) / kSumChunk; }

int64_t SumOfSquaresScratch(const void* raw) {
  return NumSumChunks(static_cast<const SumOfSquaresArgs*>(raw)->x) *
         static_cast<int64_t>(sizeof(double));
}

template <typename T>
int32_t SumOfSquares(const void* raw, const KernelContext* context) {
  const auto& args = *static_cast<const SumOfSquaresArgs*>(raw);
  const T* x = args.x.ptr<T>();
  const int64_t count = args.x.num_elements(), chunks = NumSumChunks(args.x);
  double* partial = static_cast<double*>(context->scratch);
  ParallelFor(*context, chunks, [&](int64_t chunk) {
    const int64_t begin = chunk * kSumChunk, end = std::min(count, begin + kSumChunk);
    double lanes[8] = {};
    int64_t i = begin;
    for (; i + 8 <= end; i += 8) {
      for (int lane = 0; lane < 8; ++lane) {
        const double value = static_cast<double>(x[i + lane]);
        lanes[lane] += value * value;
      }
    }
    for (; i < end; ++i) lanes[0] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    double sum = 0;
    for (const double lane : lanes) sum += lane;
    partial[chunk] = sum;
  });
  double sum = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += partial[chunk];
  *args.out.ptr<double>() = sum;
  return 0;
}

template <typename T>
int32_t MuonMomentum(const void* raw, const KernelContext* context) {
  const auto& args = *static_cast<const MuonMomentumArgs*>(raw);
  const T* grad = args.grad.ptr<T>();
  T* buffer = args.buffer.ptr<T>();
  T* direction = args.direction.ptr<T>();
  const T scale = static_cast<T>(args.grad_scale), mu = static_cast<T>(args.momentum);
  ParallelForRows(*context, args.grad.num_elements(), 1, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T g = grad[i] * scale;
      buffer[i] = mu * buffer[i] + g;
      direction[i] = g + mu * buffer[i];
    }
  });
  return 0;
}

void Gemm(CBLAS_TRANSPOSE trans_b, int64_t m, int64_t n, int64_t k, double alpha, const float* a,
          int64_t lda, const float* b, int64_t ldb, double beta, float* c, int64_t ldc) {
  cblas_sgemm(CblasRowMajor, CblasNoTrans, trans_b, m, n, k, static_cast<float>(alpha), a, lda, b,
              ldb, static_cast<float>(beta), c, ldc);
}
void Gemm(CBLAS_TRANSPOSE trans_b, int64_t m, int64_t n, int64_t k, double alpha, const double* a,
          int64_t lda, const double* b, int64_t ldb, double beta, double* c, int64_t ldc) {
  cblas_dgemm(CblasRowMajor, CblasNoTrans, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

constexpr int64_t kTileRows = 192;  // of the output; a shape-only cut

struct NewtonSchulzShape {
  int64_t rows, cols;  // rows <= cols, after transposing if need be
  bool transposed;
};
NewtonSchulzShape ShapeOf(const TensorView& direction) {
  const int64_t rows = direction.size(0), cols = direction.size(1);
  return rows <= cols ? NewtonSchulzShape{rows, cols, false} : NewtonSchulzShape{cols, rows, true};
}

template <typename T>
int64_t NewtonSchulzScratch(const void* raw) {
  const auto shape = ShapeOf(static_cast<const NewtonSchulzArgs*>(raw)->direction);
  return static_cast<int64_t>(sizeof(T)) *
         (2 * shape.rows * shape.cols + 2 * shape.rows * shape.rows);
}

template <typename T>
int32_t NewtonSchulz(const void* raw, const KernelContext* context) {
  constexpr double kA = 3.4445, kB = -4.7750, kC = 2.0315;
  const auto& args = *static_cast<const NewtonSchulzArgs*>(raw);
  const auto shape = ShapeOf(args.direction);
  const int64_t n = shape.rows, m = shape.cols;
  if (n == 0) return 0;
  T* direction = args.direction.ptr<T>();
  T* x = static_cast<T*>(context->scratch);
  T* next = x + n * m;
  T* gram = next + n * m;
  T* poly = gram + n * n;

  double squares = 0;
  for (int64_t i = 0; i < n * m; ++i) squares += double{direction[i]} * double{direction[i]};
  const T scale = static_cast<T>(1.0 / (std::sqrt(squares) + 1e-7));
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < m; ++j) {
      x[i * m + j] = scale * (shape.transposed ? direction[j * n + i] : direction[i * m + j]);
    }
  }
  const int64_t tiles = (n + kTileRows - 1) / kTileRows;
  for (int32_t step = 0; step < args.steps; ++step) {
    const auto for_tiles = [&](const auto& body) {
      ParallelFor(*context, tiles, [&](int64_t tile) {
        const int64_t begin = tile * kTileRows;
        body(begin, std::min(kTileRows, n - begin));
      });
    };
    for_tiles([&](int64_t row, int64_t count) {  // A = X X^T
      Gemm(CblasTrans, count, n, m, 1.0, x + row * m, m, x, m, 0.0, gram + row * n, n);
    });
    for_tiles([&](int64_t row, int64_t count) {  // b A + c A^2, plus a on the diagonal
      std::copy(gram + row * n, gram + (row + count) * n, poly + row * n);
      Gemm(CblasNoTrans, count, n, n, kC, gram + row * n, n, gram, n, kB, poly + row * n, n);
      for (int64_t i = row; i < row + count; ++i) poly[i * n + i] += static_cast<T>(kA);
    });
    for_tiles([&](int64_t row, int64_t count) {
      Gemm(CblasNoTrans, count, m, n, 1.0, poly + row * n, n, x, m, 0.0, next + row * m, m);
    });
    std::swap(x, next);
  }
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < m; ++j) {
      direction[shape.transposed ? j * n + i : i * m + j] = x[i * m + j];
    }
  }
  return 0;
}

template <typename T>
int32_t MuonApply(const void* raw, const KernelContext* context) {
  const auto& args = *static_cast<const MuonApplyArgs*>(raw);
  T* weight = args.weight.ptr<T>();
  const T* direction = args.direction.ptr<T>();
  const T keep = static_cast<T>(1 - args.lr * args.weight_decay),
          rate = static_cast<T>(args.lr * args.scale);
  ParallelForRows(*context, args.weight.num_elements(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) weight[i] = keep * weight[i] - rate * direction[i];
  });
  return 0;
}

template <typename T>
void RegisterFor(KernelRegistry& registry, const char* const (&names)[5]) {
  const auto add = [&](OpId op, const char* name, int32_t (*run)(const void*, const KernelContext*),
                       int64_t (*scratch)(const void*) = nullptr) {
    registry.Register({.op = op,
                       .device = DeviceKind::kCpu,
                       .dtype = DTypeOf<T>::value,
                       .name = name,
                       .priority = 0,
                       .run = run,
                       .supports = nullptr,
                       .scratch_bytes = scratch});
  };
  add(OpId::kAdamW, names[0], AdamW<T>);
  add(OpId::kSumOfSquares, names[1], SumOfSquares<T>, SumOfSquaresScratch);
  add(OpId::kMuonMomentum, names[2], MuonMomentum<T>);
  add(OpId::kNewtonSchulz, names[3], NewtonSchulz<T>, NewtonSchulzScratch<T>);
  add(OpId::kMuonApply, names[4], MuonApply<T>);
}

}  // namespace

void RegisterOptimizerKernels(KernelRegistry& registry) {
  RegisterFor<double>(registry, {"f64_adamw_cpu", "f64_sum_of_squares_cpu", "f64_muon_momentum_cpu",
                                 "f64_newton_schulz_cpu", "f64_muon_apply_cpu"});
  RegisterFor<float>(registry, {"f32_adamw_cpu", "f32_sum_of_squares_cpu", "f32_muon_momentum_cpu",
                                "f32_newton_schulz_cpu", "f32_muon_apply_cpu"});
}

}  // namespace omni::cpu
