// Records the ops of one segment (a module on one microbatch) and runs them backwards.
//
// A Var is a value and, when somebody wants its gradient, a slot on the tape. An op computes
// its output, names what its backward needs (Save), and records two functions: one for the
// gradients of its inputs, one for those of its weights. So one backward pass can be cut in
// two, as zero-bubble pipeline schedules do: BackwardInput walks the tape in reverse and leaves
// the weight work for a later WeightGrad; Backward does both at each op.
//
// Memory: every tensor made while recording is a run of pages owned by the tape. What nobody
// saved is returned when recording ends, or its stretch (EndStretch); what was saved kForB when
// BackwardInput ends; what was saved kForW when WeightGrad ends. Gradients are returned as soon as
// they are consumed.
//
// Weights are not Vars: their gradients accumulate (+=) straight into Weight::grad.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "runtime/device/exec_context.h"
#include "runtime/tensor/view.h"

namespace omni {

struct Var {
  TensorView value;
  int32_t slot = -1;  // where the gradient is gathered; -1: no gradient wanted

  bool needs_grad() const { return slot >= 0; }
};

struct LoraAdapter;  // runtime/ops/lora.h

// A parameter as the ops see it.
struct Weight {
  TensorView value;                   // compute dtype, [out, in] for linear maps
  TensorView grad;                    // same shape, fp32 (fp64 for fp64 weights); empty when frozen
  const LoraAdapter* lora = nullptr;  // a low-rank term that is added; outlives its use

  bool trainable() const { return !grad.empty(); }
};

enum class NeededBy : uint8_t { kBackwardInput, kWeightGrad };

class Tape {
 public:
  // What an op's backward functions are given. Gradients have the dtype of the values.
  class BackwardContext {
   public:
    ExecContext& ctx;  // no tape recording; New() makes temporaries freed after this op

    // Gradient of output i; empty if nothing downstream depends on it (then treat it as zero).
    TensorView grad_output(int i) const;
    bool needs_grad_input(int i) const;
    // Uninitialised gradient of input i, to be overwritten; the tape adds it to what other
    // uses of the same Var contributed. CHECK-fails unless needs_grad_input(i).
    TensorView new_grad_input(int i);
    // Instead: input i's gradient *is* this view (of grad_output or a temporary; may be strided).
    void set_grad_input(int i, const TensorView& grad);

    // Whether the weight gradients follow at once: Backward, not BackwardInput.
    bool weights_follow() const;

   private:
    friend class Tape;
    BackwardContext(ExecContext& c, Tape& t, int32_t n) : ctx(c), tape_(t), node_(n) {}
    Tape& tape_;
    int32_t node_;
    std::vector<std::pair<int32_t, TensorView>> pending_;  // (slot, gradient) to be added
  };
  using BackwardFn = std::function<void(BackwardContext&)>;

  explicit Tape(Device& device);
  ~Tape();
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  // An input of the segment. With `wants_grad`, its gradient can be read after backward.
  Var Input(const TensorView& value, bool wants_grad);

  TensorView New(DType dtype, absl::Span<const int64_t> sizes);

  // Keeps `view` (any view into a tensor of this tape, or of outside memory, which is then the
  // caller's to keep) until the named phase of the backward pass is over.
  void Save(const char* tag, NeededBy needed_by, const TensorView& view);

  // Records one op. Returns one Var per output value; they carry a gradient slot if any input
  // does or the op has weight gradients (`trains_weights`). When neither holds, nothing is
  // recorded: a frozen module keeps no activations. `weight_grad` may be empty; an op whose
  // weight gradient can't be separated does everything in `backward_input`.
  std::vector<Var> Record(const char* name, absl::Span<const Var> inputs,
                          absl::Span<const TensorView> outputs, bool trains_weights,
                          BackwardFn backward_input, BackwardFn weight_grad = nullptr);
  // True if an op over these inputs will be recorded: lets it skip making what only the
  // backward pass reads.
  static bool Records(absl::Span<const Var> inputs, bool trains_weights);

  // A stretch of the forward (a block): what was made since `mark` and nobody saved is returned
  // when it ends, all but `outputs`; nothing else of it may be used afterwards.
  //   const size_t mark = tape.Mark(); ... tape.EndStretch(mark, outputs);
  size_t Mark() const;
  void EndStretch(size_t mark, absl::Span<const Var> outputs);

  // Ends recording; `outputs` stay valid, whatever else nobody saved is returned.
  void EndForward(absl::Span<const Var> outputs);

  struct RootGrad {
    Var output;
    TensorView grad;  // same shape and dtype as the output
  };
  void Backward(ExecContext& ctx, absl::Span<const RootGrad> roots);
  void BackwardInput(ExecContext& ctx, absl::Span<const RootGrad> roots);
  void WeightGrad(ExecContext& ctx);

  // Gradient of an Input after BackwardInput; empty if nothing depended on it. Valid until the
  // tape is reset or destroyed.
  TensorView GradOf(const Var& input) const;

  // Frees everything and makes the tape ready for the next microbatch.
  void Reset();

  // How tensors change hands between tapes and arenas without being copied (recompute.h). Adopt:
  // `run` is this tape's from now on, as if New had just made it. Disown: the pages of a gradient
  // (GradOf) are the caller's from now on, and the gradient is forgotten; an empty run, and nothing
  // happens, where something else on this tape still needs them or they are not its own.
  void Adopt(PageRun run);
  PageRun Disown(const Var& input);

 private:
  struct Impl;
  void RunNode(ExecContext& ctx, int32_t index, const BackwardFn& function);
  void RunBackward(ExecContext& ctx, absl::Span<const RootGrad> roots, bool with_weights);
  void Accumulate(ExecContext& ctx, int32_t slot, const TensorView& grad);

  std::unique_ptr<Impl> impl_;
};

}  // namespace omni
