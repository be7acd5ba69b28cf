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
#include <utility>

#include "parallel/schedule/work.h"

namespace omni::parallel {
namespace {

// Cuts lie one behind another, as their works follow one another on chunk 0's rank; so what a work
// comes after is a number of cuts.
WorkOrder Uniform(const ScheduleOptions& options) {
  ScheduleOptions decoder = options;
  decoder.encoders.clear();
  WorkOrder order = DecoderOrder(decoder);
  struct Rank {
    int32_t index = 0, cuts = 0, placed = 0;
    std::vector<std::pair<int32_t, int32_t>> places = {};  // index of a work, cuts before it
  };
  std::vector<Rank> ranks(options.ranks);
  std::vector<bool> is_forward;  // [cuts]
  const int32_t size = options.group_size();
  VisitWorks(decoder, order, [&](int32_t rank, const Work& work, int32_t needed) {
    Rank& here = ranks[rank];
    here.cuts = std::max(here.cuts, needed);
    const bool is_first = work.part == 0;
    if (is_first && work.kind == ActionKind::kForward && work.index % size == 0) {
      is_forward.push_back(true);
      here.cuts = static_cast<int32_t>(is_forward.size());
    }
    if (here.placed < here.cuts) here.places.push_back({here.index, here.placed = here.cuts});
    ++here.index;
    if (is_first && work.is_backward() &&
        work.index == options.LastOf(options.GroupOf(work.index))) {
      is_forward.push_back(false);
      here.cuts = static_cast<int32_t>(is_forward.size());
    }
    return here.cuts;
  });

  const EncoderWriter encoders(options);
  const int32_t num_groups = options.num_groups();
  for (int32_t rank = 0; rank < options.ranks; ++rank) {
    std::vector<Work> works;
    works.reserve(order[rank].size() + 2 * num_groups * options.encoders.size());
    int32_t cut = 0, encoded = 0, returned = 0, copied = 0;
    int32_t due = std::min(options.groups_ahead, num_groups);  // to have been encoded
    for (const auto& [index, cuts] : ranks[rank].places) {
      works.insert(works.end(), order[rank].begin() + copied, order[rank].begin() + index);
      copied = index;
      int32_t back = 0;
      for (; cut < cuts; ++cut) {
        int32_t& count = is_forward[cut] ? due : back;
        ++count;
      }
      while (back-- > 0) encoders.Backward(returned++, &works);
      while (encoded < std::min(due, num_groups)) encoders.Forward(encoded++, &works);
    }
    works.insert(works.end(), order[rank].begin() + copied, order[rank].end());
    while (returned < num_groups) encoders.Backward(returned++, &works);
    order[rank] = std::move(works);
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
