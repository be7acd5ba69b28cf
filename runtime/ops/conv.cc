#include "runtime/ops/conv.h"

#include "runtime/device/args/conv.h"
#include "runtime/ops/linear.h"
#include "runtime/ops/op_helpers.h"

namespace omni {
namespace {

TensorView UploadSeqlens(ExecContext& ctx, absl::Span<const int32_t> cu_seqlens) {
  return UploadNew<int32_t>(ctx, cu_seqlens, {static_cast<int64_t>(cu_seqlens.size())});
}

}  // namespace

std::vector<int32_t> Conv1dSeqlens(absl::Span<const int32_t> cu_seqlens, int32_t kernel,
                                   const Conv1dOptions& options) {
  OMNI_CHECK(kernel > 0 && options.stride > 0 && options.padding >= 0);
  std::vector<int32_t> cu = {0};
  for (size_t s = 0; s + 1 < cu_seqlens.size(); ++s) {
    const int32_t length = cu_seqlens[s + 1] - cu_seqlens[s];
    const int32_t room = length + 2 * options.padding - kernel;
    cu.push_back(cu.back() + (length == 0 || room < 0 ? 0 : room / options.stride + 1));
  }
  return cu;
}

Var Conv1d(ExecContext& ctx, const Var& x_FC, absl::Span<const int32_t> cu_seqlens,
           const Weight& weight_OCk, const Weight* bias_O, const Conv1dOptions& options) {
  const TensorView& x = x_FC.value;
  CheckRank(x, 2);
  CheckSeqlens(cu_seqlens, x.size(0));
  CheckRank(weight_OCk.value, 3);
  const int64_t outs = weight_OCk.value.size(0), kernel = weight_OCk.value.size(2);
  CheckWeight(weight_OCk, {outs, x.size(1), kernel}, x.dtype);
  OMNI_CHECK(weight_OCk.value.is_dense());
  if (bias_O != nullptr) CheckWeight(*bias_O, {outs}, x.dtype);
  const std::vector<int32_t> cu_outlens =
      Conv1dSeqlens(cu_seqlens, static_cast<int32_t>(kernel), options);
  Conv1dForwardArgs args;
  args.x_FC = x;
  args.cu_seqlens = UploadSeqlens(ctx, cu_seqlens);
  args.cu_outlens = UploadSeqlens(ctx, cu_outlens);
  args.weight_OCk = weight_OCk.value;
  if (bias_O != nullptr) args.bias_O = bias_O->value;
  args.y_FO = ctx.New(x.dtype, {cu_outlens.back(), outs});
  args.stride = options.stride;
  args.padding = options.padding;
  Launch(ctx, OpId::kConv1dForward, x.dtype, args);

  const Var inputs[] = {x_FC};
  const bool trains = weight_OCk.trainable() || Trains(bias_O);
  if (!Recording(ctx, inputs, trains)) return {.value = args.y_FO};
  for (const NeededBy when : {NeededBy::kBackwardInput, NeededBy::kWeightGrad}) {
    ctx.tape->Save("conv1d_cu_seqlens", when, args.cu_seqlens);
    ctx.tape->Save("conv1d_cu_outlens", when, args.cu_outlens);
  }
  if (weight_OCk.trainable()) ctx.tape->Save("conv1d_input", NeededBy::kWeightGrad, x);
  Conv1dBackwardArgs grads;
  grads.cu_seqlens = args.cu_seqlens;
  grads.cu_outlens = args.cu_outlens;
  grads.weight_OCk = args.weight_OCk;
  grads.stride = args.stride;
  grads.padding = args.padding;
  const auto backward_input = [grads](Tape::BackwardContext& back) {
    if (!back.needs_grad_input(0)) return;
    Conv1dBackwardArgs now = grads;
    now.grad_y_FO = back.grad_output(0);
    now.grad_x_FC = back.new_grad_input(0);
    Launch(back.ctx, OpId::kConv1dBackward, now.weight_OCk.dtype, now);
  };
  grads.x_FC = x;
  grads.grad_weight_OCk = weight_OCk.grad;
  if (bias_O != nullptr) grads.grad_bias_O = bias_O->grad;
  const auto weight_grad = [grads](Tape::BackwardContext& back) {
    Conv1dBackwardArgs now = grads;
    now.grad_y_FO = back.grad_output(0);
    Launch(back.ctx, OpId::kConv1dBackward, now.weight_OCk.dtype, now);
  };
  return ctx.tape->Record("conv1d", inputs, {&args.y_FO, 1}, trains, backward_input,
                          weight_grad)[0];
}

Var PatchEmbed(ExecContext& ctx, const Var& x_PI, const Weight& weight_OI, const Weight* bias_O) {
  return Linear(ctx, x_PI, weight_OI, bias_O);
}

TensorView NormalizePatches(ExecContext& ctx, const TensorView& patches_u8_PI, int32_t num_channels,
                            absl::Span<const float> mean, absl::Span<const float> std, DType to) {
  CheckRank(patches_u8_PI, 2);
  OMNI_CHECK(patches_u8_PI.dtype == DType::kUInt8);
  OMNI_CHECK(num_channels > 0 && num_channels <= kMaxPatchChannels);
  OMNI_CHECK_EQ(patches_u8_PI.size(1) % num_channels, 0);
  OMNI_CHECK_EQ(static_cast<int32_t>(mean.size()), num_channels);
  OMNI_CHECK_EQ(static_cast<int32_t>(std.size()), num_channels);
  PatchNormalizeArgs args;
  args.patches_PI = patches_u8_PI;
  args.y_PI = ctx.New(to, patches_u8_PI.shape());
  args.num_channels = num_channels;
  for (int32_t c = 0; c < num_channels; ++c) {
    args.mean[c] = mean[c];
    args.std[c] = std[c];
  }
  Launch(ctx, OpId::kPatchNormalize, to, args);
  return args.y_PI;
}

Var AvgPool1d(ExecContext& ctx, const Var& x_FH, absl::Span<const int32_t> cu_seqlens,
              int32_t kernel) {
  const TensorView& x = x_FH.value;
  CheckRank(x, 2);
  CheckSeqlens(cu_seqlens, x.size(0));
  const std::vector<int32_t> cu_outlens =
      Conv1dSeqlens(cu_seqlens, kernel, {.stride = kernel, .padding = 0});
  AvgPool1dForwardArgs args;
  args.x_FH = x;
  args.cu_seqlens = UploadSeqlens(ctx, cu_seqlens);
  args.cu_outlens = UploadSeqlens(ctx, cu_outlens);
  args.y_FH = ctx.New(x.dtype, {cu_outlens.back(), x.size(1)});
  args.kernel = kernel;
  Launch(ctx, OpId::kAvgPool1dForward, x.dtype, args);
  const Var inputs[] = {x_FH};
  if (!Recording(ctx, inputs, false)) return {.value = args.y_FH};
  ctx.tape->Save("avg_pool1d_cu_seqlens", NeededBy::kBackwardInput, args.cu_seqlens);
  ctx.tape->Save("avg_pool1d_cu_outlens", NeededBy::kBackwardInput, args.cu_outlens);
  const auto backward = [in = args.cu_seqlens, out = args.cu_outlens, kernel,
                         dtype = x.dtype](Tape::BackwardContext& back) {
    Launch(back.ctx, OpId::kAvgPool1dBackward, dtype,
           AvgPool1dBackwardArgs{.grad_y_FH = back.grad_output(0),
                                 .cu_seqlens = in,
                                 .cu_outlens = out,
                                 .grad_x_FH = back.new_grad_input(0),
                                 .kernel = kernel});
  };
  return ctx.tape->Record("avg_pool1d", inputs, {&args.y_FH, 1}, false, backward)[0];
}

}  // namespace omni
