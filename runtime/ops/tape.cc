#include "runtime/ops/tape.h"

#include <algorithm>
#include <map>

#include "runtime/device/args/elementwise.h"

namespace omni {
namespace {

// One tensor's pages and what still needs them. Freed when the last reason is gone.
struct Block {
  PageRun run;
  bool recording = true;     // an op may still read it: until EndForward
  bool needed_by_b = false;  // until BackwardInput ends
  bool needed_by_w = false;  // until WeightGrad ends
  bool is_output = false;    // until Reset
};

struct Node {
  const char* name;
  std::vector<Var> inputs;
  std::vector<int32_t> outputs;  // slots
  Tape::BackwardFn backward_input, weight_grad;
  std::vector<TensorView> output_grads;  // kept between the two halves of a cut backward
};

}  // namespace

struct Tape::Impl {
  explicit Impl(Device& d) : device(d) {}

  Device& device;
  std::map<std::byte*, Block> blocks;  // by first byte
  std::vector<Node> nodes;
  std::vector<TensorView> grads;            // by slot; empty: nothing yet
  std::map<std::byte*, int32_t> grad_uses;  // blocks of gradients: how many slots hold them
  std::vector<TensorView> temporaries;      // of the op running backwards
  bool recording = true;
  bool weights_follow = false;  // on the way back

  void Own(PageRun run) {
    blocks.emplace(run.data, Block{.run = run, .recording = recording});
    if (recording) return;
    // Going backwards: a temporary of the running op, unless it becomes somebody's gradient.
    temporaries.push_back(
        TensorView::Dense(run.data, DType::kUInt8, device.kind(), {run.num_bytes}));
    Hold(temporaries.back());
  }

  // The block that holds this address, or end() for memory that is not the tape's.
  std::map<std::byte*, Block>::iterator Find(const void* address) {
    auto* byte = static_cast<std::byte*>(const_cast<void*>(address));
    auto it = blocks.upper_bound(byte);
    if (it == blocks.begin()) return blocks.end();
    --it;
    return byte < it->first + it->second.run.num_bytes ? it : blocks.end();
  }

  void FreeIfUnneeded(std::map<std::byte*, Block>::iterator it) {
    const Block& block = it->second;
    if (block.recording || block.needed_by_b || block.needed_by_w || block.is_output) return;
    if (grad_uses.count(it->first) > 0) return;
    device.pool().Free(block.run);
    blocks.erase(it);
  }

  template <typename Change>
  void ForAllBlocks(Change change) {
    for (auto it = blocks.begin(); it != blocks.end();) {
      auto next = std::next(it);
      change(it->second);
      FreeIfUnneeded(it);
      it = next;
    }
  }

