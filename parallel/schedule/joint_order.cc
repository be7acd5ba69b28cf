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
  struct Rank {
    CutsPassed passed;
    int32_t encoded = 0, returned = 0;  // groups
    std::vector<Work> works;
  };
  std::vector<Rank> ranks(options.ranks);
  for (int32_t rank = 0; rank < options.ranks; ++rank) {
    ranks[rank].works.reserve(base[rank].size() + 2 * num_groups * options.encoders.size());
  }
  std::vector<CutsPassed> by_event(Events(decoder).count());
  VisitWorks(decoder, base, [&](int32_t rank, const Work& work, int32_t needed, int32_t given) {
    Rank& here = ranks[rank];
    if (needed >= 0) here.passed.Join(by_event[needed]);
    if (work.kind == ActionKind::kForward && work.part == 0 && work.index % size == 0) {
      here.passed.forward = std::max(here.passed.forward, work.index / size + 1);
    }
    while (here.returned < here.passed.backward) encoders.Backward(here.returned++, &here.works);
    // At cut c (from 1) group c - 1 + groups_ahead follows those before it.
    const int64_t due =
        here.passed.forward == 0
            ? 0
            : std::min<int64_t>(int64_t{here.passed.forward} + options.groups_ahead, num_groups);
    while (here.encoded < due) encoders.Forward(here.encoded++, &here.works);
    here.works.push_back(work);
    if (work.is_backward() && work.part == 0) {
      const int32_t group = options.GroupOf(work.index);
      if (work.index == options.LastOf(group)) here.passed.backward = group + 1;
    }
    if (given >= 0) by_event[given] = here.passed;
  });
  WorkOrder order;
  for (Rank& rank : ranks) {
    while (rank.returned < num_groups) encoders.Backward(rank.returned++, &rank.works);
    order.push_back(std::move(rank.works));
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

}  // namespace

void EncoderWriter::Forward(int32_t group, std::vector<Work>* out) const {
  for (size_t encoder = 0; encoder < options_.encoders.size(); ++encoder) {
    const bool keeps = options_.encoders[encoder].trains && options_.joint != JointKind::kRecompute;
    out->push_back({keeps ? ActionKind::kEncodeForward : ActionKind::kEncodeOnly,
                    static_cast<int16_t>(encoder), group});
  }
}

void EncoderWriter::Backward(int32_t group, std::vector<Work>* out) const {
  for (size_t encoder = 0; encoder < options_.encoders.size(); ++encoder) {
    if (!options_.encoders[encoder].trains) continue;
    out->push_back({ActionKind::kEncodeBackward, static_cast<int16_t>(encoder), group});
  }
}

WorkOrder DecoderOrder(const ScheduleOptions& options) {
  WorkOrder order(options.ranks);
  for (int32_t rank = 0; rank < options.decoder_ranks(); ++rank) {
    order[rank] = BaseOrder(options, rank);
  }
  return order;
}

WorkOrder JointOrder(const ScheduleOptions& options) {
  if (options.encoders.empty()) return DecoderOrder(options);
  switch (options.joint) {
    case JointKind::kUniform:
      return Uniform(options);
    case JointKind::kUpfront:
    case JointKind::kRecompute:
      return Upfront(options);
    case JointKind::kFirstStage:
      return FirstStageOrder(options);
    case JointKind::kAggressive:
      return AggressiveOrder(options);
    case JointKind::kDisaggregated:
      return DisaggregatedOrder(options);
  }
  return {};
}

}  // namespace omni::parallel
