#include "parallel/schedule/replay.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"

namespace omni::parallel {
namespace {

constexpr double kNever = -1;  // arrivals are times, and times begin at 0

bool IsTransfer(ActionKind kind) { return kind == ActionKind::kSend || kind == ActionKind::kRecv; }

// Keeps the rank busy: computing or updating, not communication.
bool IsWork(ActionKind kind) {
  return !IsTransfer(kind) && kind != ActionKind::kReduceGradients && kind != ActionKind::kAgree &&
         kind != ActionKind::kGatherParameters;
}

bool OfEncoder(const Action& action) {
  return action.kind == ActionKind::kEncodeForward || action.kind == ActionKind::kEncodeOnly ||
         action.kind == ActionKind::kEncodeBackward || action.payload == Payload::kRows ||
         action.payload == Payload::kRowGrads;
}

bool OfChunk(const Action& action) {
  return action.kind == ActionKind::kForward || action.kind == ActionKind::kBackward ||
         action.kind == ActionKind::kBackwardInput || action.kind == ActionKind::kWeightGrad ||
         action.payload == Payload::kHidden || action.payload == Payload::kHiddenGrad;
}

// The transfers of one payload from one rank to another: the n-th send meets the n-th receive.
struct Channel {
  struct Post {
    double posted = 0;
    double duration = 0;  // of sends
    int32_t index = 0;    // in the rank's program
  };
  std::vector<Post> sends, recvs;
  size_t num_met = 0;
  double last_arrival = 0;
};

// What keeps a rank's data until its backward, counted in program order.
class LiveCount {
 public:
  explicit LiveCount(const ScheduleOptions& options)
      : options_(options), encodings_(options.num_groups(), 0) {}

  void Begin(const Action& action) {
    if (action.kind == ActionKind::kForward || action.kind == ActionKind::kForwardBackward) {
      ++activations_;
    }
    if (action.kind == ActionKind::kEncodeForward && options_.encoders[action.encoder].trains) {
      if (encodings_[action.microbatch]++ == 0) ++groups_;
    }
    // One that was encoded without keeping comes to life again while it goes back.
    const bool again =
        action.kind == ActionKind::kEncodeBackward && encodings_[action.microbatch] == 0;
    activations_max_ = std::max(activations_max_, activations_);
    groups_max_ = std::max(groups_max_, groups_ + (again ? 1 : 0));
  }
  void End(const Action& action) {
    if (action.kind == ActionKind::kBackward || action.kind == ActionKind::kWeightGrad ||
        action.kind == ActionKind::kForwardBackward) {
      --activations_;
    }
    if (action.kind == ActionKind::kEncodeBackward && encodings_[action.microbatch] > 0) {
      if (--encodings_[action.microbatch] == 0) --groups_;
    }
  }
  int32_t activations_max() const { return activations_max_; }
  int32_t groups_max() const { return groups_max_; }

 private:
  const ScheduleOptions& options_;
  std::vector<int16_t> encodings_;  // [groups]: encoders whose backward of the group is to come
  int32_t activations_ = 0, activations_max_ = 0;
  int32_t groups_ = 0, groups_max_ = 0;
};

// Where one rank stands and what has reached it.
struct Rank {
  Rank(const ScheduleOptions& options, int32_t rank) : live(options) {
    local_chunk.assign(options.num_chunks(), -1);
    const std::vector<int32_t> chunks = options.ChunksOf(rank);
    for (size_t i = 0; i < chunks.size(); ++i) local_chunk[chunks[i]] = static_cast<int32_t>(i);
    hidden.assign(chunks.size() * options.microbatches, kNever);
    hidden_grads = hidden;
    if (!chunks.empty() && chunks.front() == 0) {
      rows.assign(options.encoders.size() * options.num_groups(), {});
    }
    row_grads.assign(options.encoders.size() * options.num_groups(), kNever);
  }

