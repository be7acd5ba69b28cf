#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "parallel/schedule/verify_parts.h"
#include "parallel/schedule/work.h"

namespace omni::parallel {
namespace {

class Rendezvous {
 public:
  Rendezvous(const ScheduleOptions& options, const std::vector<Program>& programs,
             const TransferTable& table, bool merged)
      : options_(options), programs_(programs), table_(table), merged_(merged), events_(options) {
    FillQueues();
    arrived_.assign(events_.count(), 0);
    // Rows that come from elsewhere; a forward has checked its own rank's before.
    rows_missing_.assign(options.encoders.empty() ? 0 : options.num_groups(), 0);
    for (const TransferTable::End& end : table.ends) {
      const Action& action = programs[end.rank][end.action];
      if (action.kind == ActionKind::kRecv && action.payload == Payload::kRows) {
        ++rows_missing_[action.microbatch];
      }
    }
    for (size_t group = 0; group < rows_missing_.size(); ++group) {
      if (rows_missing_[group] == 0) arrived_[events_.Rows(static_cast<int32_t>(group))] = 1;
    }
    row_grads_.assign(options.ranks * options.encoders.size() * options.num_groups(), 0);
    is_cross_.assign(options.num_chunks() + 1, false);
    for (int32_t chunk = 1; chunk < options.num_chunks(); ++chunk) {
      is_cross_[chunk] = options.RankOf(chunk) != options.RankOf(chunk - 1);
    }
    first_ = options.RankOf(0);
    next_.assign(options.ranks, 0);
    posted_.assign(table.begins.begin(), table.begins.end() - 1);
  }

  absl::Status Run() {
    for (int32_t rank = options_.ranks - 1; rank >= 0; --rank) ready_.push_back(rank);
    is_ready_.assign(options_.ranks, true);
    while (!ready_.empty()) {
      const int32_t rank = ready_.back();
      ready_.pop_back();
      is_ready_[rank] = false;
      Advance(rank);
    }
    if (num_complete_ == static_cast<int64_t>(table_.ends.size())) return absl::OkStatus();
    return Deadlock();
  }

 private:
  // Ends [head, group_end) of its list are at the head together; `left` of them are not complete.
  struct Queue {
    int32_t head = 0, group_end = 0, end = 0, left = 0;
  };

  int32_t QueueOf(int32_t rank, const Action& action) const {
    if (merged_) return rank;
    return (rank * options_.ranks + action.peer) * 4 + static_cast<int32_t>(action.payload) - 1;
  }
  const Action& ActionOf(int32_t end) const {
    return programs_[table_.ends[end].rank][table_.ends[end].action];
  }

  void FillQueues() {
    const auto num_ends = static_cast<int32_t>(table_.ends.size());
    queues_.resize(merged_ ? options_.ranks : options_.ranks * options_.ranks * 4);
    queue_of_.resize(num_ends);
    place_.resize(num_ends);
    listed_.resize(num_ends);
    complete_.assign(num_ends, 0);
    for (int32_t end = 0; end < num_ends; ++end) {
      queue_of_[end] = QueueOf(table_.ends[end].rank, ActionOf(end));
      ++queues_[queue_of_[end]].end;
    }
    int32_t begin = 0;
    for (Queue& queue : queues_) {
      queue.head = queue.group_end = begin;
      begin += queue.end;
      queue.end = queue.head;  // grows back below
    }
    for (int32_t end = 0; end < num_ends; ++end) {
      place_[end] = queues_[queue_of_[end]].end++;
      listed_[place_[end]] = end;
    }
    for (Queue& queue : queues_) NextGroup(&queue);
  }

  void NextGroup(Queue* queue) {
    queue->head = queue->group_end;
    if (queue->head == queue->end) return;
    const int32_t slot = table_.ends[listed_[queue->head]].slot;
    while (queue->group_end < queue->end && table_.ends[listed_[queue->group_end]].slot == slot) {
      ++queue->group_end;
    }
    queue->left = queue->group_end - queue->head;
  }

