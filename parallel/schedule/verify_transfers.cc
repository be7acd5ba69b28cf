#include "absl/strings/str_cat.h"
#include "parallel/schedule/verify_parts.h"

namespace omni::parallel {
namespace {

// A number for what is transferred, the same at both ends.
class TransferIds {
 public:
  explicit TransferIds(const ScheduleOptions& options)
      : chunks_(options.num_chunks()),
        microbatches_(options.microbatches),
        groups_(options.num_groups()),
        ranks_(options.ranks),
        encoders_(static_cast<int64_t>(options.encoders.size())) {}

  int64_t Of(int32_t rank, const Action& action) const {
    const int64_t hidden = int64_t{action.chunk} * microbatches_ + action.microbatch;
    // Of the two ranks the one that encodes.
    const bool is_encoders =
        (action.kind == ActionKind::kSend) == (action.payload == Payload::kRows);
    const int64_t rows = (int64_t{action.encoder} * groups_ + action.microbatch) * ranks_ +
                         (is_encoders ? rank : action.peer);
    switch (action.payload) {
      case Payload::kHidden:
        return hidden;
      case Payload::kHiddenGrad:
        return chunks_ * microbatches_ + hidden;
      case Payload::kRows:
        return 2 * chunks_ * microbatches_ + rows;
      default:
        return 2 * chunks_ * microbatches_ + encoders_ * groups_ * ranks_ + rows;
    }
  }
  int64_t count() const { return 2 * chunks_ * microbatches_ + 2 * encoders_ * groups_ * ranks_; }

 private:
  int64_t chunks_, microbatches_, groups_, ranks_, encoders_;
};

Action Counterpart(int32_t rank, Action action) {
  action.kind = action.kind == ActionKind::kSend ? ActionKind::kRecv : ActionKind::kSend;
  action.peer = static_cast<int16_t>(rank);
  return action;
}

}  // namespace

absl::Status MatchTransfers(const ScheduleOptions& options, const std::vector<Program>& programs,
                            TransferTable* table) {
  const TransferIds ids(options);
  std::vector<int32_t> unmatched(ids.count(), -1);  // the end seen first
  std::vector<int32_t> numbers;                     // [ends]: on its way over its channel
  table->begins.assign(1, 0);
  for (int32_t rank = 0; rank < options.ranks; ++rank) {
    const Program& program = programs[rank];
    std::vector<int32_t> next(options.ranks * 16, 0);  // by peer, payload, direction
    int32_t slot = -1;
    for (size_t i = 0; i < program.size(); ++i) {
      const Action& action = program[i];
      if (!action.is_transfer()) continue;
      const bool joins = i > 0 && program[i - 1].is_transfer() && action.slot >= 0 &&
                         action.slot == program[i - 1].slot;
      if (!joins) ++slot;
      const auto end = static_cast<int32_t>(table->ends.size());
      table->ends.push_back({rank, static_cast<int32_t>(i), -1, slot});
      numbers.push_back(next[action.peer * 16 + static_cast<int32_t>(action.payload) * 2 +
                             (action.kind == ActionKind::kSend ? 1 : 0)]++);
      int32_t& other = unmatched[ids.Of(rank, action)];
      if (other < 0) {
        other = end;
      } else {
        table->ends[end].counterpart = other;
        table->ends[other].counterpart = end;
        other = -1;
      }
    }
    table->begins.push_back(static_cast<int32_t>(table->ends.size()));
  }
  for (const TransferTable::End& end : table->ends) {
    if (end.counterpart >= 0) continue;
    const Action& action = programs[end.rank][end.action];
    return ActionError(end.rank, end.action, action,
                       absl::StrCat("its counterpart, ", ToString(Counterpart(end.rank, action)),
                                    ", never comes on rank ", action.peer));
  }
  for (size_t i = 0; i < table->ends.size(); ++i) {
    const TransferTable::End& end = table->ends[i];
    if (numbers[i] == numbers[end.counterpart]) continue;
    const TransferTable::End& other = table->ends[end.counterpart];
    return ActionError(
        end.rank, end.action, programs[end.rank][end.action],
        absl::StrCat("is number ", numbers[i], " on its channel, but its counterpart, ",
                     Where(other.rank, other.action, programs[other.rank][other.action]),
                     ", is number ", numbers[end.counterpart]));
  }
  return absl::OkStatus();
}

}  // namespace omni::parallel
