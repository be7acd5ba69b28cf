// VarlenAttention against a T x T implementation in fp64, against PyTorch, against finite
// differences, and against itself on other numbers of threads.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <string_view>

#include "runtime/checkpoint/safetensors.h"
#include "runtime/device/args/elementwise.h"
#include "runtime/ops/ops.h"

namespace omni {
namespace {

struct Case {
  std::vector<int32_t> lengths;
  int32_t heads, kv_heads, head_dim;
  bool causal;
  int32_t window;

  int64_t tokens() const { return cu_seqlens().back(); }
  int64_t columns() const { return int64_t{heads + 2 * kv_heads} * head_dim; }
  std::vector<int32_t> cu_seqlens() const {
    std::vector<int32_t> cu{0};
    for (const int32_t length : lengths) cu.push_back(cu.back() + length);
    return cu;
  }
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  out << c.heads << "/" << c.kv_heads << " heads of " << c.head_dim << (c.causal ? " causal" : "")
      << " window " << c.window << " lengths";
  for (const int32_t length : c.lengths) out << " " << length;
  return out;
}

std::vector<double> Normal(int64_t count, uint32_t seed) {
  std::mt19937 bits(seed);
  std::normal_distribution<double> normal;
  std::vector<double> values(count);
  for (double& value : values) value = normal(bits);
  return values;
}

struct Result {
  std::vector<double> out, grad_qkv;
};

// Rows of qkv are [q heads | k heads | v heads]. The textbook, with T x T probabilities.
Result Naive(const Case& c, const std::vector<double>& qkv, const std::vector<double>& grad_out) {
  const int64_t dim = c.head_dim, columns = c.columns();
  const double scale = 1.0 / std::sqrt(static_cast<double>(dim));
  Result result{std::vector<double>(c.tokens() * c.heads * dim), std::vector<double>(qkv.size())};
  const std::vector<int32_t> cu = c.cu_seqlens();
  for (size_t s = 0; s < c.lengths.size(); ++s) {
    for (int32_t n = 0; n < c.heads; ++n) {
      const int64_t h = n / (c.heads / c.kv_heads);
      const auto q_at = [&](int64_t t) { return (cu[s] + t) * columns + n * dim; };
      const auto k_at = [&](int64_t t) { return (cu[s] + t) * columns + (c.heads + h) * dim; };
      const auto v_at = [&](int64_t t) { return k_at(t) + c.kv_heads * dim; };
      const auto o_at = [&](int64_t t) { return ((cu[s] + t) * c.heads + n) * dim; };
      for (int64_t i = 0; i < c.lengths[s]; ++i) {
        std::vector<double> p(c.lengths[s], 0.0), dp(c.lengths[s], 0.0);
        double sum = 0.0, delta = 0.0;
        for (int64_t j = 0; j < c.lengths[s]; ++j) {
          if (c.causal && j > i) continue;
          if (c.window > 0 && std::abs(i - j) >= c.window) continue;
          double score = 0.0;
          for (int64_t d = 0; d < dim; ++d) score += qkv[q_at(i) + d] * qkv[k_at(j) + d];
          sum += p[j] = std::exp(scale * score);
        }
        for (int64_t j = 0; j < c.lengths[s]; ++j) {
          p[j] /= sum;
          for (int64_t d = 0; d < dim; ++d) {
            result.out[o_at(i) + d] += p[j] * qkv[v_at(j) + d];
            dp[j] += grad_out[o_at(i) + d] * qkv[v_at(j) + d];
            result.grad_qkv[v_at(j) + d] += p[j] * grad_out[o_at(i) + d];
          }
          delta += p[j] * dp[j];
        }
        for (int64_t j = 0; j < c.lengths[s]; ++j) {
          const double ds = scale * p[j] * (dp[j] - delta);
          for (int64_t d = 0; d < dim; ++d) {
            result.grad_qkv[q_at(i) + d] += ds * qkv[k_at(j) + d];
            result.grad_qkv[k_at(j) + d] += ds * qkv[q_at(i) + d];
          }
        }
      }
    }
  }
  return result;
}

class Machine {
 public:
  // Kernels whose name ends in `without` are left out.
  explicit Machine(int32_t num_threads = 2, const std::string& without = "nothing",
                   DeviceKind kind = DeviceKind::kCpu) {
    KernelRegistry all;
    RegisterCpuKernels(all);
    for (const KernelEntry& entry : all.entries())
      if (!std::string_view(entry.name).ends_with(without)) registry_.Register(entry);
    DeviceOptions options;
    options.kind = kind;
    options.delay_seed = 1;
    options.reserved_bytes = int64_t{1} << 30;
    options.num_threads = num_threads;
    options.kernels = &registry_;
    auto device = Device::Create(options);
    OMNI_CHECK_OK(device.status());
    device_ = *std::move(device);
    stream_ = device_->NewStream();
  }