  bool IsPosted(int32_t end) const { return end < posted_[table_.ends[end].rank]; }
  bool IsAtHead(int32_t end) const {
    const Queue& queue = queues_[queue_of_[end]];
    return place_[end] >= queue.head && place_[end] < queue.group_end;
  }

  // Completes `end` and whatever can be completed after it.
  void Try(int32_t first) {
    tried_.push_back(first);
    while (!tried_.empty()) {
      const int32_t end = tried_.back(), other = table_.ends[end].counterpart;
      tried_.pop_back();
      if (complete_[end] || !IsPosted(end) || !IsAtHead(end) || !IsPosted(other) ||
          !IsAtHead(other)) {
        continue;
      }
      for (const int32_t side : {end, other}) {
        complete_[side] = 1;
        ++num_complete_;
        if (ActionOf(side).kind == ActionKind::kRecv) Arrive(side);
        Queue& queue = queues_[queue_of_[side]];
        if (--queue.left > 0) continue;
        NextGroup(&queue);
        for (int32_t i = queue.head; i < queue.group_end; ++i) tried_.push_back(listed_[i]);
      }
    }
  }

  void Arrive(int32_t end) {
    const Action& action = ActionOf(end);
    const int32_t rank = table_.ends[end].rank;
    switch (action.payload) {
      case Payload::kHidden:
        arrived_[events_.Forward(action.chunk - 1, action.microbatch)] = 1;
        break;
      case Payload::kHiddenGrad:
        arrived_[events_.Backward(action.chunk + 1, action.microbatch)] = 1;
        break;
      case Payload::kRows:
        if (--rows_missing_[action.microbatch] > 0) return;
        arrived_[events_.Rows(action.microbatch)] = 1;
        break;
      default:
        row_grads_[RowGradsIndex(rank, action)] = 1;
    }
    if (!is_ready_[rank]) ready_.push_back(rank);
    is_ready_[rank] = true;
  }
  int64_t RowGradsIndex(int32_t rank, const Action& action) const {
    return (int64_t{rank} * static_cast<int64_t>(options_.encoders.size()) + action.encoder) *
               options_.num_groups() +
           action.microbatch;
  }

  // It needs something that has yet to be received.
  bool Waits(int32_t rank, const Action& action) const {
    switch (action.kind) {
      case ActionKind::kForward:
        if (action.chunk > 0) {
          return is_cross_[action.chunk] &&
                 !arrived_[events_.Forward(action.chunk - 1, action.microbatch)];
        }
        return !options_.encoders.empty() &&
               !arrived_[events_.Rows(options_.GroupOf(action.microbatch))];
      case ActionKind::kBackward:
      case ActionKind::kBackwardInput:
        return is_cross_[action.chunk + 1] &&
               !arrived_[events_.Backward(action.chunk + 1, action.microbatch)];
      case ActionKind::kEncodeBackward:
        return rank != first_ && !row_grads_[RowGradsIndex(rank, action)];
      default:
        return false;
    }
  }

  void Advance(int32_t rank) {
    const Program& program = programs_[rank];
    for (size_t& i = next_[rank]; i < program.size(); ++i) {
      if (!program[i].is_transfer()) {
        if (Waits(rank, program[i])) return;
        continue;
      }
      const int32_t first = posted_[rank], slot = table_.ends[first].slot;
      int32_t& posted = posted_[rank];
      while (posted < table_.begins[rank + 1] && table_.ends[posted].slot == slot) ++posted;
      i = table_.ends[posted - 1].action;
      for (int32_t end = first; end < posted; ++end) Try(end);
    }
  }

