#include "parallel/ops/ring_attention.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "parallel/ops/ring_segments.h"
#include "runtime/device/args/attention.h"
#include "runtime/device/args/elementwise.h"
#include "runtime/ops/copy.h"
#include "runtime/ops/op_helpers.h"

namespace omni::parallel {
namespace {

// One trip of the keys and values around the ring, as this rank sees it.
struct Trip {
  Group ring;
  std::vector<int64_t> row_counts;      // of each rank
  std::vector<int64_t> first_segments;  // [size + 1]: of each step, in `segments`
  TensorView segments;                  // of all steps, as the kernels take them
  double scale = 1.0;
  bool causal = false;

  int32_t num_steps() const { return ring.size(); }
  // Rows of the rank whose keys are here at this step; at the end of the trip, this rank's.
  int64_t RowsAt(int32_t step) const {
    return row_counts[(ring.rank() + num_steps() - step) % num_steps()];
  }
  int64_t most_rows() const { return *std::max_element(row_counts.begin(), row_counts.end()); }
  TensorView SegmentsAt(int32_t step) const {
    return segments.Rows(first_segments[step], first_segments[step + 1] - first_segments[step]);
  }
  bool computes(int32_t step) const { return first_segments[step] < first_segments[step + 1]; }
  AttentionMask MaskAt(int32_t step) const { return {.causal = causal && step == 0 ? 1 : 0}; }

  // Sends to the next rank and receives from the one before, at once.
  WorkPtr Pass(const TensorView& send, const TensorView& receive) const {
    const int32_t size = ring.size(), rank = ring.rank();
    ring.comm->GroupBegin();
    ring.comm->Send(send, (rank + 1) % size);
    ring.comm->Recv(receive, (rank + size - 1) % size);
    return ring.comm->GroupEnd();
  }
};

Trip PlanTrip(ExecContext& ctx, const SequenceShards& shards, const Group& ring, double scale,
              bool causal) {
  Trip trip{.ring = ring, .first_segments = {0}, .scale = scale, .causal = causal};
  for (const std::vector<int32_t>& tokens : shards.tokens) {
    trip.row_counts.push_back(static_cast<int64_t>(tokens.size()));
  }
  std::vector<int32_t> numbers;
  for (int32_t step = 0; step < ring.size(); ++step) {
    const int32_t source = (ring.rank() + ring.size() - step) % ring.size();
    for (const RingSegment& segment : RingSegments(shards, ring.rank(), source, causal)) {
      numbers.insert(numbers.end(), {segment.first_query, segment.num_queries, segment.first_key,
                                     segment.num_keys});
    }
    trip.first_segments.push_back(static_cast<int64_t>(numbers.size()) / 4);
  }
  trip.segments = UploadNew<int32_t>(ctx, numbers, {trip.first_segments.back(), 4});
  return trip;
}

// Keys and values of `rows` tokens in one buffer: rows of keys, then as many of values.
struct Block {
  TensorView both, first, second;
};
Block BlockOf(const TensorView& buffer, int64_t rows) {
  return {buffer.Rows(0, 2 * rows), buffer.Rows(0, rows), buffer.Rows(rows, rows)};
}

// Memory of one op, returned with it although the tape is still recording.
class Scratch {
 public:
  explicit Scratch(ExecContext& ctx) : ctx_(ctx), arena_(ctx.device) {
    if (Joins()) ctx_.stream.Wait(ctx_.device.memory_stream()->Record());
  }
  ~Scratch() {
    if (Joins()) ctx_.device.memory_stream()->Wait(ctx_.stream.Record());
  }
  TensorView New(DType dtype, std::initializer_list<int64_t> sizes) {
    return arena_.New(dtype, absl::MakeConstSpan(sizes.begin(), sizes.size()));
  }

