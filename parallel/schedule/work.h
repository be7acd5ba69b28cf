// What builders share: the compute of every rank in order, before transfers are woven in, and a
// clock over it. Internal to build.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "parallel/schedule/build.h"
#include "parallel/schedule/program.h"
#include "runtime/base/check.h"

namespace omni::parallel {

// One compute action. `part`: the chunk or encoder; `index`: the microbatch or group.
struct Work {
  ActionKind kind = ActionKind::kForward;
  int16_t part = 0;
  int32_t index = 0;

  bool encodes() const {
    return kind == ActionKind::kEncodeForward || kind == ActionKind::kEncodeOnly;
  }
  // It gives the gradients of a chunk's inputs.
  bool is_backward() const {
    return kind == ActionKind::kBackward || kind == ActionKind::kBackwardInput;
  }
};
static_assert(sizeof(Work) == 8);

using WorkOrder = std::vector<std::vector<Work>>;  // [ranks]

// Numbers for what works give to others: a chunk's output or input gradient of a microbatch, all
// rows of a group, the gradients of all of them. Without encoders the last two do not exist.
class Events {
 public:
  explicit Events(const ScheduleOptions& options)
      : has_encoders_(!options.encoders.empty()),
        chunks_(options.num_chunks()),
        microbatches_(options.microbatches),
        group_size_(options.group_size()),
        num_groups_(has_encoders_ ? options.num_groups() : 0) {}

  int32_t Forward(int32_t chunk, int32_t microbatch) const {
    return chunk * microbatches_ + microbatch;
  }
  int32_t Backward(int32_t chunk, int32_t microbatch) const {
    return (chunks_ + chunk) * microbatches_ + microbatch;
  }
  int32_t Rows(int32_t group) const { return Backward(chunks_, 0) + group; }
  int32_t RowGrads(int32_t group) const { return Rows(num_groups_) + group; }
  int32_t count() const { return RowGrads(num_groups_); }
  int32_t first_of_groups() const { return Rows(0); }

  // What a work waits for, beside its predecessor on the rank; -1: nothing.
  int32_t NeededBy(const Work& work) const {
    switch (work.kind) {
      case ActionKind::kForward:
        if (work.part > 0) return Forward(work.part - 1, work.index);
        return has_encoders_ ? Rows(work.index / group_size_) : -1;
      case ActionKind::kBackward:
      case ActionKind::kBackwardInput:
        return work.part + 1 < chunks_ ? Backward(work.part + 1, work.index) : -1;
      case ActionKind::kEncodeBackward:
        return RowGrads(work.index);
      default:
        return -1;
    }
  }
  // What it gives, alone or with others; -1: nothing.
  int32_t GivenBy(const Work& work) const {
    switch (work.kind) {
      case ActionKind::kForward:
        return Forward(work.part, work.index);
      case ActionKind::kBackward:
      case ActionKind::kBackwardInput:
        return work.part == 0 && has_encoders_ ? RowGrads(work.index / group_size_)
                                               : Backward(work.part, work.index);
      case ActionKind::kEncodeForward:
      case ActionKind::kEncodeOnly:
        return Rows(work.index);
      default:
        return -1;
    }
  }

