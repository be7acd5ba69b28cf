#include "runtime/ops/tape.h"

#include <algorithm>

#include "runtime/device/args/elementwise.h"
#include "runtime/ops/tape_memory.h"

namespace omni {
namespace {

struct Node {
  const char* name;
  std::vector<Var> inputs;
  std::vector<int32_t> outputs;  // slots
  Tape::BackwardFn backward_input, weight_grad;
  std::vector<TensorView> output_grads;  // kept between the two halves of a cut backward
};

}  // namespace

struct Tape::Impl {
  explicit Impl(Device& device) : memory(device) {}

  TapeMemory memory;
  std::vector<Node> nodes;
  std::vector<TensorView> grads;  // by slot; empty: nothing yet
  bool weights_follow = false;    // on the way back
};

TensorView Tape::BackwardContext::grad_output(int i) const {
  return tape_.impl_->nodes[node_].output_grads[i];
}

bool Tape::BackwardContext::needs_grad_input(int i) const {
  return tape_.impl_->nodes[node_].inputs[i].needs_grad();
}

bool Tape::BackwardContext::weights_follow() const { return tape_.impl_->weights_follow; }

TensorView Tape::BackwardContext::new_grad_input(int i) {
  const Var& input = tape_.impl_->nodes[node_].inputs[i];
  const TensorView grad = tape_.New(input.value.dtype, input.value.shape());
  set_grad_input(i, grad);
  return grad;
}

void Tape::BackwardContext::set_grad_input(int i, const TensorView& grad) {
  OMNI_CHECK(needs_grad_input(i));
  const Var& input = tape_.impl_->nodes[node_].inputs[i];
  OMNI_CHECK(grad.shape() == input.value.shape());
  pending_.push_back({input.slot, grad});
}

Tape::Tape(Device& device) : impl_(std::make_unique<Impl>(device)) {}
Tape::~Tape() { Reset(); }

Var Tape::Input(const TensorView& value, bool wants_grad) {
  Var var{value, -1};
  if (wants_grad) {
    var.slot = static_cast<int32_t>(impl_->grads.size());
    impl_->grads.emplace_back();
  }
  return var;
}

TensorView Tape::New(DType dtype, absl::Span<const int64_t> sizes) {
  return impl_->memory.New(dtype, sizes);
}

void Tape::Adopt(PageRun run) { impl_->memory.Own(run); }

PageRun Tape::Disown(const Var& input) {
  TensorView& grad = impl_->grads[input.slot];
  const PageRun run = impl_->memory.Disown(grad);
  if (run.data != nullptr) grad = TensorView{};
  return run;
}

void Tape::Save(const char*, NeededBy needed_by, const TensorView& view) {
  TapeMemory::Block* block = impl_->memory.Find(view.data);
  if (block == nullptr) return;
  (needed_by == NeededBy::kBackwardInput ? block->needed_by_b : block->needed_by_w) = true;
}

bool Tape::Records(absl::Span<const Var> inputs, bool trains_weights) {
  return trains_weights ||
         std::any_of(inputs.begin(), inputs.end(), [](const Var& v) { return v.needs_grad(); });
}

std::vector<Var> Tape::Record(const char* name, absl::Span<const Var> inputs,
                              absl::Span<const TensorView> outputs, bool trains_weights,
                              BackwardFn backward_input, BackwardFn weight_grad) {
  OMNI_CHECK(impl_->memory.is_recording());
  const bool records = Records(inputs, trains_weights);
  std::vector<Var> vars;
  Node node{name,
            {inputs.begin(), inputs.end()},
            {},
            std::move(backward_input),
            trains_weights ? std::move(weight_grad) : nullptr,
            {}};
  for (const TensorView& output : outputs) {
    vars.push_back(Input(output, records));
    node.outputs.push_back(vars.back().slot);
  }
  if (records) impl_->nodes.push_back(std::move(node));
  return vars;
}

size_t Tape::Mark() const { return impl_->memory.Mark(); }

void Tape::EndStretch(size_t mark, absl::Span<const Var> outputs) {
  std::vector<TensorView> kept;
  for (const Var& output : outputs) kept.push_back(output.value);
  impl_->memory.EndStretch(mark, kept);
}

void Tape::EndForward(absl::Span<const Var> outputs) {
  for (const Var& output : outputs) {
    TapeMemory::Block* block = impl_->memory.Find(output.value.data);
    if (block != nullptr) block->is_output = true;
  }
  impl_->memory.EndRecording();
}

void Tape::RunNode(ExecContext& ctx, int32_t index, const BackwardFn& function) {
  ExecContext inner{.device = ctx.device, .stream = ctx.stream, .tape = this, .arena = nullptr};
  BackwardContext backward(inner, *this, index);
  function(backward);
  for (const auto& [slot, grad] : backward.pending_) Accumulate(inner, slot, grad);
  impl_->memory.DropTemporaries();
}

void Tape::Accumulate(ExecContext& ctx, int32_t slot, const TensorView& grad) {
  TensorView& held = impl_->grads[slot];
  if (held.empty()) {
    impl_->memory.Hold(grad);
    held = grad;
    return;
  }
  // A fresh sum: the gradient held so far may be shared with another slot.
  const TensorView sum = New(held.dtype, held.shape());
  Launch(ctx, OpId::kAdd, held.dtype, AddArgs{.a = held, .b = grad, .out = sum});
  impl_->memory.Drop(held);
  impl_->memory.Hold(sum);
  held = sum;
}

void Tape::RunBackward(ExecContext& ctx, absl::Span<const RootGrad> roots, bool with_weights) {
  if (impl_->memory.is_recording()) EndForward({});
  impl_->weights_follow = with_weights;
  for (const RootGrad& root : roots) {
    if (!root.output.needs_grad()) continue;
    OMNI_CHECK(root.grad.shape() == root.output.value.shape());
    ExecContext inner{.device = ctx.device, .stream = ctx.stream, .tape = this, .arena = nullptr};
    Accumulate(inner, root.output.slot, root.grad);
  }
  for (int32_t index = static_cast<int32_t>(impl_->nodes.size()) - 1; index >= 0; --index) {
    Node& node = impl_->nodes[index];
    bool reached = false;
    node.output_grads.clear();
    for (const int32_t slot : node.outputs) {
      node.output_grads.push_back(impl_->grads[slot]);
      reached |= !impl_->grads[slot].empty();
      impl_->grads[slot] = TensorView{};
    }
    if (reached) {
      if (node.backward_input) RunNode(ctx, index, node.backward_input);
      if (with_weights && node.weight_grad) RunNode(ctx, index, node.weight_grad);
    }
    const bool keep = reached && !with_weights && node.weight_grad;
    if (!keep) {
      for (const TensorView& grad : node.output_grads) impl_->memory.Drop(grad);
      node.output_grads.clear();
    }
  }
  impl_->memory.EndPhases(/*b=*/true, /*w=*/with_weights);
}

void Tape::Backward(ExecContext& ctx, absl::Span<const RootGrad> roots) {
  RunBackward(ctx, roots, /*with_weights=*/true);
}

void Tape::BackwardInput(ExecContext& ctx, absl::Span<const RootGrad> roots) {
  RunBackward(ctx, roots, /*with_weights=*/false);
}

void Tape::WeightGrad(ExecContext& ctx) {
  for (int32_t index = static_cast<int32_t>(impl_->nodes.size()) - 1; index >= 0; --index) {
    Node& node = impl_->nodes[index];
    if (node.output_grads.empty()) continue;
    RunNode(ctx, index, node.weight_grad);
    for (const TensorView& grad : node.output_grads) impl_->memory.Drop(grad);
    node.output_grads.clear();
  }
  impl_->memory.EndPhases(/*b=*/false, /*w=*/true);
}

TensorView Tape::GradOf(const Var& input) const {
  return input.needs_grad() ? impl_->grads[input.slot] : TensorView{};
}

void Tape::Reset() {
  impl_->nodes.clear();
  impl_->grads.clear();
  impl_->memory.Clear();
}

TensorView ExecContext::New(DType dtype, absl::Span<const int64_t> sizes) {
  if (tape != nullptr) return tape->New(dtype, sizes);
  OMNI_CHECK(arena != nullptr);
  return arena->New(dtype, sizes);
}

}  // namespace omni
