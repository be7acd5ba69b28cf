#include "runtime/ops/norm.h"

#include "runtime/device/args/norm.h"
#include "runtime/ops/op_helpers.h"

namespace omni {
namespace {

struct Kind {
  bool is_layer_norm;
  const char* name;
  OpId forward, backward;
};
constexpr Kind kRms = {false, "rms_norm", OpId::kRmsNormForward, OpId::kRmsNormBackward};
constexpr Kind kLayer = {true, "layer_norm", OpId::kLayerNormForward, OpId::kLayerNormBackward};

// With a branch: {sum, normed}; without: {normed}. The weight gradient comes with the input's,
// in one pass over the rows.
std::vector<Var> Normalize(ExecContext& ctx, const Kind& kind, const Var& x_TH,
                           const Var* branch_TH, const Weight& weight_H, const Weight* bias_H,
                           float eps) {
  const TensorView& x = x_TH.value;
  OMNI_CHECK(x.num_dims == 2 || x.num_dims == 3);
  CheckWeight(weight_H, {x.size(-1)}, x.dtype);
  if (bias_H != nullptr) CheckWeight(*bias_H, {x.size(-1)}, x.dtype);
  NormForwardArgs args;
  args.x_TH = x;
  args.weight_H = weight_H.value;
  if (bias_H != nullptr) args.bias_H = bias_H->value;
  args.eps = eps;
  std::vector<Var> inputs = {x_TH};
  std::vector<TensorView> outputs;
  if (branch_TH != nullptr) {
    OMNI_CHECK(branch_TH->value.shape() == x.shape());
    OMNI_CHECK(branch_TH->value.dtype == x.dtype);
    args.branch_TH = branch_TH->value;
    args.sum_TH = ctx.New(x.dtype, x.shape());
    inputs.push_back(*branch_TH);
    outputs.push_back(args.sum_TH);
  }
  args.y_TH = ctx.New(x.dtype, x.shape());
  outputs.push_back(args.y_TH);
  const bool trains = weight_H.trainable() || Trains(bias_H);
  const bool recording = Recording(ctx, inputs, trains);
  if (recording) {
    const int64_t rows = x.num_dims == 3 ? x.size(0) * x.size(1) : x.size(0);
    args.rstd_T = ctx.New(AccumulationType(x.dtype), {rows});
    if (kind.is_layer_norm) args.mean_T = ctx.New(AccumulationType(x.dtype), {rows});
  }
  Launch(ctx, kind.forward, x.dtype, args);
  if (!recording) {
    std::vector<Var> vars;
    for (const TensorView& output : outputs) vars.push_back({.value = output});
    return vars;
  }

  NormBackwardArgs grads;
  grads.x_TH = branch_TH == nullptr ? x : args.sum_TH;
  grads.weight_H = args.weight_H;
  grads.mean_T = args.mean_T;
  grads.rstd_T = args.rstd_T;
  grads.grad_weight_H = weight_H.grad;
  if (bias_H != nullptr) grads.grad_bias_H = bias_H->grad;
  ctx.tape->Save("norm_input", NeededBy::kBackwardInput, grads.x_TH);
  ctx.tape->Save("norm_rstd", NeededBy::kBackwardInput, grads.rstd_T);
  if (kind.is_layer_norm) ctx.tape->Save("norm_mean", NeededBy::kBackwardInput, grads.mean_T);
  const int num_inputs = static_cast<int>(inputs.size());
  const auto backward = [grads, num_inputs, op = kind.backward](Tape::BackwardContext& back) {
    NormBackwardArgs now = grads;
    now.grad_y_TH = back.grad_output(num_inputs - 1);
    if (num_inputs == 2) now.grad_sum_TH = back.grad_output(0);
    bool wanted = false;
    for (int i = 0; i < num_inputs; ++i) wanted |= back.needs_grad_input(i);
    TensorView grad_x = now.grad_sum_TH;  // all there is if nobody used the normed output
    if (!now.grad_y_TH.empty()) {
      grad_x = wanted ? back.ctx.New(now.x_TH.dtype, now.x_TH.shape()) : TensorView{};
      now.grad_x_TH = grad_x;
      Launch(back.ctx, op, now.x_TH.dtype, now);
    }
    for (int i = 0; i < num_inputs; ++i)
      if (back.needs_grad_input(i)) back.set_grad_input(i, grad_x);
  };
  return ctx.tape->Record(kind.name, inputs, outputs, trains, backward);
}

}  // namespace

Var RmsNorm(ExecContext& ctx, const Var& x_TH, const Weight& weight_H, float eps) {
  return Normalize(ctx, kRms, x_TH, nullptr, weight_H, nullptr, eps)[0];
}

Var LayerNorm(ExecContext& ctx, const Var& x_TH, const Weight& weight_H, const Weight* bias_H,
              float eps) {
  return Normalize(ctx, kLayer, x_TH, nullptr, weight_H, bias_H, eps)[0];
}

AddNormResult AddRmsNorm(ExecContext& ctx, const Var& x_TH, const Var& branch_TH,
                         const Weight& weight_H, float eps) {
  const auto vars = Normalize(ctx, kRms, x_TH, &branch_TH, weight_H, nullptr, eps);
  return {.sum_TH = vars[0], .normed_TH = vars[1]};
}

AddNormResult AddLayerNorm(ExecContext& ctx, const Var& x_TH, const Var& branch_TH,
                           const Weight& weight_H, const Weight* bias_H, float eps) {
  const auto vars = Normalize(ctx, kLayer, x_TH, &branch_TH, weight_H, bias_H, eps);
  return {.sum_TH = vars[0], .normed_TH = vars[1]};
}

}  // namespace omni