  struct Rows {
    int32_t pending = 0;  // posted, not arrived
    double arrival = 0;   // of the last
  };
  double clock = 0;
  size_t next = 0;      // action
  bool queued = false;  // in ready_
  bool at_barrier = false, released = false;
  std::vector<int32_t> local_chunk;          // [chunks]: index among this rank's, or -1
  std::vector<double> hidden, hidden_grads;  // [local chunks x microbatches]: arrival
  std::vector<Rows> rows;                    // [encoders x groups]
  std::vector<double> row_grads;             // [encoders x groups]: arrival
  LiveCount live;
};

class Simulation {
 public:
  Simulation(const ScheduleOptions& options, const std::vector<Program>& programs,
             const ActionTime& time)
      : options_(options), programs_(programs), time_(time) {
    const size_t ranks = programs.size();
    channels_.resize(4 * ranks * ranks);
    result_.busy.assign(ranks, 0);
    result_.timeline.resize(ranks);
    for (size_t i = 0; i < ranks; ++i) {
      ranks_.emplace_back(options, static_cast<int32_t>(i));
      result_.timeline[i].resize(programs[i].size());
    }
  }

  // Time flows along dependencies only: a rank runs until what it needs has no known arrival, and
  // goes on when it has. No queue of events is needed.
  absl::StatusOr<ReplayResult> Run() {
    for (size_t rank = 0; rank < programs_.size(); ++rank) {
      for (size_t i = 0; i < programs_[rank].size(); ++i) {
        OMNI_RETURN_IF_ERROR(CheckFields(static_cast<int32_t>(rank), i));
      }
    }
    for (size_t i = ranks_.size(); i-- > 0;) Wake(static_cast<int32_t>(i));
    while (!ready_.empty()) {
      const int32_t rank = ready_.back();
      ready_.pop_back();
      ranks_[rank].queued = false;
      OMNI_RETURN_IF_ERROR(Advance(rank));
    }
    OMNI_RETURN_IF_ERROR(CheckDone());
    for (size_t i = 0; i < ranks_.size(); ++i) {
      result_.step_time = std::max(result_.step_time, ranks_[i].clock);
      result_.live_activations_max.push_back(ranks_[i].live.activations_max());
      result_.live_groups_max.push_back(ranks_[i].live.groups_max());
    }
    return std::move(result_);
  }

 private:
  std::string Where(int32_t rank, size_t index) const {
    return absl::StrCat("rank ", rank, " action ", index, " (", ToString(programs_[rank][index]),
                        ")");
  }

  // What would lead out of a table.
  absl::Status CheckFields(int32_t rank, size_t index) const {
    const Action& action = programs_[rank][index];
    const auto Fail = [&](absl::string_view what, int32_t found, int32_t end) {
      return absl::FailedPreconditionError(absl::StrCat(Where(rank, index), ": found ", what, " ",
                                                        found, ", expected 0 to ", end - 1));
    };
    const auto Within = [](int32_t value, int32_t end) { return value >= 0 && value < end; };
    const auto num_ranks = static_cast<int32_t>(programs_.size());
    if (IsTransfer(action.kind)) {
      if (!Within(action.peer, num_ranks)) return Fail("peer", action.peer, num_ranks);
      if (action.payload == Payload::kNone) {
        return absl::FailedPreconditionError(absl::StrCat(Where(rank, index), ": has no payload"));
      }
    }
    if (OfEncoder(action)) {
      const auto encoders = static_cast<int32_t>(options_.encoders.size());
      if (!Within(action.encoder, encoders)) return Fail("encoder", action.encoder, encoders);
      if (!Within(action.microbatch, options_.num_groups())) {
        return Fail("group", action.microbatch, options_.num_groups());
      }
    }
    if (OfChunk(action)) {
      if (!Within(action.chunk, options_.num_chunks())) {
        return Fail("chunk", action.chunk, options_.num_chunks());
      }
      if (!Within(action.microbatch, options_.microbatches)) {
        return Fail("microbatch", action.microbatch, options_.microbatches);
      }
    }
    // Chunks are on the rank that computes them; so is chunk 0 where rows arrive.
    const bool lands = OfChunk(action) && action.kind != ActionKind::kSend;
    const bool reads_rows = action.kind == ActionKind::kRecv && action.payload == Payload::kRows;
    const int32_t chunk = reads_rows ? 0 : action.chunk;
    if ((lands || reads_rows) && ranks_[rank].local_chunk[chunk] < 0) {
      return absl::FailedPreconditionError(absl::StrCat(Where(rank, index), ": chunk ", chunk,
                                                        " is on rank ", options_.RankOf(chunk)));
    }
    return absl::OkStatus();
  }