  // The receive that a rank's next action waits for; or, at the program's end, any of its
  // transfers; -1: it waits for nothing.
  int32_t WaitsFor(int32_t rank) const {
    const bool is_over = next_[rank] == programs_[rank].size();
    for (int32_t end = table_.begins[rank]; end < posted_[rank]; ++end) {
      if (complete_[end]) continue;
      if (is_over) return end;
      const Action& action = programs_[rank][next_[rank]];
      const Action& transfer = ActionOf(end);
      if (transfer.kind != ActionKind::kRecv) continue;
      bool is_it = false;
      switch (transfer.payload) {
        case Payload::kHidden:
          is_it = action.kind == ActionKind::kForward && action.chunk == transfer.chunk &&
                  action.microbatch == transfer.microbatch;
          break;
        case Payload::kHiddenGrad:
          is_it = action.kind != ActionKind::kForward && action.chunk == transfer.chunk &&
                  action.microbatch == transfer.microbatch;
          break;
        case Payload::kRows:
          is_it = action.kind == ActionKind::kForward && action.chunk == 0 &&
                  options_.GroupOf(action.microbatch) == transfer.microbatch;
          break;
        default:
          is_it = action.kind == ActionKind::kEncodeBackward &&
                  action.encoder == transfer.encoder && action.microbatch == transfer.microbatch;
      }
      if (is_it) return end;
    }
    return -1;
  }

  // Follows who waits for whom until it comes round: ranks that stand at an action, and ends.
  absl::Status Deadlock() const {
    std::vector<int32_t> seen(options_.ranks + table_.ends.size(), -1);
    std::vector<std::string> steps;
    int32_t node = 0;
    while (WaitsFor(node) < 0) ++node;
    while (seen[node] < 0) {
      seen[node] = static_cast<int32_t>(steps.size());
      if (node < options_.ranks) {
        const size_t next = next_[node];
        const int32_t end = WaitsFor(node);
        steps.push_back(
            absl::StrCat(next < programs_[node].size()
                             ? Where(node, static_cast<int64_t>(next), programs_[node][next])
                             : absl::StrCat("rank ", node, ", at its end,"),
                         " waits for ", ToString(ActionOf(end))));
        node = options_.ranks + end;
        continue;
      }
      const int32_t end = node - options_.ranks, other = table_.ends[end].counterpart;
      if (!IsAtHead(end)) {
        int32_t head = queues_[queue_of_[end]].head;
        while (complete_[listed_[head]]) ++head;
        steps.push_back(absl::StrCat(WhereIs(end), " waits for action ",
                                     table_.ends[listed_[head]].action, " (",
                                     ToString(ActionOf(listed_[head])), ") before it"));
        node = options_.ranks + listed_[head];
      } else if (IsPosted(other)) {
        steps.push_back(absl::StrCat(WhereIs(end), " waits for its counterpart"));
        node = options_.ranks + other;
      } else {
        node = table_.ends[other].rank;
        steps.push_back(
            absl::StrCat(WhereIs(end), " waits for rank ", node, " to come to its counterpart"));
      }
    }
    return absl::FailedPreconditionError(absl::StrCat(
        "deadlock with ",
        merged_ ? "all transfers of a rank in one queue" : "a queue for each channel and peer",
        ": ", absl::StrJoin(steps.begin() + seen[node], steps.end(), "; "),
        "; and so round again"));
  }
  std::string WhereIs(int32_t end) const {
    return Where(table_.ends[end].rank, table_.ends[end].action, ActionOf(end));
  }

  const ScheduleOptions& options_;
  const std::vector<Program>& programs_;
  const TransferTable& table_;
  const bool merged_;
  const Events events_;
  int32_t first_ = 0;  // the rank with chunk 0

  std::vector<Queue> queues_;
  std::vector<int32_t> queue_of_, place_;  // [ends]: place in listed_
  std::vector<int32_t> listed_;            // ends by queue, in order
  std::vector<uint8_t> complete_;          // [ends]
  std::vector<int32_t> posted_;            // [ranks]: ends before this one are
  std::vector<size_t> next_;               // [ranks]: action
  std::vector<uint8_t> arrived_;           // [events]
  std::vector<int32_t> rows_missing_;      // [groups]
  std::vector<uint8_t> row_grads_;         // [ranks][encoders][groups]
  std::vector<bool> is_cross_;             // [chunks]: the chunk before is on another rank
  std::vector<int32_t> ready_, tried_;
  std::vector<bool> is_ready_;
  int64_t num_complete_ = 0;
};

}  // namespace

absl::Status VerifyRendezvous(const ScheduleOptions& options, const std::vector<Program>& programs,
                              const TransferTable& table, bool merged) {
  return Rendezvous(options, programs, table, merged).Run();
}

}  // namespace omni::parallel
