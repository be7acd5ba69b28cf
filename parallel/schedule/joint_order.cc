// Where encoders go among the works of the decoder.
//
// kUniform. Group g is encoded at the *cut* before chunk 0's forward of the first microbatch of
// group g - groups_ahead, its backward at the cut after chunk 0's last backward of the group. A cut
// at a work X lies, on every rank, before the first work that can't start before X has (or has
// ended). So nothing on one rank's side of a cut waits, by whatever way, for an action another rank
// has in it: every chain of dependencies passes each cut once, and the step is longer by no more
// than the sum, over cuts, of the longest encoding in it; whatever the schedule and the times. Nor
// does a rank ever wait at a cut for its row gradients, as all that follows it there would have
// waited for the same.
#include <algorithm>

#include "parallel/schedule/work.h"

namespace omni::parallel {
namespace {

class EncoderWriter {
 public:
  explicit EncoderWriter(const ScheduleOptions& options) : options_(options) {}

  void Forward(int32_t group, std::vector<Work>* out) const {
    for (size_t encoder = 0; encoder < options_.encoders.size(); ++encoder) {
      const bool keeps =
          options_.encoders[encoder].trains && options_.joint != JointKind::kRecompute;
      out->push_back({keeps ? ActionKind::kEncodeForward : ActionKind::kEncodeOnly,
                      static_cast<int16_t>(encoder), group});
    }
  }
  void Backward(int32_t group, std::vector<Work>* out) const {
    for (size_t encoder = 0; encoder < options_.encoders.size(); ++encoder) {
      if (!options_.encoders[encoder].trains) continue;
      out->push_back({ActionKind::kEncodeBackward, static_cast<int16_t>(encoder), group});
    }
  }

 private:
  const ScheduleOptions& options_;
};

int32_t LastOf(const ScheduleOptions& options, int32_t group) {
  return std::min(options.microbatches, (group + 1) * options.group_size()) - 1;
}

WorkOrder DecoderOrder(const ScheduleOptions& options) {
  WorkOrder order(options.ranks);
  for (int32_t rank = 0; rank < options.decoder_ranks(); ++rank) {
    order[rank] = BaseOrder(options, rank);
  }
  return order;
}

// How many cuts of either kind lie before a work.
struct CutsPassed {
  int32_t forward = 0, backward = 0;
  void Join(const CutsPassed& other) {
    forward = std::max(forward, other.forward);
    backward = std::max(backward, other.backward);
  }
};

WorkOrder Uniform(const ScheduleOptions& options) {
  ScheduleOptions decoder = options;
  decoder.encoders.clear();
  const WorkOrder base = DecoderOrder(decoder);
  const EncoderWriter encoders(options);
  const int32_t num_groups = options.num_groups(), size = options.group_size();
  WorkOrder order(options.ranks);
  for (int32_t rank = 0; rank < options.ranks; ++rank) {
    order[rank].reserve(base[rank].size() + 2 * num_groups * options.encoders.size());
  }
  std::vector<CutsPassed> passed(options.ranks), by_event(Events(decoder).count());
  std::vector<int32_t> encoded(options.ranks, 0), returned(options.ranks, 0);
  VisitWorks(decoder, base, [&](int32_t rank, const Work& work, int32_t needed, int32_t given) {
    CutsPassed& now = passed[rank];
    if (needed >= 0) now.Join(by_event[needed]);
    if (work.kind == ActionKind::kForward && work.part == 0 && work.index % size == 0) {
      now.forward = std::max(now.forward, work.index / size + 1);
    }
    while (returned[rank] < now.backward) encoders.Backward(returned[rank]++, &order[rank]);
    // At cut c (from 1) group c - 1 + groups_ahead follows those before it.
    const int64_t due = now.forward == 0 ? 0 : int64_t{now.forward} + options.groups_ahead;
    while (encoded[rank] < std::min<int64_t>(due, num_groups)) {
      encoders.Forward(encoded[rank]++, &order[rank]);
    }
    order[rank].push_back(work);
    if (work.is_backward() && work.part == 0) {
      const int32_t group = options.GroupOf(work.index);
      if (work.index == LastOf(options, group)) now.backward = group + 1;
    }
    if (given >= 0) by_event[given] = now;
  });
  for (int32_t rank = 0; rank < options.ranks; ++rank) {
    while (returned[rank] < num_groups) encoders.Backward(returned[rank]++, &order[rank]);
  }
  return order;
}

WorkOrder Upfront(const ScheduleOptions& options) {
  WorkOrder order(options.ranks);
  const EncoderWriter encoders(options);
  for (int32_t rank = 0; rank < options.ranks; ++rank) {
    for (int32_t group = 0; group < options.num_groups(); ++group) {
      encoders.Forward(group, &order[rank]);
    }
    const std::vector<Work> base = BaseOrder(options, rank);
    order[rank].insert(order[rank].end(), base.begin(), base.end());
    for (int32_t group = 0; group < options.num_groups(); ++group) {
      encoders.Backward(group, &order[rank]);
    }
  }
  return order;
}

WorkOrder FirstStage(const ScheduleOptions& options) {
  WorkOrder order = DecoderOrder(options);
  const EncoderWriter encoders(options);
  const int32_t first = options.RankOf(0), size = options.group_size();
  const std::vector<Work> base = std::move(order[first]);
  order[first].clear();
  for (const Work& work : base) {
    const int32_t group = options.GroupOf(work.index);
    if (work.kind == ActionKind::kForward && work.part == 0 && work.index % size == 0) {
      encoders.Forward(group, &order[first]);
    }
    order[first].push_back(work);
    if (work.is_backward() && work.part == 0 && work.index == LastOf(options, group)) {
      encoders.Backward(group, &order[first]);
    }
  }
  return order;
}

}  // namespace

WorkOrder JointOrder(const ScheduleOptions& options) {
  if (options.encoders.empty()) return DecoderOrder(options);
  switch (options.joint) {
    case JointKind::kUniform:
      return Uniform(options);
    case JointKind::kUpfront:
    case JointKind::kRecompute:
      return Upfront(options);
    default:
      return FirstStage(options);
  }
}

}  // namespace omni::parallel
