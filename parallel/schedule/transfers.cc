// Where transfers go between the works of a rank.
//
// On the clock of TimeWorks a transfer happens when what it carries is there. Each rank posts all
// that happens between the end of one of its works and the end of its next one in one slot, right
// after the first: sends when they can leave, receives when they are about to be sent. So every
// rank has its transfers in the order of the clock (ties: by sender, encoder, receiver), and the
// earliest transfer that isn't over is always at the head of both its ranks' queues, which get
// there by works that are earlier still: whatever the real times, nothing deadlocks, even if a
// rank has a single queue for all its transfers and an exchange of one. Nor does it where a rank
// stands still until a transfer is over, as it may with rows in rounds: with a single queue all
// that it could do meanwhile helps nobody.
#include <algorithm>
#include <tuple>

#include "parallel/schedule/work.h"

namespace omni::parallel {
namespace {

// A transfer to or from the rank whose program is being woven.
struct Timed {
  int32_t time = 0;
  int32_t sender = 0;
  Action action;

  bool operator<(const Timed& other) const {
    return std::tie(time, sender, action.encoder, action.peer) <
           std::tie(other.time, other.sender, other.action.encoder, other.action.peer);
  }
};

class Weaver {
 public:
  Weaver(const ScheduleOptions& options, const WorkOrder& order, const WorkTimes& times,
         int32_t rank)
      : options_(options), order_(order), times_(times), events_(options), rank_(rank) {}

  Program Weave() {
    CollectHidden();
    CollectRows();
    std::sort(transfers_.begin(), transfers_.end());
    const std::vector<Work>& works = order_[rank_];
    program_.reserve(works.size() + transfers_.size() + 8);
    std::vector<int64_t> works_left(options_.num_chunks(), 0);
    for (const Work& work : works) {
      if (!IsEncoders(work)) ++works_left[work.part];
    }
    std::vector<int32_t> ends_complete;
    for (size_t i = 0; i < works.size(); ++i) {
      if (i == 0) Post(times_.ends[rank_][0]);
      program_.push_back(ToAction(works[i]));
      Post(i + 1 < works.size() ? times_.ends[rank_][i + 1] : INT32_MAX);
      if (!IsEncoders(works[i]) && --works_left[works[i].part] == 0) {
        const int32_t chunk = works[i].part;
        if (chunk == 0 || chunk == options_.num_chunks() - 1) {
          ends_complete.push_back(chunk);
        } else {
          Reduce(chunk, -1);
        }
      }
      if (posted_ < transfers_.size()) continue;
      for (const int32_t chunk : ends_complete) Reduce(chunk, -1);
      ends_complete.clear();
    }
    Post(INT32_MAX);
    End();
    return std::move(program_);
  }

 private:
  static bool IsEncoders(const Work& work) {
    return work.encodes() || work.kind == ActionKind::kEncodeBackward;
  }
  static Action ToAction(const Work& work) {
    Action action{.kind = work.kind, .microbatch = work.index};
    (IsEncoders(work) ? action.encoder : action.chunk) = work.part;
    return action;
  }

  // One slot of all that happens before `time`, but for those that need their own.
  void Post(int32_t time) {
    bool is_open = false;
    while (posted_ < transfers_.size() && transfers_[posted_].time < time) {
      const Action& action = transfers_[posted_++].action;
      const bool stands = StandsAt(options_, action);
      if (is_open && stands) ++slot_;
      program_.push_back(action);
      program_.back().slot = slot_;
      is_open = !stands;
      if (stands) ++slot_;
    }
    if (is_open) ++slot_;
  }

  void Reduce(int32_t chunk, int32_t encoder) {
    program_.push_back({.kind = ActionKind::kReduceGradients,
                        .chunk = static_cast<int16_t>(chunk),
                        .encoder = static_cast<int16_t>(encoder)});
  }

