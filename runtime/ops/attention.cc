#include "runtime/ops/attention.h"

#include <algorithm>
#include <cmath>

#include "runtime/device/args/attention.h"
#include "runtime/ops/op_helpers.h"

namespace omni {
namespace {

int32_t LongestOf(absl::Span<const int32_t> cu_seqlens) {
  int32_t longest = 0;
  for (size_t s = 0; s + 1 < cu_seqlens.size(); ++s)
    longest = std::max(longest, cu_seqlens[s + 1] - cu_seqlens[s]);
  return longest;
}

void CheckHeads(const TensorView& view, int64_t num_tokens, int64_t head_dim, DType dtype) {
  OMNI_CHECK_EQ(static_cast<int>(view.num_dims), 3);
  OMNI_CHECK_EQ(view.size(0), num_tokens);
  OMNI_CHECK_EQ(view.size(2), head_dim);
  OMNI_CHECK(view.stride(2) == 1 || head_dim == 1);
  OMNI_CHECK(view.dtype == dtype);
}

}  // namespace

Var VarlenAttention(ExecContext& ctx, const Var& q_TND, const Var& k_TKD, const Var& v_TKD,
                    absl::Span<const int32_t> cu_seqlens, const AttentionOptions& options) {
  const TensorView& q = q_TND.value;
  OMNI_CHECK_EQ(static_cast<int>(q.num_dims), 3);
  const int64_t num_tokens = q.size(0), num_heads = q.size(1), head_dim = q.size(2);
  CheckHeads(q, num_tokens, head_dim, q.dtype);
  CheckHeads(k_TKD.value, num_tokens, head_dim, q.dtype);
  CheckHeads(v_TKD.value, num_tokens, head_dim, q.dtype);
  const int64_t num_kv_heads = k_TKD.value.size(1);
  OMNI_CHECK_EQ(v_TKD.value.size(1), num_kv_heads);
  OMNI_CHECK(num_kv_heads > 0 && num_heads % num_kv_heads == 0);
  OMNI_CHECK_GE(options.window, 0);

  AttentionForwardArgs args;
  CheckSeqlens(cu_seqlens, num_tokens);
  args.max_seqlen = LongestOf(cu_seqlens);
  args.q_TND = q;
  args.k_TKD = k_TKD.value;
  args.v_TKD = v_TKD.value;
  // Copied to the device, where it lives as long as the op's other tensors: the caller's span
  // may be gone when the stream gets there.
  args.cu_seqlens = UploadNew<int32_t>(ctx, cu_seqlens, {static_cast<int64_t>(cu_seqlens.size())});
  args.out_TND = ctx.New(q.dtype, {num_tokens, num_heads, head_dim});
  args.scale = options.scale != 0.0f ? static_cast<double>(options.scale)
                                     : 1.0 / std::sqrt(static_cast<double>(head_dim));
  args.mask = {.causal = options.causal ? 1 : 0, .window = options.window};
  const Var inputs[] = {q_TND, k_TKD, v_TKD};
  const bool records = ctx.tape != nullptr && Tape::Records(inputs, false);
  if (records) {
    const DType statistics = q.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
    args.lse_TN = ctx.New(statistics, {num_tokens, num_heads});
  }
  Launch(ctx, OpId::kAttentionForward, q.dtype, args);
  if (!records) return {.value = args.out_TND};

  ctx.tape->Save("attention_q", NeededBy::kBackwardInput, args.q_TND);
  ctx.tape->Save("attention_k", NeededBy::kBackwardInput, args.k_TKD);
  ctx.tape->Save("attention_v", NeededBy::kBackwardInput, args.v_TKD);
  ctx.tape->Save("attention_cu_seqlens", NeededBy::kBackwardInput, args.cu_seqlens);
  ctx.tape->Save("attention_out", NeededBy::kBackwardInput, args.out_TND);
  ctx.tape->Save("attention_lse", NeededBy::kBackwardInput, args.lse_TN);
  const auto backward = [args](Tape::BackwardContext& back) {
    AttentionBackwardArgs grads;
    grads.grad_out_TND = back.grad_output(0);
    if (grads.grad_out_TND.empty()) return;
    grads.q_TND = args.q_TND;
    grads.k_TKD = args.k_TKD;
    grads.v_TKD = args.v_TKD;
    grads.cu_seqlens = args.cu_seqlens;
    grads.out_TND = args.out_TND;
    grads.lse_TN = args.lse_TN;
    if (back.needs_grad_input(0)) grads.grad_q_TND = back.new_grad_input(0);
    if (back.needs_grad_input(1)) grads.grad_k_TKD = back.new_grad_input(1);
    if (back.needs_grad_input(2)) grads.grad_v_TKD = back.new_grad_input(2);
    grads.scale = args.scale;
    grads.mask = args.mask;
    grads.max_seqlen = args.max_seqlen;
    Launch(back.ctx, OpId::kAttentionBackward, grads.q_TND.dtype, grads);
  };
  return ctx.tape->Record("attention", inputs, {&args.out_TND, 1}, false, backward)[0];
}

TensorView CachedAttention(ExecContext& ctx, const TensorView& q_TND, const TensorView& k_LKD,
                           const TensorView& v_LKD, float scale) {
  OMNI_CHECK_EQ(static_cast<int>(q_TND.num_dims), 3);
  const int64_t head_dim = q_TND.size(2);
  CheckHeads(q_TND, q_TND.size(0), head_dim, q_TND.dtype);
  CheckHeads(k_LKD, k_LKD.size(0), head_dim, q_TND.dtype);
  CheckHeads(v_LKD, k_LKD.size(0), head_dim, q_TND.dtype);
  OMNI_CHECK_LE(q_TND.size(0), k_LKD.size(0));
  OMNI_CHECK_EQ(k_LKD.size(1), v_LKD.size(1));
  OMNI_CHECK_EQ(q_TND.size(1) % k_LKD.size(1), 0);
  AttentionCachedArgs args;
  args.q_TND = q_TND;
  args.k_LKD = k_LKD;
  args.v_LKD = v_LKD;
  args.out_TND = ctx.New(q_TND.dtype, q_TND.shape());
  args.scale =
      scale != 0.0f ? static_cast<double>(scale) : 1.0 / std::sqrt(static_cast<double>(head_dim));
  Launch(ctx, OpId::kAttentionCached, q_TND.dtype, args);
  return args.out_TND;
}

}  // namespace omni
