// Attention over a pack that lies on several ranks, and the same on one: what tests of ring and
// shared attention compare.
#pragma once

#include <array>

#include "runtime/ops/attention.h"
#include "tests/parallel/ops/op_ranks.h"

namespace omni::parallel {

inline std::vector<int32_t> Cumulated(const std::vector<int32_t>& lengths) {
  std::vector<int32_t> cu = {0};
  for (const int32_t length : lengths) cu.push_back(cu.back() + length);
  return cu;
}

struct AttentionProblem {
  std::vector<int32_t> lengths;
  int64_t heads, kv_heads, head_dim;
  bool causal;

  std::vector<int32_t> cu_seqlens() const { return Cumulated(lengths); }
  int64_t num_tokens() const { return cu_seqlens().back(); }
};

inline std::ostream& operator<<(std::ostream& out, const AttentionProblem& p) {
  out << p.heads << "/" << p.kv_heads << " heads of " << p.head_dim
      << (p.causal ? ", causal," : ",");
  for (const int32_t length : p.lengths) out << " " << length;
  return out;
}

struct AttentionTensors {
  Values q, k, v, grad_out;  // inputs
  Values out, grad_q, grad_k, grad_v;
};

inline AttentionTensors MakeInputs(const AttentionProblem& p, DType dtype) {
  const int64_t tokens = p.num_tokens(), wide = p.heads * p.head_dim,
                narrow = p.kv_heads * p.head_dim;
  return {.q = Held(Random(tokens * wide, 1), dtype),
          .k = Held(Random(tokens * narrow, 2), dtype),
          .v = Held(Random(tokens * narrow, 3), dtype),
          .grad_out = Held(Random(tokens * wide, 4), dtype)};
}

// Rows `tokens` of a table `width` wide.
inline Values Take(const Values& all, absl::Span<const int32_t> tokens, int64_t width) {
  Values taken;
  for (const int32_t token : tokens) {
    taken.insert(taken.end(), all.begin() + token * width, all.begin() + (token + 1) * width);
  }
  return taken;
}
inline void Place(const Values& rows, absl::Span<const int32_t> tokens, int64_t width,
                  Values& all) {
  ASSERT_EQ(rows.size(), tokens.size() * width);
  for (size_t i = 0; i < tokens.size(); ++i) {
    std::copy_n(rows.begin() + i * width, width, all.begin() + tokens[i] * width);
  }
}

using Attention = std::function<Var(OpRank&, const Var& q, const Var& k, const Var& v)>;

// What this rank gets for its tokens; `wants`: of q, k and v.
inline AttentionTensors RunOn(OpRank& rank, const AttentionProblem& p,
                              const AttentionTensors& inputs, absl::Span<const int32_t> tokens,
                              const Attention& attention, bool strided,
                              const std::array<bool, 3>& wants = {true, true, true}) {
  const int64_t count = static_cast<int64_t>(tokens.size());
  const auto input = [&](const Values& all, int64_t heads, bool wants_grad) {
    const Values own = Take(all, tokens, heads * p.head_dim);
    const TensorView view = strided ? rank.UploadStrided(own, {count, heads, p.head_dim})
                                    : rank.Upload(own, {count, heads, p.head_dim});
    return rank.tape().Input(view, wants_grad);
  };
  const Var q = input(inputs.q, p.heads, wants[0]), k = input(inputs.k, p.kv_heads, wants[1]),
            v = input(inputs.v, p.kv_heads, wants[2]);
  const Var out = attention(rank, q, k, v);
  rank.Backward(out, rank.Upload(Take(inputs.grad_out, tokens, p.heads * p.head_dim),
                                 {count, p.heads, p.head_dim}));
  return {.out = rank.Read(out.value),
          .grad_q = rank.GradOf(q),
          .grad_k = rank.GradOf(k),
          .grad_v = rank.GradOf(v)};
}

inline std::vector<int32_t> AllTokens(const AttentionProblem& p) {
  std::vector<int32_t> tokens(p.num_tokens());
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i);
  return tokens;
}

inline AttentionTensors OneRank(const AttentionProblem& p, const AttentionTensors& inputs,
                                DType dtype) {
  return OnRanks<AttentionTensors>({.size = 1, .dtype = dtype}, [&](OpRank& rank) {
    return RunOn(
        rank, p, inputs, AllTokens(p),
        [&](OpRank& r, const Var& q, const Var& k, const Var& v) {
          return VarlenAttention(r.ctx, q, k, v, p.cu_seqlens(), {.causal = p.causal});
        },
        false);
  })[0];
}

inline void ExpectSame(const AttentionTensors& found, const AttentionTensors& expected,
                       double forward, double backward) {
  ExpectClose(found.out, expected.out, forward, "out");
  ExpectClose(found.grad_q, expected.grad_q, backward, "grad_q");
  ExpectClose(found.grad_k, expected.grad_k, backward, "grad_k");
  ExpectClose(found.grad_v, expected.grad_v, backward, "grad_v");
}

}  // namespace omni::parallel