  // The op on slices of one fused projection of type T, and back.
  template <typename T>
  Result Run(const Case& c, const std::vector<double>& qkv, const std::vector<double>& grad_out) {
    Tape tape(*device_);
    ExecContext ctx{.device = *device_, .stream = *stream_, .tape = &tape};
    const int64_t tokens = c.tokens();
    const TensorView qkv_TC = New<T>(ctx, qkv, {tokens, c.columns()});
    Var parts[3];
    int64_t first = 0;
    for (int i = 0; i < 3; ++i) {
      const int64_t heads = i == 0 ? c.heads : c.kv_heads;
      const TensorView part = qkv_TC.Columns(first, heads * c.head_dim);
      parts[i] = tape.Input(part.Reshape({tokens, heads, c.head_dim}), true);
      first += heads * c.head_dim;
    }
    std::vector<int32_t> cu_seqlens = c.cu_seqlens();
    const Var out = VarlenAttention(ctx, parts[0], parts[1], parts[2], cu_seqlens,
                                    {.causal = c.causal, .window = c.window});
    cu_seqlens.assign(cu_seqlens.size(), -1);  // the caller's span need not live on
    Result result;
    result.out = Read<T>(ctx, out.value);
    tape.EndForward({&out, 1});
    const Tape::RootGrad root{out, New<T>(ctx, grad_out, {tokens, c.heads, c.head_dim})};
    tape.Backward(ctx, {&root, 1});
    std::vector<double> grads[3];
    for (int i = 0; i < 3; ++i) grads[i] = Read<T>(ctx, tape.GradOf(parts[i]));
    for (int64_t t = 0; t < tokens; ++t) {
      for (const std::vector<double>& grad : grads) {
        const int64_t width = static_cast<int64_t>(grad.size()) / tokens;
        result.grad_qkv.insert(result.grad_qkv.end(), grad.begin() + t * width,
                               grad.begin() + (t + 1) * width);
      }
    }
    return result;
  }

  template <typename T>
  TensorView New(ExecContext& ctx, const std::vector<double>& values,
                 std::initializer_list<int64_t> sizes) {
    std::vector<T> host;
    for (const double value : values) host.push_back(T(static_cast<float>(value)));
    if constexpr (std::is_same_v<T, double>) host.assign(values.begin(), values.end());
    return UploadNew<T>(ctx, host, sizes);
  }
  template <typename T>
  std::vector<double> Read(ExecContext& ctx, const TensorView& view) {
    std::vector<double> values;
    for (const T value : HostRead<T>(ctx, view)) {
      if constexpr (std::is_same_v<T, double>)
        values.push_back(value);
      else
        values.push_back(static_cast<float>(value));
    }
    return values;
  }