  void Wake(int32_t rank) {
    if (ranks_[rank].queued) return;
    ranks_[rank].queued = true;
    ready_.push_back(rank);
  }

  absl::Status Advance(int32_t rank) {
    Rank& self = ranks_[rank];
    const Program& program = programs_[rank];
    while (self.next < program.size()) {
      const Action& action = program[self.next];
      if (IsTransfer(action.kind)) {
        OMNI_RETURN_IF_ERROR(PostTransfer(rank));
        ++self.next;
        continue;
      }
      if (action.kind == ActionKind::kAgree && !PassBarrier(rank)) return absl::OkStatus();
      double inputs = kNever;
      if (!InputsKnown(rank, action, &inputs)) return absl::OkStatus();
      const double duration = time_(rank, action);
      TimedAction& timed = result_.timeline[rank][self.next];
      timed = {action, std::max(self.clock, inputs), 0};
      timed.end = timed.begin + duration;
      self.clock = timed.end;
      if (IsWork(action.kind)) result_.busy[rank] += duration;
      self.live.Begin(action);
      self.live.End(action);
      ++self.next;
    }
    return absl::OkStatus();
  }

  // Whether all ranks have come to the agreement `rank` stands at; their clocks are the latest's.
  bool PassBarrier(int32_t rank) {
    if (ranks_[rank].released) {
      ranks_[rank].released = false;
      return true;
    }
    ranks_[rank].at_barrier = true;
    if (std::any_of(ranks_.begin(), ranks_.end(), [](const Rank& r) { return !r.at_barrier; })) {
      return false;
    }
    double latest = 0;
    for (const Rank& other : ranks_) latest = std::max(latest, other.clock);
    for (size_t i = 0; i < ranks_.size(); ++i) {
      ranks_[i].clock = latest;
      ranks_[i].at_barrier = false;
      ranks_[i].released = static_cast<int32_t>(i) != rank;
      if (ranks_[i].released) Wake(static_cast<int32_t>(i));
    }
    return true;
  }

  // False if `action` needs something whose arrival isn't known yet; else when the last of it is
  // there (kNever if it needs nothing from elsewhere).
  bool InputsKnown(int32_t rank, const Action& action, double* arrival) {
    Rank& self = ranks_[rank];
    const int32_t chunk = action.chunk;
    switch (action.kind) {
      case ActionKind::kForward:
        if (chunk > 0) {
          if (options_.RankOf(chunk - 1) == rank) return true;
          *arrival = self.hidden[Key(self, action)];
          return *arrival != kNever;
        }
        for (size_t encoder = 0; encoder < options_.encoders.size(); ++encoder) {
          const Rank::Rows& rows =
              self.rows[encoder * options_.num_groups() + options_.GroupOf(action.microbatch)];
          if (rows.pending > 0) return false;
          *arrival = std::max(*arrival, rows.arrival);
        }
        return true;
      case ActionKind::kBackward:
      case ActionKind::kBackwardInput:
        if (chunk + 1 == options_.num_chunks() || options_.RankOf(chunk + 1) == rank) return true;
        *arrival = self.hidden_grads[Key(self, action)];
        return *arrival != kNever;
      case ActionKind::kEncodeBackward:
        if (options_.RankOf(0) == rank) return true;
        *arrival = self.row_grads[action.encoder * options_.num_groups() + action.microbatch];
        return *arrival != kNever;
      default:
        return true;
    }
  }

  size_t Key(const Rank& rank, const Action& action) const {
    return static_cast<size_t>(rank.local_chunk[action.chunk]) * options_.microbatches +
           action.microbatch;
  }

  absl::Status PostTransfer(int32_t rank) {
    Rank& self = ranks_[rank];
    const Action& action = programs_[rank][self.next];
    const bool sends = action.kind == ActionKind::kSend;
    const int32_t from = sends ? rank : action.peer, to = sends ? action.peer : rank;
    const size_t payload = static_cast<size_t>(action.payload) - 1;
    Channel& channel = channels_[(payload * ranks_.size() + from) * ranks_.size() + to];
    TimedAction& timed = result_.timeline[rank][self.next];
    timed = {action, self.clock, self.clock};
    const Channel::Post post{self.clock, sends ? time_(rank, action) : 0.0,
                             static_cast<int32_t>(self.next)};
    (sends ? channel.sends : channel.recvs).push_back(post);
    if (!sends && action.payload == Payload::kRows) {
      ++self.rows[action.encoder * options_.num_groups() + action.microbatch].pending;
    }
    if (channel.num_met == std::min(channel.sends.size(), channel.recvs.size())) {
      return absl::OkStatus();
    }
    const Channel::Post& send = channel.sends[channel.num_met];
    const Channel::Post& recv = channel.recvs[channel.num_met];
    ++channel.num_met;
    channel.last_arrival =
        std::max(channel.last_arrival, std::max(send.posted, recv.posted) + send.duration);
    result_.timeline[from][send.index].end = channel.last_arrival;
    result_.timeline[to][recv.index].end = channel.last_arrival;
    return Deliver(from, send.index, to, recv.index, channel.last_arrival);
  }

