// Where other systems put their encoders, for comparisons on the same engine.
#include <algorithm>
#include <optional>

#include "parallel/schedule/work.h"

namespace omni::parallel {
namespace {

// The encoders' works that go with the order of chunk 0's rank: before the forward of a group's
// first microbatch the encoding of the one `ahead` of it, after its last backward its own backward.
// `keep_base`: in between, that order.
std::vector<Work> AlongFirst(const ScheduleOptions& options, const std::vector<Work>& base,
                             int32_t ahead, bool keep_base) {
  const EncoderWriter encoders(options);
  std::vector<Work> works;
  int32_t encoded = 0;
  for (const Work& work : base) {
    const int32_t group = options.GroupOf(work.index);
    if (work.kind == ActionKind::kForward && work.part == 0) {
      const int64_t due = std::min<int64_t>(int64_t{group} + ahead + 1, options.num_groups());
      while (encoded < due) encoders.Forward(encoded++, &works);
    }
    if (keep_base) works.push_back(work);
    if (work.is_backward() && work.part == 0 && work.index == options.LastOf(group)) {
      encoders.Backward(group, &works);
    }
  }
  return works;
}

// Free time between the works of a rank, on the clock of a decoder without encoders.
class Bubbles {
 public:
  Bubbles(const std::vector<Work>& works, const std::vector<int32_t>& ends) {
    for (size_t i = 0; i < works.size(); ++i) {
      const int32_t begin = ends[i] - NominalTime(works[i].kind);
      const int32_t free = i == 0 ? 0 : ends[i - 1];
      if (begin > free) bubbles_.push_back({i, free, begin});
    }
  }

  int32_t first_begin() const {
    return bubbles_.empty() || bubbles_[0].work > 0 ? 0 : bubbles_[0].end;
  }
  // When something of this length that can't start before `from` would end in the first bubble
  // inside the step (not before its first work) that has room for it.
  std::optional<int32_t> Find(int32_t from, int32_t length) const {
    for (const Bubble& bubble : bubbles_) {
      const int32_t end = std::max(from, bubble.begin) + length;
      if (bubble.work > 0 && end <= bubble.end) return end;
    }
    return std::nullopt;
  }
  // Takes that time; the work it comes before.
  size_t Take(int32_t end, int32_t length) {
    for (Bubble& bubble : bubbles_) {
      if (bubble.work == 0 || end - length < bubble.begin || end > bubble.end) continue;
      bubble.begin = end;
      return bubble.work;
    }
    OMNI_CHECK(false);
    return 0;
  }

 private:
  struct Bubble {
    size_t work = 0;  // index of what it lies before
    int32_t begin = 0, end = 0;
  };
  std::vector<Bubble> bubbles_;
};

}  // namespace

// Megatron-LM: the encoders belong to the first stage.
WorkOrder FirstStageOrder(const ScheduleOptions& options) {
  WorkOrder order = DecoderOrder(options);
  std::vector<Work>& first = order[options.RankOf(0)];
  first = AlongFirst(options, first, 0, /*keep_base=*/true);
  return order;
}

// DistTrain: ranks of their own go along with chunk 0 as a stage above it would.
WorkOrder DisaggregatedOrder(const ScheduleOptions& options) {
  WorkOrder order = DecoderOrder(options);
  const std::vector<Work> works =
      AlongFirst(options, order[options.RankOf(0)], options.groups_ahead, /*keep_base=*/false);
  for (int32_t rank = options.decoder_ranks(); rank < options.ranks; ++rank) order[rank] = works;
  return order;
}

// Optimus: each group on one rank, where a bubble has room for it before it is needed. What finds
// none is encoded before the step, on ranks in the order in which that delays it least: late ones,
// which start late, get more. Backwards take the first bubble after their gradients, or the end.
WorkOrder AggressiveOrder(const ScheduleOptions& options) {
  ScheduleOptions decoder = options;
  decoder.encoders.clear();
  const WorkOrder base = DecoderOrder(decoder);
  const WorkTimes times = TimeWorks(decoder, base);
  const EncoderWriter encoders(options);
  const Events events(decoder);
  std::vector<Work> scratch;
  const auto length = [&](const auto& write) {
    scratch.clear();
    write(&scratch);
    int32_t sum = 0;
    for (const Work& work : scratch) sum += NominalTime(work.kind);
    return sum;
  };
  const int32_t forward = length([&](std::vector<Work>* out) { encoders.Forward(0, out); });
  const int32_t backward = length([&](std::vector<Work>* out) { encoders.Backward(0, out); });

  struct Share {
    int32_t group = 0;
    bool is_backward = false;
  };
  struct Rank {
    Bubbles bubbles;
    int32_t before = 0;                           // time encoded before its first work
    std::vector<std::vector<Share>> shares = {};  // [works + 1]: what comes before it, in order
  };
  std::vector<Rank> ranks;
  for (int32_t rank = 0; rank < options.ranks; ++rank) {
    ranks.push_back({Bubbles(base[rank], times.ends[rank])});
    ranks.back().shares.resize(base[rank].size() + 1);
  }
  int32_t delay = 0;  // of the decoder's first forward
  for (int32_t group = 0; group < options.num_groups(); ++group) {
    const int32_t first = events.Forward(0, options.FirstOf(group));
    const int32_t needed = times.events[first] - NominalTime(ActionKind::kForward);
    // Before the step: the delay it would cause, on the last rank of the best ones.
    int32_t best_rank = 0, best_delay = INT32_MAX;
    int32_t inside_rank = -1, inside_end = needed + 1;
    for (int32_t rank = 0; rank < options.ranks; ++rank) {
      const Rank& here = ranks[rank];
      const int32_t end = here.before + forward;
      const int32_t due = std::min(here.bubbles.first_begin(), needed);
      if (std::max(delay, end - due) <= best_delay) {
        best_delay = std::max(delay, end - due);
        best_rank = rank;
      }
      const auto inside = here.bubbles.Find(0, forward);
      if (inside.has_value() && *inside < inside_end) {
        inside_end = *inside;
        inside_rank = rank;
      }
    }
    int32_t chosen = best_rank;
    size_t before = 0;
    if (best_delay > delay && inside_rank >= 0) {
      chosen = inside_rank;
      before = ranks[chosen].bubbles.Take(inside_end, forward);
    } else {
      ranks[chosen].before += forward;
      delay = best_delay;
    }
    ranks[chosen].shares[before].push_back({group, false});
    if (backward == 0) continue;
    const int32_t ready = times.events[events.Backward(0, options.LastOf(group))];
    const auto inside = ranks[chosen].bubbles.Find(ready, backward);
    before =
        inside.has_value() ? ranks[chosen].bubbles.Take(*inside, backward) : base[chosen].size();
    ranks[chosen].shares[before].push_back({group, true});
  }

  WorkOrder order(options.ranks);
  for (int32_t rank = 0; rank < options.ranks; ++rank) {
    std::vector<Work>& works = order[rank];
    for (size_t i = 0; i <= base[rank].size(); ++i) {
      for (const Share& share : ranks[rank].shares[i]) {
        share.is_backward ? encoders.Backward(share.group, &works)
                          : encoders.Forward(share.group, &works);
      }
      if (i == base[rank].size()) break;
      works.push_back(base[rank][i]);
    }
  }
  return order;
}

}  // namespace omni::parallel
