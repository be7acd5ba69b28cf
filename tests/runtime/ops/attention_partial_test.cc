// The kernels for attention over some of the keys, every variant of the table, against plain loops
// over the pairs of query and key that all calls together see.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "runtime/base/rng.h"
#include "runtime/device/args/attention.h"
#include "runtime/device/kernel_table.h"

namespace omni {
namespace {

struct Segment {
  int32_t query, num_queries, key, num_keys;
};

// Queries over all keys that any call shows them; no pair is in two calls.
struct Case {
  const char* name;
  int64_t num_queries, num_keys, heads, kv_heads, head_dim;
  struct Call {
    std::vector<Segment> segments;
    AttentionMask mask;
  };
  std::vector<Call> calls;

  bool Sees(int64_t i, int64_t j) const {
    for (const Call& call : calls) {
      for (const Segment& s : call.segments) {
        if (i < s.query || i >= s.query + s.num_queries || j < s.key || j >= s.key + s.num_keys) {
          continue;
        }
        const int64_t at = i - s.query + s.num_keys - s.num_queries, key = j - s.key;
        if ((call.mask.causal == 0 || key <= at) &&
            (call.mask.window == 0 || std::abs(at - key) < call.mask.window)) {
          return true;
        }
      }
    }
    return false;
  }
};

std::vector<Case> Cases() {
  return {
      // As in a ring: its own keys under the mask, then others before it, then some of both.
      {"zigzag",
       60,
       60,
       4,
       2,
       24,
       {{{{0, 25, 0, 25}, {25, 35, 25, 35}}, {1, 0}},
        {{{0, 25, 25, 13}, {25, 35, 0, 20}}, {0, 0}},
        {{{1, 24, 38, 22}}, {0, 0}}}},
      {"two segments", 40, 90, 3, 1, 17, {{{{0, 12, 5, 70}, {12, 28, 75, 15}}, {0, 0}}}},
      {"causal, more keys than queries",
       30,
       80,
       2,
       2,
       8,
       {{{{0, 11, 0, 50}, {11, 19, 50, 30}}, {1, 0}}}},
      {"windows", 30, 90, 6, 2, 8, {{{{0, 30, 0, 60}}, {1, 9}}, {{{0, 30, 60, 30}}, {0, 6}}}},
      // Cut into several tasks, in either direction.
      {"long", 700, 900, 2, 1, 32, {{{{0, 700, 0, 900}}, {1, 0}}}},
      {"few queries",
       3,
       1500,
       4,
       1,
       64,
       {{{{0, 3, 0, 1300}}, {0, 0}}, {{{1, 2, 1300, 200}}, {0, 0}}}},
      {"few keys", 1500, 3, 1, 1, 64, {{{{0, 1500, 0, 2}}, {0, 0}}, {{{700, 800, 2, 1}}, {0, 0}}}},
      {"empty segments",
       5,
       5,
       1,
       1,
       4,
       {{{{0, 5, 0, 3}}, {0, 0}}, {{{2, 0, 0, 5}, {3, 2, 4, 0}}, {0, 0}}, {{}, {0, 0}}}},
      // Rows 4 to 6 are in no segment.
      {"rows left out", 7, 9, 2, 1, 5, {{{{0, 4, 2, 3}}, {0, 0}}}},
  };
}

std::vector<double> Normal(int64_t count, uint64_t stream) {
  CounterRng rng(11, stream);
  std::vector<double> values(count);
  for (double& value : values) value = rng.NextNormal();
  return values;
}

struct Result {
  std::vector<double> out, lse, grad_q, grad_k, grad_v;
};

// Gradients are added to `start`; out and lse of rows that see nothing stay what they are there.
// `rounds`: backward reads `out` in bf16.
Result Naive(const Case& c, const std::vector<double>& q, const std::vector<double>& k,
             const std::vector<double>& v, const std::vector<double>& grad, const Result& start,
             bool rounds) {
  const int64_t dim = c.head_dim;
  const double scale = 0.3;
  Result result = start;
  for (int64_t i = 0; i < c.num_queries; ++i) {
    for (int64_t n = 0; n < c.heads; ++n) {
      const int64_t h = n / (c.heads / c.kv_heads), row = i * c.heads + n;
      const double* query = &q[row * dim];
      std::vector<double> p(c.num_keys, 0.0);
      double sum = 0, delta = 0;
      for (int64_t j = 0; j < c.num_keys; ++j) {
        if (!c.Sees(i, j)) continue;
        double score = 0;
        for (int64_t d = 0; d < dim; ++d) score += query[d] * k[(j * c.kv_heads + h) * dim + d];
        sum += p[j] = std::exp(scale * score);
      }
      if (sum == 0) continue;
      result.lse[row] = std::log(sum);
      for (int64_t d = 0; d < dim; ++d) {
        double mixed = 0;
        for (int64_t j = 0; j < c.num_keys; ++j) {
          mixed += p[j] / sum * v[(j * c.kv_heads + h) * dim + d];
        }
        result.out[row * dim + d] = mixed;
        const double kept =
            rounds ? static_cast<float>(BFloat16(static_cast<float>(mixed))) : mixed;
        delta += kept * grad[row * dim + d];
      }
      for (int64_t j = 0; j < c.num_keys; ++j) {
        const int64_t at = (j * c.kv_heads + h) * dim;
        const double probability = p[j] / sum;
        double dp = 0;
        for (int64_t d = 0; d < dim; ++d) dp += grad[row * dim + d] * v[at + d];
        const double ds = scale * probability * (dp - delta);
        for (int64_t d = 0; d < dim; ++d) {
          result.grad_v[at + d] += probability * grad[row * dim + d];
          result.grad_q[row * dim + d] += ds * k[at + d];
          result.grad_k[at + d] += ds * query[d];
        }
      }
    }
  }
  return result;
}

void Run(const KernelEntry& entry, const void* args) {
  std::vector<std::byte> scratch(entry.scratch_bytes(args) + 64, std::byte{0xff});
  const KernelContext context{
      .stream = nullptr,
      .scratch = scratch.data(),
      .scratch_bytes = static_cast<int64_t>(scratch.size()) - 64,
      .pool = nullptr,
      .parallel_for = [](void*, int64_t num_tasks, void (*body)(void*, int64_t), void* arg) {
        for (int64_t task = 0; task < num_tasks; ++task) body(arg, task);
      }};
  ASSERT_EQ(entry.run(args, &context), 0);
  for (size_t i = scratch.size() - 64; i < scratch.size(); ++i) {
    ASSERT_EQ(scratch[i], std::byte{0xff}) << "wrote past its scratch";
  }
}

// S: type of q, k, v; C: of results and gradients.
template <typename S, typename C>
Result RunKernels(const Case& c, const KernelEntry& forward, const KernelEntry& backward,
                  const std::vector<double>& q, const std::vector<double>& k,
                  const std::vector<double>& v, const std::vector<double>& grad,
                  const Result& start) {
  const auto as = [](const std::vector<double>& values, auto type) {
    std::vector<decltype(type)> typed;
    for (const double value : values) {
      if constexpr (std::is_same_v<decltype(type), double>)
        typed.push_back(value);
      else
        typed.push_back(decltype(type)(static_cast<float>(value)));
    }
    return typed;
  };
  const auto view = [](auto& values, std::initializer_list<int64_t> sizes) {
    return TensorView::Dense(values.data(), DTypeOf<std::decay_t<decltype(values[0])>>::value,
                             DeviceKind::kCpu, sizes);
  };
  auto typed_q = as(q, S()), typed_k = as(k, S()), typed_v = as(v, S()), typed_grad = as(grad, S());
  auto out = as(start.out, C()), lse = as(start.lse, C());
  const auto queries = {c.num_queries, c.heads, c.head_dim};
  const auto keys = {c.num_keys, c.kv_heads, c.head_dim};
  std::vector<std::vector<int32_t>> segments;
  for (const Case::Call& call : c.calls) {
    segments.emplace_back();
    for (const Segment& s : call.segments) {
      for (const int32_t x : {s.query, s.num_queries, s.key, s.num_keys}) {
        segments.back().push_back(x);
      }
    }
  }
  for (size_t i = 0; i < c.calls.size(); ++i) {
    AttentionPartialForwardArgs args;
    args.q_TND = view(typed_q, queries);
    args.k_TKD = view(typed_k, keys);
    args.v_TKD = view(typed_v, keys);
    args.segments = view(segments[i], {static_cast<int64_t>(segments[i].size()) / 4, 4});
    args.out_TND = view(out, queries);
    args.lse_TN = view(lse, {c.num_queries, c.heads});
    args.scale = 0.3;
    args.mask = c.calls[i].mask;
    args.continues = i > 0 ? 1 : 0;
    Run(forward, &args);
  }
  std::vector<double> final_out(out.begin(), out.end());
  auto typed_out = as(final_out, S());
  auto grad_q = as(start.grad_q, C()), grad_k = as(start.grad_k, C()),
       grad_v = as(start.grad_v, C());
  for (size_t i = 0; i < c.calls.size(); ++i) {
    AttentionPartialBackwardArgs args;
    args.q_TND = view(typed_q, queries);
    args.k_TKD = view(typed_k, keys);
    args.v_TKD = view(typed_v, keys);
    args.segments = view(segments[i], {static_cast<int64_t>(segments[i].size()) / 4, 4});
    args.out_TND = view(typed_out, queries);
    args.lse_TN = view(lse, {c.num_queries, c.heads});
    args.grad_out_TND = view(typed_grad, queries);
    args.grad_q_TND = view(grad_q, queries);
    args.grad_k_TKD = view(grad_k, keys);
    args.grad_v_TKD = view(grad_v, keys);
    args.scale = 0.3;
    args.mask = c.calls[i].mask;
    // In two calls what may be done in one: either may be unwanted.
    if (i % 2 == 1) {
      AttentionPartialBackwardArgs one = args;
      one.grad_k_TKD = one.grad_v_TKD = TensorView{};
      Run(backward, &one);
      args.grad_q_TND = TensorView{};
    }
    Run(backward, &args);
  }
  const auto wide = [](const auto& values) {
    return std::vector<double>(values.begin(), values.end());
  };
  return {final_out, wide(lse), wide(grad_q), wide(grad_k), wide(grad_v)};
}

void ExpectNear(const std::vector<double>& got, const std::vector<double>& want, double tolerance,
                const char* what) {
  ASSERT_EQ(got.size(), want.size());
  double worst = 0.0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double error = std::abs(got[i] - want[i]);
    worst = std::isnan(error) ? INFINITY : std::max(worst, error / (1.0 + std::abs(want[i])));
    if (std::isinf(worst)) break;
  }
  EXPECT_LE(worst, tolerance) << what;
}

TEST(AttentionPartialTest, CallsTogetherEqualPlainLoops) {
  KernelRegistry registry;
  RegisterCpuKernels(registry);
  int32_t num_variants = 0;
  for (const KernelEntry& forward : registry.entries()) {
    if (forward.op != OpId::kAttentionPartialForward) continue;
    ++num_variants;
    const std::string twin = absl::StrReplaceAll(forward.name, {{"_fwd_", "_bwd_"}});
    const auto backward =
        std::find_if(registry.entries().begin(), registry.entries().end(),
                     [&](const KernelEntry& entry) { return entry.name == twin; });
    ASSERT_NE(backward, registry.entries().end()) << twin;
    for (const Case& c : Cases()) {
      SCOPED_TRACE(absl::StrCat(forward.name, ": ", c.name));
      const int64_t queries = c.num_queries * c.heads * c.head_dim;
      const int64_t keys = c.num_keys * c.kv_heads * c.head_dim;
      std::vector<double> q = Normal(queries, 1), k = Normal(keys, 2), v = Normal(keys, 3),
                          grad = Normal(queries, 4);
      const Result start{Normal(queries, 5), Normal(c.num_queries * c.heads, 6), Normal(queries, 7),
                         Normal(keys, 8), Normal(keys, 9)};
      if (forward.dtype == DType::kBFloat16) {  // the same inputs for both
        for (auto* values : {&q, &k, &v, &grad}) {
          for (double& x : *values) x = static_cast<float>(BFloat16(static_cast<float>(x)));
        }
      }
      const Result want = Naive(c, q, k, v, grad, start, forward.dtype == DType::kBFloat16);
      const auto compare = [&](const Result& got, double results, double gradients) {
        ExpectNear(got.out, want.out, results, "out");
        ExpectNear(got.lse, want.lse, results, "lse");
        ExpectNear(got.grad_q, want.grad_q, gradients, "grad_q");
        ExpectNear(got.grad_k, want.grad_k, gradients, "grad_k");
        ExpectNear(got.grad_v, want.grad_v, gradients, "grad_v");
      };
      switch (forward.dtype) {
        case DType::kFloat64:
          compare(RunKernels<double, double>(c, forward, *backward, q, k, v, grad, start), 1e-13,
                  1e-12);
          break;
        case DType::kFloat32:
          compare(RunKernels<float, float>(c, forward, *backward, q, k, v, grad, start), 5e-6,
                  5e-5);
          break;
        default:  // `out` may round to the other neighbour, which is coarse
          compare(RunKernels<BFloat16, float>(c, forward, *backward, q, k, v, grad, start), 5e-6,
                  1e-2);
      }
    }
  }
  EXPECT_GE(num_variants, 3);
}

}  // namespace
}  // namespace omni
