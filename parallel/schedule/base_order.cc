// The order of forwards and backwards on a rank, for each schedule.
//
// Interleaved and V schedules are written for numbers of microbatches that they like, and those
// beyond the real number are left out: what is left of an order without cycles has none, keeps no
// more alive and takes no longer.
#include <algorithm>

#include "parallel/schedule/work.h"

namespace omni::parallel {
namespace {

class OrderWriter {
 public:
  explicit OrderWriter(const ScheduleOptions& options) : microbatches_(options.microbatches) {
    works_.reserve(3 * int64_t{options.chunks_per_rank} * options.microbatches);
  }

  void Add(ActionKind kind, int32_t chunk, int32_t microbatch) {
    if (microbatch >= microbatches_) return;
    works_.push_back({kind, static_cast<int16_t>(chunk), microbatch});
  }
  std::vector<Work> Take() { return std::move(works_); }

 private:
  int32_t microbatches_;
  std::vector<Work> works_;
};

// All forwards, all backwards.
void GPipe(const ScheduleOptions& options, int32_t rank, OrderWriter* out) {
  for (const ActionKind kind : {ActionKind::kForward, ActionKind::kBackward}) {
    for (int32_t i = 0; i < options.microbatches; ++i) out->Add(kind, rank, i);
  }
}

// Runs through the chunks of a rank in groups of `ranks` microbatches; backwards from behind.
class ChunkCycle {
 public:
  ChunkCycle(const ScheduleOptions& options, int32_t rank, ActionKind kind)
      : ranks_(options.decoder_ranks()),
        last_(options.chunks_per_rank - 1),
        rank_(rank),
        kind_(kind) {}

  void Next(OrderWriter* out) {
    const int32_t nth = kind_ == ActionKind::kForward ? nth_ : last_ - nth_;
    out->Add(kind_, nth * ranks_ + rank_, group_ + within_);
    if (last_ > 0 && ++within_ < ranks_) return;
    within_ = 0;
    if (++nth_ <= last_) return;
    nth_ = 0;
    group_ += last_ > 0 ? ranks_ : 1;
  }

 private:
  const int32_t ranks_, last_, rank_;
  const ActionKind kind_;
  int32_t group_ = 0, nth_ = 0, within_ = 0;
};

// As many forwards as there are ranks below, then one forward, one backward. With one chunk a rank
// that is plain 1F1B. With more, each rank starts so much earlier that forwards that come round
// meet the backwards.
void OneForwardOneBackward(const ScheduleOptions& options, int32_t rank, OrderWriter* out) {
  const int32_t ranks = options.decoder_ranks(), per_rank = options.chunks_per_rank;
  const int32_t below = ranks - 1 - rank;
  const int64_t microbatches = per_rank == 1
                                   ? options.microbatches
                                   : (int64_t{options.microbatches} + ranks - 1) / ranks * ranks;
  const int64_t total = microbatches * per_rank;
  const int64_t warmup =
      std::min<int64_t>(total, per_rank == 1 ? below : 2 * below + (per_rank - 1) * ranks);
  ChunkCycle forward(options, rank, ActionKind::kForward);
  ChunkCycle backward(options, rank, ActionKind::kBackward);
  for (int64_t step = 0; step < total + warmup; ++step) {
    if (step < total) forward.Next(out);
    if (step >= warmup) backward.Next(out);
  }
}

// 1F1B whose weight gradients lag behind by as many microbatches as there are ranks above: these
// get their input gradients sooner and, with ranks - rank forwards kept, no rank keeps more than
// the first one does in 1F1B (arXiv 2401.10241, section 2).
void ZeroBubbleH1(const ScheduleOptions& options, int32_t rank, OrderWriter* out) {
  const int32_t total = options.microbatches;
  const int32_t warmup = std::min(total, options.decoder_ranks() - 1 - rank);
  int32_t weights = 0;
  for (int32_t step = 0; step < total + warmup; ++step) {
    if (step < total) out->Add(ActionKind::kForward, rank, step);
    if (step < warmup) continue;
    const int32_t backward = step - warmup;
    out->Add(ActionKind::kBackwardInput, rank, backward);
    // In the drain the waiting weight gradients fill what would be bubbles.
    if (backward >= rank || step >= total) out->Add(ActionKind::kWeightGrad, rank, weights++);
  }
  while (weights < total) out->Add(ActionKind::kWeightGrad, rank, weights++);
}

// Two chunks a rank, there and back (arXiv 2401.10241, section 6, and arXiv 2405.15362). With equal
// times forward, input and weight gradient no rank idles between its first and its last action,
// and none keeps more than 2 ranks forwards of half a stage.
void ZeroBubbleV(const ScheduleOptions& options, int32_t rank, OrderWriter* out) {
  const int32_t ranks = options.decoder_ranks();
  const int32_t total = std::max(options.microbatches, 2 * ranks - 1);
  const int32_t there = rank, back = 2 * ranks - 1 - rank;
  int32_t forwards[2] = {0, 0}, backwards[2] = {0, 0}, weights[2] = {0, 0};
  const auto chunk = [&](int32_t way) { return way == 0 ? there : back; };
  const auto forward = [&](int32_t way) {
    out->Add(ActionKind::kForward, chunk(way), forwards[way]++);
  };
  const auto backward = [&](int32_t way) {
    out->Add(ActionKind::kBackwardInput, chunk(way), backwards[way]++);
  };
  const auto weight = [&](int32_t way) {
    out->Add(ActionKind::kWeightGrad, chunk(way), weights[way]++);
  };
  // Forwards fill the way there until the first one is back.
  for (int32_t i = 0; i < 2 * (ranks - rank) - 1; ++i) forward(0);
  for (int32_t i = 0; i < rank; ++i) forward(1), forward(0);
  // The way back turns round.
  for (int32_t i = 0; i < ranks - rank; ++i) forward(1), backward(1), weight(1);
  while (forwards[1] < total) {
    if (forwards[0] < total) forward(0);
    backward(0), weight(0);
    forward(1), backward(1), weight(1);
  }
  // What is left of the backwards, weight gradients where they would wait.
  for (int32_t i = 0; i < rank; ++i) backward(0), backward(1);
  for (int32_t i = 0; i < ranks - rank; ++i) backward(0), weight(0);
  while (weights[1] < total) weight(1);
  while (weights[0] < total) weight(0);
}

}  // namespace

std::vector<Work> BaseOrder(const ScheduleOptions& options, int32_t rank) {
  OrderWriter out(options);
  switch (options.schedule) {
    case ScheduleKind::kGPipe:
      GPipe(options, rank, &out);
      break;
    case ScheduleKind::k1F1B:
    case ScheduleKind::kInterleaved:
      OneForwardOneBackward(options, rank, &out);
      break;
    case ScheduleKind::kZbH1:
      ZeroBubbleH1(options, rank, &out);
      break;
    case ScheduleKind::kZbV:
      ZeroBubbleV(options, rank, &out);
      break;
  }
  return out.Take();
}

}  // namespace omni::parallel