  // Gradients: a slot holds a view; several may lie in one block (columns of one gradient).
  void Hold(const TensorView& grad) {
    const auto block = Find(grad.data);
    if (block != blocks.end()) ++grad_uses[block->first];
  }
  void Drop(const TensorView& grad) {
    if (grad.empty()) return;
    const auto block = Find(grad.data);
    if (block == blocks.end()) return;
    const auto uses = grad_uses.find(block->first);
    if (uses == grad_uses.end()) return;
    if (--uses->second == 0) grad_uses.erase(uses);
    FreeIfUnneeded(block);
  }
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
  TensorView view = TensorView::Dense(nullptr, dtype, impl_->device.kind(), sizes);
  auto run = impl_->device.pool().Allocate(view.num_bytes());
  OMNI_CHECK_OK(run.status());
  view.data = run->data;
  impl_->Own(*run);
  return view;
}

void Tape::Adopt(PageRun run) { impl_->Own(run); }

PageRun Tape::Disown(const Var& input) {
  TensorView& grad = impl_->grads[input.slot];
  const auto it = impl_->Find(grad.data);
  if (it == impl_->blocks.end()) return {};
  const Block& block = it->second;
  const bool is_needed =
      block.recording || block.needed_by_b || block.needed_by_w || block.is_output;
  if (is_needed || impl_->grad_uses.at(it->first) > 1) return {};
  const PageRun run = block.run;
  impl_->grad_uses.erase(it->first);
  impl_->blocks.erase(it);
  grad = TensorView{};
  return run;
}

void Tape::Save(const char*, NeededBy needed_by, const TensorView& view) {
  const auto block = impl_->Find(view.data);
  if (block == impl_->blocks.end()) return;
  (needed_by == NeededBy::kBackwardInput ? block->second.needed_by_b : block->second.needed_by_w) =
      true;
}

bool Tape::Records(absl::Span<const Var> inputs, bool trains_weights) {
  return trains_weights ||
         std::any_of(inputs.begin(), inputs.end(), [](const Var& v) { return v.needs_grad(); });
}

std::vector<Var> Tape::Record(const char* name, absl::Span<const Var> inputs,
                              absl::Span<const TensorView> outputs, bool trains_weights,
                              BackwardFn backward_input, BackwardFn weight_grad) {
  OMNI_CHECK(impl_->recording);
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

void Tape::EndForward(absl::Span<const Var> outputs) {
  impl_->recording = false;
  for (const Var& output : outputs) {
    const auto block = impl_->Find(output.value.data);
    if (block != impl_->blocks.end()) block->second.is_output = true;
  }
  impl_->ForAllBlocks([](Block& block) { block.recording = false; });
}

void Tape::RunNode(ExecContext& ctx, int32_t index, const BackwardFn& function) {
  ExecContext inner{.device = ctx.device, .stream = ctx.stream, .tape = this, .arena = nullptr};
  BackwardContext backward(inner, *this, index);
  function(backward);
  for (const auto& [slot, grad] : backward.pending_) Accumulate(inner, slot, grad);
  for (const TensorView& temporary : impl_->temporaries) impl_->Drop(temporary);
  impl_->temporaries.clear();
}

void Tape::Accumulate(ExecContext& ctx, int32_t slot, const TensorView& grad) {
  TensorView& held = impl_->grads[slot];
  if (held.empty()) {
    impl_->Hold(grad);
    held = grad;
    return;
  }
  // A fresh sum: the gradient held so far may be shared with another slot.
  const TensorView sum = New(held.dtype, held.shape());
  Launch(ctx, OpId::kAdd, held.dtype, AddArgs{.a = held, .b = grad, .out = sum});
  impl_->Drop(held);
  impl_->Hold(sum);
  held = sum;
}

void Tape::RunBackward(ExecContext& ctx, absl::Span<const RootGrad> roots, bool with_weights) {
  if (impl_->recording) EndForward({});
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
      for (const TensorView& grad : node.output_grads) impl_->Drop(grad);
      node.output_grads.clear();
    }
  }
  impl_->ForAllBlocks([&](Block& block) {
    block.needed_by_b = false;
    if (with_weights) block.needed_by_w = false;
  });
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
    for (const TensorView& grad : node.output_grads) impl_->Drop(grad);
    node.output_grads.clear();
  }
  impl_->ForAllBlocks([](Block& block) { block.needed_by_w = false; });
}

TensorView Tape::GradOf(const Var& input) const {
  return input.needs_grad() ? impl_->grads[input.slot] : TensorView{};
}

void Tape::Reset() {
  impl_->grad_uses.clear();
  impl_->temporaries.clear();
  impl_->nodes.clear();
  impl_->grads.clear();
  for (const auto& [data, block] : impl_->blocks) impl_->device.pool().Free(block.run);
  impl_->blocks.clear();
  impl_->recording = true;
}

TensorView ExecContext::New(DType dtype, absl::Span<const int64_t> sizes) {
  if (tape != nullptr) return tape->New(dtype, sizes);
  OMNI_CHECK(arena != nullptr);
  return arena->New(dtype, sizes);
}

}  // namespace omni
