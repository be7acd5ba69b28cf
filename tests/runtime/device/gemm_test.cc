// RunGemm on each of its kernels against a plain loop in double.
#include "runtime/device/cpu/gemm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "runtime/device/thread_pool.h"

namespace omni::cpu {
namespace {

KernelContext ContextOf(ThreadPool& pool) {
  return {.stream = nullptr,
          .scratch = nullptr,
          .scratch_bytes = 0,
          .pool = &pool,
          .parallel_for = [](void* p, int64_t num_tasks, void (*body)(void*, int64_t), void* arg) {
            static_cast<ThreadPool*>(p)->ParallelFor(num_tasks, body, arg);
          }};
}

template <typename T>
struct Problem {
  Gemm<T> gemm;
  std::vector<T> a, b, c, bias;

  // Leading dimensions are `slack` more than need be.
  Problem(int64_t m, int64_t n, int64_t k, bool a_transposed, bool b_transposed, bool accumulate,
          bool has_bias, int64_t slack) {
    std::mt19937 bits(7);
    std::normal_distribution<double> normal;
    gemm = {.m = m, .n = n, .k = k};
    gemm.a_transposed = a_transposed;
    gemm.b_transposed = b_transposed;
    gemm.accumulate = accumulate;
    gemm.lda = (a_transposed ? m : k) + slack;
    gemm.ldb = (b_transposed ? k : n) + slack;
    gemm.ldc = n + slack;
    a.resize((a_transposed ? k : m) * gemm.lda);
    b.resize((b_transposed ? n : k) * gemm.ldb);
    c.resize(m * gemm.ldc);
    bias.resize(n);
    for (auto* values : {&a, &b, &c, &bias})
      for (T& x : *values) x = static_cast<T>(normal(bits));
    gemm.a = a.data();
    gemm.b = b.data();
    gemm.c = c.data();
    if (has_bias) gemm.bias = bias.data();
  }

  std::vector<double> Expected() const {
    std::vector<double> want(c.begin(), c.end());
    const Gemm<T>& g = gemm;
    for (int64_t i = 0; i < g.m; ++i)
      for (int64_t j = 0; j < g.n; ++j) {
        double sum = g.accumulate ? want[i * g.ldc + j] : g.bias != nullptr ? bias[j] : 0.0;
        for (int64_t l = 0; l < g.k; ++l) {
          sum += static_cast<double>(g.a_transposed ? a[l * g.lda + i] : a[i * g.lda + l]) *
                 static_cast<double>(g.b_transposed ? b[j * g.ldb + l] : b[l * g.ldb + j]);
        }
        want[i * g.ldc + j] = sum;
      }
    return want;
  }
};

// All that this processor runs.
std::vector<ProductKernel> Kernels() {
  std::vector<ProductKernel> kernels = {ProductKernel::kOpenBlas, ProductKernel::kAvx2};
  if (HasAvx512()) kernels.push_back(ProductKernel::kAvx512);
  return kernels;
}

template <typename T>
void CompareAll(ProductKernel kernel, double tolerance) {
  ThreadPool pool(2);
  const int64_t shapes[][3] = {{1, 1, 1},    {12, 32, 256}, {13, 33, 257}, {5, 31, 9},
                               {50, 100, 3}, {257, 1, 40},  {3, 300, 520}, {130, 270, 77},
                               {6, 16, 256}, {7, 17, 255},  {97, 24, 260}, {1, 300, 8},
                               {29, 64, 0},  {0, 8, 8},     {8, 0, 8},     {530, 290, 64}};
  for (const auto& [m, n, k] : shapes) {
    for (int bits = 0; bits < 4; ++bits) {
      for (int start = 0; start < 3; ++start) {  // zero, C, bias
        for (const int64_t slack : {0, 5}) {
          SCOPED_TRACE(::testing::Message() << m << " x " << n << " x " << k << " transposed "
                                            << bits << " start " << start << " slack " << slack);
          Problem<T> p(m, n, k, bits & 1, bits & 2, start == 1, start == 2, slack);
          p.gemm.kernel = kernel;
          const std::vector<double> want = p.Expected();
          RunGemm<T>(ContextOf(pool), p.gemm);
          double worst = 0.0;
          for (size_t i = 0; i < want.size(); ++i)
            worst = std::max(worst, std::abs(static_cast<double>(p.c[i]) - want[i]));
          ASSERT_LE(worst, tolerance * std::sqrt(static_cast<double>(k) + 1.0));
        }
      }
    }
  }
}

TEST(GemmTest, Fp32IsTheProduct) {
  for (const ProductKernel kernel : Kernels()) {
    SCOPED_TRACE(static_cast<int>(kernel));
    CompareAll<float>(kernel, 4e-6);
  }
}
TEST(GemmTest, Fp64IsTheProduct) { CompareAll<double>(ProductKernel::kOpenBlas, 1e-14); }

TEST(GemmTest, NanReachesTheResult) {
  ThreadPool pool(1);
  for (const ProductKernel kernel : Kernels()) {
    Problem<float> p(20, 40, 30, false, true, false, false, 0);
    p.gemm.kernel = kernel;
    p.a[3 * p.gemm.lda + 7] = NAN;
    RunGemm<float>(ContextOf(pool), p.gemm);
    for (int64_t i = 0; i < 20; ++i)
      for (int64_t j = 0; j < 40; ++j) EXPECT_EQ(std::isnan(p.c[i * 40 + j]), i == 3);
  }
}

// Of memory around C, that of the last rows and columns in particular.
TEST(GemmTest, WritesNothingElse) {
  ThreadPool pool(1);
  for (const ProductKernel kernel : Kernels()) {
    for (const int64_t n : {1, 7, 8, 9, 15, 16, 17, 33}) {
      Problem<float> p(7, n, 20, false, false, false, true, 40);
      p.gemm.kernel = kernel;
      const std::vector<float> before = p.c;
      RunGemm<float>(ContextOf(pool), p.gemm);
      for (int64_t i = 0; i < 7; ++i)
        for (int64_t j = n; j < p.gemm.ldc; ++j)
          EXPECT_EQ(p.c[i * p.gemm.ldc + j], before[i * p.gemm.ldc + j]) << n << " columns";
    }
  }
}

TEST(GemmTest, BitwiseTheSameOnAnyNumberOfThreads) {
  for (const ProductKernel kernel : Kernels()) {
    for (int bits = 0; bits < 4; ++bits) {
      Problem<float> one(300, 400, 500, bits & 1, bits & 2, true, false, 0), more = one;
      one.gemm.kernel = more.gemm.kernel = kernel;
      more.gemm.a = more.a.data();
      more.gemm.b = more.b.data();
      ThreadPool single(1);
      RunGemm<float>(ContextOf(single), one.gemm);
      for (int threads = 2; threads <= 4; ++threads) {
        Problem<float> again = more;
        again.gemm.c = again.c.data();
        ThreadPool pool(threads);
        RunGemm<float>(ContextOf(pool), again.gemm);
        EXPECT_EQ(one.c, again.c) << threads;
      }
    }
  }
}

}  // namespace
}  // namespace omni::cpu