 private:
  bool has_encoders_;
  int32_t chunks_, microbatches_, group_size_, num_groups_;
};

// Visits every work after its predecessor on the rank and all that give the event it needs; the
// order must allow that. give(rank, work, needed) returns what the work gives its event, >= 0;
// `needed` is what the event it needs was given (the most, of what several works give), 0 if it
// needs none. Returns what all events were given.
template <typename Give>
std::vector<int32_t> VisitWorks(const ScheduleOptions& options, const WorkOrder& order,
                                Give&& give) {
  const Events events(options);
  const auto num_ranks = static_cast<int32_t>(order.size());
  const int32_t groups_begin = events.first_of_groups();
  struct Group {
    int32_t missing = 0, most = 0;  // works that have yet to give; what others have
  };
  std::vector<Group> groups(events.count() - groups_begin);
  size_t num_works = 0;
  for (const auto& works : order) {
    num_works += works.size();
    if (groups.empty()) continue;
    for (const Work& work : works) {
      const int32_t given = events.GivenBy(work) - groups_begin;
      if (given >= 0) ++groups[given].missing;
    }
  }
  std::vector<int32_t> values(events.count(), -1);  // -1: not given yet
  struct Rank {
    const Work* next = nullptr;
    const Work* end = nullptr;
    int32_t waits_for = -1;
  };
  std::vector<Rank> ranks(num_ranks);
  std::vector<int32_t> holders(options.num_chunks()), ready;
  for (int32_t chunk = 0; chunk < options.num_chunks(); ++chunk) {
    holders[chunk] = options.RankOf(chunk);
  }
  for (int32_t rank = num_ranks - 1; rank >= 0; --rank) {
    ranks[rank] = {order[rank].data(), order[rank].data() + order[rank].size()};
    ready.push_back(rank);
  }
  const auto wake = [&](int32_t rank, int32_t event) {
    if (ranks[rank].waits_for != event) return;
    ranks[rank].waits_for = -1;
    ready.push_back(rank);
  };
  size_t visited = 0;
  while (!ready.empty()) {
    const int32_t rank = ready.back();
    ready.pop_back();
    Rank& here = ranks[rank];
    for (; here.next != here.end; ++here.next, ++visited) {
      const Work work = *here.next;
      const int32_t needed = events.NeededBy(work), given = events.GivenBy(work);
      const int32_t value = needed < 0 ? 0 : values[needed];
      if (value < 0) {
        here.waits_for = needed;
        break;
      }
      const int32_t result = give(rank, work, value);
      if (given < 0) continue;
      if (given >= groups_begin) {
        Group& group = groups[given - groups_begin];
        group.most = std::max(group.most, result);
        if (--group.missing > 0) continue;
        values[given] = group.most;
        for (int32_t other = 0; other < num_ranks; ++other) wake(other, given);
        continue;
      }
      values[given] = result;
      const int32_t user = work.kind == ActionKind::kForward ? work.part + 1 : work.part - 1;
      if (user >= 0 && user < options.num_chunks()) wake(holders[user], given);
    }
  }
  OMNI_CHECK_EQ(visited, num_works);  // or a builder made a cycle
  return values;
}

// When everything ends if nothing but works takes time, and they nominal times: forward, both
// halves of backward and encoding take the same.
struct WorkTimes {
  std::vector<std::vector<int32_t>> ends;  // [ranks][works]
  std::vector<int32_t> events;             // when each was given
};
int32_t NominalTime(ActionKind kind);
WorkTimes TimeWorks(const ScheduleOptions& options, const WorkOrder& order);

// The decoder's works of a rank, without encoders (base_order.cc).
std::vector<Work> BaseOrder(const ScheduleOptions& options, int32_t rank);

// The same of all ranks; those without chunks have none.
WorkOrder DecoderOrder(const ScheduleOptions& options);

// All works of all ranks (joint_order.cc), those of rivals from rival_orders.cc.
WorkOrder JointOrder(const ScheduleOptions& options);
WorkOrder FirstStageOrder(const ScheduleOptions& options);
WorkOrder AggressiveOrder(const ScheduleOptions& options);
WorkOrder DisaggregatedOrder(const ScheduleOptions& options);

// Appends what one rank does for a group: all encoders, all that train.
class EncoderWriter {
 public:
  explicit EncoderWriter(const ScheduleOptions& options) : options_(options) {}
  void Forward(int32_t group, std::vector<Work>* out) const;
  void Backward(int32_t group, std::vector<Work>* out) const;

 private:
  const ScheduleOptions& options_;
};

// A rank may stay at this transfer until it is over: rows in rounds, where they are encoded.
bool StandsAt(const ScheduleOptions& options, const Action& action);

// Adds transfers and the end of the step to the works of a rank (transfers.cc).
Program WeaveTransfers(const ScheduleOptions& options, const WorkOrder& order,
                       const WorkTimes& times, int32_t rank);

}  // namespace omni::parallel