  void End() {
    program_.push_back({.kind = ActionKind::kAgree});
    if (options_.joint != JointKind::kDisaggregated || rank_ >= options_.decoder_ranks()) {
      for (size_t encoder = 0; encoder < options_.encoders.size(); ++encoder) {
        if (options_.encoders[encoder].trains) Reduce(-1, static_cast<int32_t>(encoder));
      }
    }
    program_.push_back({.kind = ActionKind::kUpdate});
    program_.push_back({.kind = ActionKind::kGatherParameters});
  }

  void Add(bool is_send, int32_t time, int32_t peer, Action action) {
    action.kind = is_send ? ActionKind::kSend : ActionKind::kRecv;
    action.peer = static_cast<int16_t>(peer);
    transfers_.push_back({time, is_send ? rank_ : peer, action});
  }

  // Both ways over every border between chunks that this rank has one side of.
  void CollectHidden() {
    const auto border = [&](int32_t chunk, bool is_below, int32_t peer) {
      for (int32_t i = 0; i < options_.microbatches; ++i) {
        Add(!is_below, times_.events[events_.Forward(chunk - 1, i)], peer,
            {.payload = Payload::kHidden, .chunk = static_cast<int16_t>(chunk), .microbatch = i});
        Add(is_below, times_.events[events_.Backward(chunk, i)], peer,
            {.payload = Payload::kHiddenGrad,
             .chunk = static_cast<int16_t>(chunk - 1),
             .microbatch = i});
      }
    };
    transfers_.reserve(4 * int64_t{options_.chunks_per_rank} * options_.microbatches);
    for (int32_t chunk = 1; chunk < options_.num_chunks(); ++chunk) {
      const int32_t above = options_.RankOf(chunk - 1), here = options_.RankOf(chunk);
      if (above == here) continue;
      if (here == rank_) border(chunk, /*is_below=*/true, above);
      if (above == rank_) border(chunk, /*is_below=*/false, here);
    }
  }

  // Rows and their gradients between this rank and that of chunk 0, which may have many peers.
  void CollectRows() {
    const int32_t first = options_.RankOf(0);
    for (int32_t other = 0; other < options_.ranks; ++other) {
      if (other == first || (rank_ != first && rank_ != other)) continue;
      const int32_t peer = rank_ == first ? other : first;
      for (size_t i = 0; i < order_[other].size(); ++i) {
        const Work& work = order_[other][i];
        if (work.encodes()) {
          Add(rank_ == other, times_.ends[other][i], peer,
              {.payload = Payload::kRows, .microbatch = work.index, .encoder = work.part});
        } else if (work.kind == ActionKind::kEncodeBackward) {
          Add(rank_ == first, GradsTime(other, work.index), peer,
              {.payload = Payload::kRowGrads, .microbatch = work.index, .encoder = work.part});
        }
      }
    }
  }

  // When row gradients of a group go to `other`: as soon as they are there. One that has to stand
  // by while they arrive first ends what it is doing; what it does next needs them at the earliest.
  int32_t GradsTime(int32_t other, int32_t group) const {
    const int32_t ready = times_.events[events_.RowGrads(group)];
    if (!options_.row_rounds) return ready;
    const std::vector<int32_t>& ends = times_.ends[other];
    const auto next = std::upper_bound(ends.begin(), ends.end(), ready);
    if (next == ends.end()) return ready;
    const int32_t begin = *next - NominalTime(order_[other][next - ends.begin()].kind);
    return begin < ready ? *next : ready;
  }

  const ScheduleOptions& options_;
  const WorkOrder& order_;
  const WorkTimes& times_;
  const Events events_;
  const int32_t rank_;
  std::vector<Timed> transfers_;
  size_t posted_ = 0;
  int32_t slot_ = 0;
  Program program_;
};

}  // namespace

bool StandsAt(const ScheduleOptions& options, const Action& action) {
  return options.row_rounds &&
         ((action.kind == ActionKind::kSend && action.payload == Payload::kRows) ||
          (action.kind == ActionKind::kRecv && action.payload == Payload::kRowGrads));
}

Program WeaveTransfers(const ScheduleOptions& options, const WorkOrder& order,
                       const WorkTimes& times, int32_t rank) {
  return Weaver(options, order, times, rank).Weave();
}

}  // namespace omni::parallel