 private:
  KernelRegistry registry_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
};

void ExpectNear(const std::vector<double>& got, const std::vector<double>& want, double tolerance,
                const char* what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  double worst = 0.0;
  size_t at = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double error = std::abs(got[i] - want[i]);
    if (error > worst || std::isnan(error)) worst = error, at = i;
    if (std::isnan(error)) break;
  }
  EXPECT_LE(worst, tolerance) << what << "[" << at << "]: " << got[at] << " for " << want[at];
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const bool causal : {false, true}) {
    for (const int32_t window : {0, 1, 5, 70}) {
      cases.push_back({{1, 0, 17, 135, 0, 1}, 4, 1, 32, causal, window});  // 4:1
      cases.push_back({{0, 33, 2}, 6, 2, 20, causal, window});             // 3:1
      cases.push_back({{201}, 1, 1, 64, causal, window});
      cases.push_back({{64, 63}, 2, 2, 72, causal, window});
      if (window == 0 || window == 70)
        cases.push_back({{600}, 2, 1, 16, causal, window});  // cut into several tasks
    }
    cases.push_back({{3, 300}, 1, 1, 128, causal, 0});
    cases.push_back({{40}, 4, 2, 1, causal, 0});
    cases.push_back({{0, 0}, 4, 2, 32, causal, 0});
    cases.push_back({{}, 4, 2, 32, causal, 0});
  }
  return cases;
}

template <typename T>
void CompareWithNaive(double out_tolerance, double grad_tolerance,
                      const std::string& without = "nothing") {
  Machine machine(2, without);
  for (const Case& c : Cases()) {
    SCOPED_TRACE(::testing::PrintToString(c));
    std::vector<double> qkv = Normal(c.tokens() * c.columns(), 1);
    std::vector<double> grad_out = Normal(c.tokens() * c.heads * c.head_dim, 2);
    if (std::is_same_v<T, BFloat16>) {  // the same inputs for both
      for (auto* values : {&qkv, &grad_out})
        for (double& x : *values) x = static_cast<float>(BFloat16(static_cast<float>(x)));
    }
    const Result want = Naive(c, qkv, grad_out);
    const Result got = machine.Run<T>(c, qkv, grad_out);
    ExpectNear(got.out, want.out, out_tolerance, "out");
    ExpectNear(got.grad_qkv, want.grad_qkv, grad_tolerance, "grad_qkv");
  }
}

TEST(AttentionTest, Fp64EqualsTheTextbook) { CompareWithNaive<double>(1e-13, 1e-12); }
TEST(AttentionTest, Fp32EqualsTheTextbook) { CompareWithNaive<float>(5e-6, 5e-5); }
TEST(AttentionTest, Bf16RoundsOnlyItsOutputs) { CompareWithNaive<BFloat16>(2e-2, 8e-2); }

TEST(AttentionTest, Avx2KernelsWhereThereIsMore) {
  CompareWithNaive<double>(1e-13, 1e-12, "avx512");
  CompareWithNaive<float>(5e-6, 5e-5, "avx512");
}

TEST(AttentionTest, FiniteDifferences) {
  Machine machine;
  for (const Case& c : {Case{{5, 0, 1, 4}, 4, 1, 6, true, 0}, Case{{7, 3}, 3, 1, 5, false, 0},
                        Case{{9}, 2, 2, 4, true, 3}, Case{{8, 1}, 4, 2, 3, false, 2}}) {
    SCOPED_TRACE(::testing::PrintToString(c));
    std::vector<double> qkv = Normal(c.tokens() * c.columns(), 3);
    const std::vector<double> grad_out = Normal(c.tokens() * c.heads * c.head_dim, 4);
    const std::vector<double> grad = machine.Run<double>(c, qkv, grad_out).grad_qkv;
    const auto loss = [&] {
      const std::vector<double> out = machine.Run<double>(c, qkv, grad_out).out;
      double sum = 0.0;
      for (size_t i = 0; i < out.size(); ++i) sum += out[i] * grad_out[i];
      return sum;
    };
    constexpr double kStep = 1e-5;
    for (size_t i = 0; i < qkv.size(); ++i) {
      const double x = qkv[i];
      qkv[i] = x + kStep;
      const double above = loss();
      qkv[i] = x - kStep;
      const double below = loss();
      qkv[i] = x;
      ASSERT_NEAR(grad[i], (above - below) / (2 * kStep), 1e-8) << "element " << i;
    }
  }
}