 private:
  // Memory changes hands in the order of the memory stream.
  bool Joins() const {
    return ctx_.device.memory_stream() != nullptr && ctx_.device.memory_stream() != &ctx_.stream;
  }
  ExecContext& ctx_;
  TensorArena arena_;  // released after the destructor's body
};

// out and lse in the accumulation type, overwritten.
void Forward(ExecContext& ctx, const Trip& trip, const TensorView& q_TND, const TensorView& k_TKD,
             const TensorView& v_TKD, const TensorView& out_TND, const TensorView& lse_TN) {
  Scratch scratch(ctx);
  const DType dtype = k_TKD.dtype;
  std::array<TensorView, 2> buffers;  // by parity of the step
  for (TensorView& buffer : buffers) {
    buffer = scratch.New(dtype, {2 * trip.most_rows(), k_TKD.size(1), k_TKD.size(2)});
  }
  const Block own = BlockOf(buffers[0], trip.RowsAt(0));
  CopyTo(ctx, k_TKD, own.first);
  CopyTo(ctx, v_TKD, own.second);
  for (int32_t step = 0; step < trip.num_steps(); ++step) {
    const Block here = BlockOf(buffers[step % 2], trip.RowsAt(step));
    WorkPtr passing;
    if (step + 1 < trip.num_steps()) {
      const Block next = BlockOf(buffers[(step + 1) % 2], trip.RowsAt(step + 1));
      passing = trip.Pass(here.both, next.both);
    }
    if (trip.computes(step)) {
      AttentionPartialForwardArgs args;
      args.q_TND = q_TND;
      args.k_TKD = here.first;
      args.v_TKD = here.second;
      args.segments = trip.SegmentsAt(step);
      args.out_TND = out_TND;
      args.lse_TN = lse_TN;
      args.scale = trip.scale;
      args.mask = trip.MaskAt(step);
      args.continues = step > 0 ? 1 : 0;  // every token sees itself, in step 0
      Launch(ctx, OpId::kAttentionPartialForward, dtype, args);
    }
    if (passing != nullptr) passing->Wait(ctx.stream);
  }
}

struct Saved {
  TensorView q_TND, k_TKD, v_TKD, out_TND, lse_TN;
};

void Backward(Tape::BackwardContext& back, const Trip& trip, const Saved& saved) {
  ExecContext& ctx = back.ctx;
  const TensorView grad_out_TND = back.grad_output(0);
  const DType dtype = saved.q_TND.dtype, wide = AccumulationType(dtype);
  const int64_t num_kv_heads = saved.k_TKD.size(1), head_dim = saved.k_TKD.size(2);
  const bool wants_q = back.needs_grad_input(0);
  const bool wants_kv = back.needs_grad_input(1) || back.needs_grad_input(2);
  const auto new_buffer = [&](DType type) {
    return ctx.New(type, {2 * trip.most_rows(), num_kv_heads, head_dim});
  };
  const auto zero = [&](const TensorView& view) { FillWith(ctx, 0.0, view); };
  std::array<TensorView, 2> buffers = {new_buffer(dtype), new_buffer(dtype)};
  std::array<TensorView, 2> sums;  // gradients on their way, of the rows at that step
  TensorView part;                 // what this rank adds to them
  TensorView grad_q_TND;
  if (wants_kv) {
    sums = {new_buffer(wide), new_buffer(wide)};
    part = new_buffer(wide);
  }
  if (wants_q) {
    grad_q_TND = ctx.New(wide, saved.q_TND.shape());
    zero(grad_q_TND);
  }
  const Block own = BlockOf(buffers[0], trip.RowsAt(0));
  CopyTo(ctx, saved.k_TKD, own.first);
  CopyTo(ctx, saved.v_TKD, own.second);
  for (int32_t step = 0; step < trip.num_steps(); ++step) {
    const int64_t rows = trip.RowsAt(step);
    const Block here = BlockOf(buffers[step % 2], rows);
    WorkPtr passing, passing_sums;
    if (step + 1 < trip.num_steps()) {
      const Block next = BlockOf(buffers[(step + 1) % 2], trip.RowsAt(step + 1));
      passing = trip.Pass(here.both, next.both);
    }
    // The sums for the rows that are here were left by the rank before, one step ago. Step 0 starts
    // them; later ones add a part computed while they arrive.
    const Block sum = wants_kv ? BlockOf(sums[step % 2], rows) : Block{};
    const Block grads = !wants_kv ? Block{} : step == 0 ? sum : BlockOf(part, rows);
    if (wants_kv && step > 0) {
      const Block last = BlockOf(sums[(step + 1) % 2], trip.RowsAt(step - 1));
      passing_sums = trip.Pass(last.both, sum.both);
    }
    if (wants_kv && (step == 0 || trip.computes(step))) zero(grads.both);
    if (trip.computes(step)) {
      AttentionPartialBackwardArgs args;
      args.q_TND = saved.q_TND;
      args.k_TKD = here.first;
      args.v_TKD = here.second;
      args.segments = trip.SegmentsAt(step);
      args.out_TND = saved.out_TND;
      args.lse_TN = saved.lse_TN;
      args.grad_out_TND = grad_out_TND;
      args.grad_q_TND = grad_q_TND;
      args.grad_k_TKD = grads.first;
      args.grad_v_TKD = grads.second;
      args.scale = trip.scale;
      args.mask = trip.MaskAt(step);
      Launch(ctx, OpId::kAttentionPartialBackward, dtype, args);
    }
    if (passing != nullptr) passing->Wait(ctx.stream);
    if (passing_sums != nullptr) {
      passing_sums->Wait(ctx.stream);
      if (trip.computes(step)) {
        Launch(ctx, OpId::kAxpy, wide, AxpyArgs{.x = grads.both, .y = sum.both, .alpha = 1.0});
      }
    }
  }
  const auto give = [&](int input, const TensorView& grad) {
    if (!back.needs_grad_input(input)) return;
    if (wide == dtype)
      back.set_grad_input(input, grad);
    else
      CopyTo(ctx, grad, back.new_grad_input(input));
  };
  if (wants_q) give(0, grad_q_TND);
  if (!wants_kv) return;
  const int32_t end = trip.num_steps();
  const Block home = BlockOf(sums[end % 2], trip.RowsAt(end));
  trip.Pass(BlockOf(sums[(end + 1) % 2], trip.RowsAt(end - 1)).both, home.both)->Wait(ctx.stream);
  give(1, home.first);
  give(2, home.second);
}

void CheckInputs(const Var& q_TND, const Var& k_TKD, const Var& v_TKD, int64_t num_tokens) {
  const TensorView& q = q_TND.value;
  for (const Var* input : {&q_TND, &k_TKD, &v_TKD}) {
    const TensorView& view = input->value;
    CheckRank(view, 3);
    OMNI_CHECK_EQ(view.size(0), num_tokens);
    OMNI_CHECK_EQ(view.size(2), q.size(2));
    OMNI_CHECK(view.stride(2) == 1 || view.size(2) == 1);
    OMNI_CHECK(view.dtype == q.dtype);
  }
  OMNI_CHECK_EQ(k_TKD.value.size(1), v_TKD.value.size(1));
  OMNI_CHECK_GT(k_TKD.value.size(1), 0);
  OMNI_CHECK_EQ(q.size(1) % k_TKD.value.size(1), 0);
}

}  // namespace

Var RingAttention(ExecContext& ctx, const Var& q_TND, const Var& k_TKD, const Var& v_TKD,
                  const SequenceShards& shards, const Group& ring,
                  const AttentionOptions& options) {
  OMNI_CHECK_EQ(shards.degrees.ring, ring.size());
  if (ring.is_alone()) {
    return VarlenAttention(ctx, q_TND, k_TKD, v_TKD, HeldSeqlens(shards, 0), options);
  }
  OMNI_CHECK_EQ(options.window, 0);
  const int64_t num_tokens = static_cast<int64_t>(shards.tokens[ring.rank()].size());
  CheckInputs(q_TND, k_TKD, v_TKD, num_tokens);
  const TensorView& q = q_TND.value;
  const double scale = options.scale != 0.0f ? static_cast<double>(options.scale)
                                             : 1.0 / std::sqrt(static_cast<double>(q.size(2)));
  const Trip trip = PlanTrip(ctx, shards, ring, scale, options.causal);
  const DType wide = AccumulationType(q.dtype);
  const TensorView out_TND = ctx.New(q.dtype, q.shape());
  const TensorView lse_TN = ctx.New(wide, {num_tokens, q.size(1)});
  if (wide == q.dtype) {
    Forward(ctx, trip, q, k_TKD.value, v_TKD.value, out_TND, lse_TN);
  } else {
    Scratch scratch(ctx);
    const TensorView wide_out = scratch.New(wide, {num_tokens, q.size(1), q.size(2)});
    Forward(ctx, trip, q, k_TKD.value, v_TKD.value, wide_out, lse_TN);
    CopyTo(ctx, wide_out, out_TND);
  }
  const Var inputs[] = {q_TND, k_TKD, v_TKD};
  if (!Recording(ctx, inputs, false)) return {.value = out_TND};

  const Saved saved{q, k_TKD.value, v_TKD.value, out_TND, lse_TN};
  ctx.tape->Save("attention_q", NeededBy::kBackwardInput, saved.q_TND);
  ctx.tape->Save("attention_k", NeededBy::kBackwardInput, saved.k_TKD);
  ctx.tape->Save("attention_v", NeededBy::kBackwardInput, saved.v_TKD);
  ctx.tape->Save("attention_segments", NeededBy::kBackwardInput, trip.segments);
  ctx.tape->Save("attention_out", NeededBy::kBackwardInput, saved.out_TND);
  ctx.tape->Save("attention_lse", NeededBy::kBackwardInput, saved.lse_TN);
  const auto backward = [trip, saved](Tape::BackwardContext& back) { Backward(back, trip, saved); };
  return ctx.tape->Record("ring_attention", inputs, {&out_TND, 1}, false, backward)[0];
}

}  // namespace omni::parallel