  absl::Status Deliver(int32_t from, size_t send_index, int32_t to, size_t recv_index,
                       double arrival) {
    const Action& sent = programs_[from][send_index];
    const Action& action = programs_[to][recv_index];
    if (sent.chunk != action.chunk || sent.microbatch != action.microbatch ||
        sent.encoder != action.encoder) {
      return absl::FailedPreconditionError(
          absl::StrCat(Where(to, recv_index), ": meets ", Where(from, send_index)));
    }
    Rank& self = ranks_[to];
    const size_t group = action.encoder * options_.num_groups() + action.microbatch;
    switch (action.payload) {
      case Payload::kHidden:
        self.hidden[Key(self, action)] = arrival;
        break;
      case Payload::kHiddenGrad:
        // It is named by the chunk whose backward consumes it.
        self.hidden_grads[Key(self, action)] = arrival;
        break;
      case Payload::kRows:
        --self.rows[group].pending;
        self.rows[group].arrival = std::max(self.rows[group].arrival, arrival);
        break;
      case Payload::kRowGrads:
        self.row_grads[group] = arrival;
        break;
      case Payload::kNone:
        break;
    }
    Wake(to);
    return absl::OkStatus();
  }

  absl::Status CheckDone() const {
    std::vector<std::string> stops;
    for (size_t i = 0; i < ranks_.size(); ++i) {
      if (ranks_[i].next < programs_[i].size()) {
        stops.push_back(Where(static_cast<int32_t>(i), ranks_[i].next));
      }
    }
    if (!stops.empty()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "the programs stop: ", stops[0], " waits for what never arrives",
          stops.size() > 1
              ? absl::StrCat("; ", stops.size() - 1, " more ranks wait, the next is ", stops[1])
              : ""));
    }
    const auto ranks = static_cast<int32_t>(ranks_.size());
    for (size_t i = 0; i < channels_.size(); ++i) {
      const Channel& channel = channels_[i];
      const int32_t from = static_cast<int32_t>(i) / ranks % ranks;
      const int32_t to = static_cast<int32_t>(i) % ranks;
      if (channel.num_met < channel.sends.size()) {
        return absl::FailedPreconditionError(
            absl::StrCat(Where(from, channel.sends[channel.num_met].index), ": nobody receives"));
      }
      if (channel.num_met < channel.recvs.size()) {
        return absl::FailedPreconditionError(
            absl::StrCat(Where(to, channel.recvs[channel.num_met].index), ": nobody sends"));
      }
    }
    return absl::OkStatus();
  }

  const ScheduleOptions& options_;
  const std::vector<Program>& programs_;
  const ActionTime& time_;
  std::vector<Channel> channels_;  // [payloads, from, to]
  std::vector<Rank> ranks_;
  std::vector<int32_t> ready_;
  ReplayResult result_;
};

}  // namespace

double ReplayResult::bubble_fraction() const {
  if (busy.empty() || step_time <= 0) return 0;
  return 1 - std::accumulate(busy.begin(), busy.end(), 0.0) /
                 (static_cast<double>(busy.size()) * step_time);
}

absl::StatusOr<ReplayResult> Replay(const ScheduleOptions& options,
                                    const std::vector<Program>& programs, const ActionTime& time) {
  if (static_cast<int32_t>(programs.size()) != options.ranks) {
    return absl::InvalidArgumentError(absl::StrCat("found ", programs.size(),
                                                   " programs, expected one for each of ",
                                                   options.ranks, " ranks"));
  }
  return Simulation(options, programs, time).Run();
}

}  // namespace omni::parallel