TEST(AttentionTest, BitwiseTheSameOnAnyNumberOfThreads) {
  const Case cases[] = {{{300, 0, 41, 900, 7, 12, 30}, 4, 2, 32, true, 0},
                        {{256, 256, 100}, 2, 2, 64, false, 100}};
  for (const Case& c : cases) {
    const std::vector<double> qkv = Normal(c.tokens() * c.columns(), 5);
    const std::vector<double> grad_out = Normal(c.tokens() * c.heads * c.head_dim, 6);
    const Result one = Machine(1).Run<float>(c, qkv, grad_out);
    for (int32_t threads = 2; threads <= 4; ++threads) {
      const Result more = Machine(threads).Run<float>(c, qkv, grad_out);
      EXPECT_EQ(one.out, more.out) << threads << " threads";
      EXPECT_EQ(one.grad_qkv, more.grad_qkv) << threads << " threads";
    }
  }
}

// On a stream that runs later, with pages poisoned when they are freed.
TEST(AttentionTest, SameBitsOnAnAsynchronousStream) {
  const Case c{{70, 0, 41, 13, 600}, 4, 2, 32, true, 0};
  const std::vector<double> qkv = Normal(c.tokens() * c.columns(), 5);
  const std::vector<double> grad_out = Normal(c.tokens() * c.heads * c.head_dim, 6);
  const Result now = Machine().Run<float>(c, qkv, grad_out);
  const Result later = Machine(2, "nothing", DeviceKind::kCpuAsync).Run<float>(c, qkv, grad_out);
  EXPECT_EQ(now.out, later.out);
  EXPECT_EQ(now.grad_qkv, later.grad_qkv);
}

// What a segment gets does not depend on its neighbours.
TEST(AttentionTest, SegmentsDoNotSeeEachOther) {
  Machine machine;
  const Case alone{{37}, 4, 2, 32, true, 0}, packed{{11, 37, 50}, 4, 2, 32, true, 0};
  std::vector<double> qkv = Normal(packed.tokens() * packed.columns(), 7);
  const std::vector<double> grad_out = Normal(packed.tokens() * 128, 8);
  for (int64_t i = 0; i < 11 * packed.columns(); ++i) qkv[i] = NAN;  // any leak shows
  const Result all = machine.Run<float>(packed, qkv, grad_out);
  const auto slice = [](const std::vector<double>& v, int64_t width) {
    return std::vector<double>(v.begin() + 11 * width, v.begin() + 48 * width);
  };
  const Result one = machine.Run<float>(alone, slice(qkv, packed.columns()), slice(grad_out, 128));
  EXPECT_EQ(one.out, slice(all.out, 128));
  EXPECT_EQ(one.grad_qkv, slice(all.grad_qkv, packed.columns()));
}

TEST(AttentionTest, LargeScoresNeitherOverflowNorVanish) {
  Machine machine;
  const Case c{{70}, 2, 1, 32, true, 0};
  std::vector<double> qkv = Normal(c.tokens() * c.columns(), 9);
  for (double& x : qkv) x *= 40.0;  // scores of some thousands
  const std::vector<double> grad_out = Normal(c.tokens() * 64, 10);
  const Result result = machine.Run<float>(c, qkv, grad_out);
  for (const double x : result.out) ASSERT_TRUE(std::isfinite(x));
  for (const double x : result.grad_qkv) ASSERT_TRUE(std::isfinite(x));
}

