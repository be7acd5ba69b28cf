#include "runtime/ops/recompute.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "runtime/ops/copy.h"
#include "runtime/ops/lora.h"
#include "runtime/ops/op_helpers.h"

namespace omni {
namespace {

// Hands input i's gradient on the inner tape to the outer one.
void PassGrad(Tape::BackwardContext& back, int i, Tape& inner, const Var& inner_input) {
  const TensorView grad = inner.GradOf(inner_input);
  if (grad.empty()) return;  // nothing depended on it
  const PageRun run = inner.Disown(inner_input);
  if (run.data != nullptr) {
    back.ctx.tape->Adopt(run);
    back.set_grad_input(i, grad);
    return;
  }
  CopyTo(back.ctx, grad, back.new_grad_input(i));
}

}  // namespace

std::vector<Var> Recompute(ExecContext& ctx, absl::Span<const Var> inputs, bool trains_weights,
                           const RecomputedFn& fn) {
  if (!Recording(ctx, inputs, trains_weights)) return fn(ctx, inputs);
  std::vector<Var> plain_inputs;
  for (const Var& input : inputs) {
    plain_inputs.push_back({.value = input.value});
    ctx.tape->Save("recompute_input", NeededBy::kBackwardInput, input.value);
  }
  std::vector<TensorView> outputs;
  {
    TensorArena arena(ctx.device);
    ExecContext untaped{
        .device = ctx.device, .stream = ctx.stream, .tape = nullptr, .arena = &arena};
    for (const Var& output : fn(untaped, plain_inputs)) {
      const PageRun run = arena.Disown(output.value);
      if (run.data != nullptr) ctx.tape->Adopt(run);
      outputs.push_back(output.value);
    }
  }
  const auto inner = std::make_shared<std::unique_ptr<Tape>>();  // between the two halves
  const auto backward = [fn, plain_inputs, inner, trains_weights,
                         num_outputs = outputs.size()](Tape::BackwardContext& back) {
    *inner = std::make_unique<Tape>(back.ctx.device);
    Tape& tape = **inner;
    ExecContext taped{
        .device = back.ctx.device, .stream = back.ctx.stream, .tape = &tape, .arena = nullptr};
    std::vector<Var> inner_inputs;
    for (size_t i = 0; i < plain_inputs.size(); ++i) {
      inner_inputs.push_back(
          tape.Input(plain_inputs[i].value, back.needs_grad_input(static_cast<int>(i))));
    }
    const std::vector<Var> again = fn(taped, inner_inputs);
    OMNI_CHECK_EQ(again.size(), num_outputs);
    std::vector<Tape::RootGrad> roots;
    for (size_t i = 0; i < again.size(); ++i) {
      const TensorView grad = back.grad_output(static_cast<int>(i));
      if (!grad.empty()) roots.push_back({again[i], grad});
    }
    const bool at_once = back.weights_follow() || !trains_weights;
    if (at_once) {
      tape.Backward(taped, roots);
    } else {
      tape.BackwardInput(taped, roots);
    }
    for (size_t i = 0; i < inner_inputs.size(); ++i) {
      if (inner_inputs[i].needs_grad()) PassGrad(back, static_cast<int>(i), tape, inner_inputs[i]);
    }
    if (at_once) inner->reset();
  };
  const auto weight_grad = [inner](Tape::BackwardContext& back) {
    if (*inner == nullptr) return;
    (*inner)->WeightGrad(back.ctx);
    inner->reset();
  };
  if (trains_weights) {
    for (const Var& input : inputs) {
      ctx.tape->Save("recompute_input", NeededBy::kWeightGrad, input.value);
    }
  }
  return ctx.tape->Record("recompute", inputs, outputs, trains_weights, backward, weight_grad);
}

bool AnyTrains(absl::Span<const Weight* const> weights) {
  return std::any_of(weights.begin(), weights.end(), [](const Weight* weight) {
    if (weight == nullptr) return false;
    const LoraAdapter* lora = weight->lora;
    return weight->trainable() || (lora != nullptr && (Trains(&lora->a) || Trains(&lora->b)));
  });
}

}  // namespace omni