TEST(AttentionTest, EqualsPyTorch) {
  auto file =
      SafetensorsFile::Open(std::string(OMNI_SOURCE_DIR) + "/tests/golden/attention.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  Machine machine;
  for (int index = 0; (*file)->Has(std::to_string(index) + ".q"); ++index) {
    SCOPED_TRACE(index);
    const auto view = [&](const char* name) {
      auto found = (*file)->Get(std::to_string(index) + "." + name);
      OMNI_CHECK_OK(found.status());
      return *found;
    };
    const auto cu = view("cu_seqlens"), mask = view("mask");
    Case c{{},
           static_cast<int32_t>(view("q").size(1)),
           static_cast<int32_t>(view("k").size(1)),
           static_cast<int32_t>(view("q").size(2)),
           mask.ptr<int32_t>()[0] != 0,
           mask.ptr<int32_t>()[1]};
    for (int64_t s = 0; s + 1 < cu.size(0); ++s)
      c.lengths.push_back(cu.ptr<int32_t>()[s + 1] - cu.ptr<int32_t>()[s]);
    const auto fuse = [&](const char* const(&names)[3]) {
      std::vector<double> fused;
      for (int64_t t = 0; t < c.tokens(); ++t)
        for (const char* name : names) {
          const TensorView part = view(name).Rows(t, 1);
          fused.insert(fused.end(), part.ptr<double>(), part.ptr<double>() + part.num_elements());
        }
      return fused;
    };
    const auto all = [&](const char* name) {
      const TensorView v = view(name);
      return std::vector<double>(v.ptr<double>(), v.ptr<double>() + v.num_elements());
    };
    const Result got = machine.Run<double>(c, fuse({"q", "k", "v"}), all("grad_out"));
    ExpectNear(got.out, all("out"), 1e-13, "out");
    ExpectNear(got.grad_qkv, fuse({"grad_q", "grad_k", "grad_v"}), 1e-13, "grad_qkv");
    EXPECT_LT(index, 100);
  }
}

// The last 1, 3 or all 9 tokens of a causal sequence, whatever the dtype.
TEST(AttentionTest, CachedIsTheEndOfTheWhole) {
  const Case c{{9}, 4, 2, 6, /*causal=*/true, 0};
  const std::vector<double> qkv = Normal(c.tokens() * c.columns(), 5);
  const Result expected = Naive(c, qkv, std::vector<double>(c.tokens() * c.heads * c.head_dim));
  KernelRegistry registry;
  RegisterCpuKernels(registry);
  const auto device = *Device::Create({.num_threads = 2, .kernels = &registry});
  const auto stream = device->NewStream();
  for (const auto& [dtype, tolerance] :
       {std::pair{DType::kFloat64, 1e-13}, {DType::kFloat32, 2e-6}, {DType::kBFloat16, 4e-2}}) {
    TensorArena arena(*device);
    ExecContext ctx{.device = *device, .stream = *stream, .arena = &arena};
    const TensorView wide = UploadNew<double>(ctx, qkv, {c.tokens(), c.columns()});
    const TensorView all = ctx.New(dtype, wide.shape());
    Launch(ctx, OpId::kCopyCast, DType::kFloat64, CopyCastArgs{.in = wide, .out = all});
    const auto heads = [&](int64_t first, int64_t count) {
      const TensorView columns = all.Columns(first * c.head_dim, count * c.head_dim);
      return Reshape(ctx, {.value = columns}, {c.tokens(), count, c.head_dim}).value;
    };
    for (const int64_t asked : {1, 3, 9}) {
      const TensorView out =
          CachedAttention(ctx, heads(0, c.heads).Rows(c.tokens() - asked, asked),
                          heads(c.heads, c.kv_heads), heads(c.heads + c.kv_heads, c.kv_heads));
      const TensorView result = ctx.New(DType::kFloat64, out.shape());
      Launch(ctx, OpId::kCopyCast, dtype, CopyCastArgs{.in = out, .out = result});
      const std::vector<double> got = HostRead<double>(ctx, result);
      const size_t first = expected.out.size() - got.size();
      for (size_t i = 0; i < got.size(); ++i) {
        EXPECT_NEAR(got[i], expected.out[first + i], tolerance) << Name(dtype) << " at " << i;
      }
    }
  }
}

void AttendWithTooFewSeqlens() {
  KernelRegistry registry;
  RegisterCpuKernels(registry);
  DeviceOptions options;
  options.kernels = &registry;
  auto device = Device::Create(options);
  auto stream = (*device)->NewStream();
  TensorArena arena(**device);
  ExecContext ctx{.device = **device, .stream = *stream, .arena = &arena};
  const Var x{.value = ctx.New(DType::kFloat32, {4, 1, 8})};
  VarlenAttention(ctx, x, x, x, {0, 3}, {});
}

TEST(AttentionDeathTest, SeqlensMustCoverTheTokens) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(AttendWithTooFewSeqlens(), "3 vs 4");
}

}  // namespace
}  // namespace omni
