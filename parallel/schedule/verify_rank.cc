#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "parallel/schedule/verify_parts.h"

namespace omni::parallel {

EncodingRanks::EncodingRanks(const ScheduleOptions& options, const std::vector<Program>& programs)
    : options_(options) {
  if (options.joint != JointKind::kAggressive) return;
  const auto num_encoders = static_cast<int32_t>(options.encoders.size());
  const int32_t num_groups = options.num_groups();
  found_.assign(num_encoders * num_groups, -1);
  for (int32_t rank = 0; rank < static_cast<int32_t>(programs.size()); ++rank) {
    for (const Action& action : programs[rank]) {
      if (action.kind != ActionKind::kEncodeForward && action.kind != ActionKind::kEncodeOnly) {
        continue;
      }
      if (action.encoder < 0 || action.encoder >= num_encoders || action.microbatch < 0 ||
          action.microbatch >= num_groups) {
        continue;  // VerifyRank says so
      }
      int32_t& found = found_[action.encoder * num_groups + action.microbatch];
      if (found < 0) found = rank;
    }
  }
  // A group that nobody encodes is missed on the first rank.
  for (int32_t& found : found_) found = std::max(found, 0);
}

bool EncodingRanks::Encodes(int32_t rank, int32_t encoder, int32_t group) const {
  switch (options_.joint) {
    case JointKind::kFirstStage:
      return rank == options_.RankOf(0);
    case JointKind::kDisaggregated:
      return rank >= options_.decoder_ranks();
    case JointKind::kAggressive:
      return rank == found_[encoder * options_.num_groups() + group];
    default:
      return true;
  }
}

namespace {

class RankVerifier {
 public:
  RankVerifier(const ScheduleOptions& options, const EncodingRanks& encoding,
               const VerifyLimits& limits, int32_t rank, const Program& program)
      : options_(options),
        encoding_(encoding),
        rank_(rank),
        first_(options.RankOf(0)),
        microbatches_(options.microbatches),
        num_chunks_(options.num_chunks()),
        num_groups_(options.num_groups()),
        num_encoders_(static_cast<int32_t>(options.encoders.size())),
        activations_max_(limits.live_activations.empty() ? INT32_MAX
                                                         : limits.live_activations[rank]),
        encodings_max_(limits.live_encodings.empty() ? INT32_MAX : limits.live_encodings[rank]),
        program_(program),
        held_(options.ChunksOf(rank)),
        local_(num_chunks_, -1),
        chunks_(held_.size() * microbatches_),
        chunk_reduced_(held_.size(), false),
        backwards_left_(held_.size(), microbatches_),
        shares_(int64_t{num_encoders_} * num_groups_),
        encoder_reduced_(num_encoders_, false) {
    for (size_t i = 0; i < held_.size(); ++i) local_[held_[i]] = static_cast<int32_t>(i);
    holders_.resize(num_chunks_);
    for (int32_t chunk = 0; chunk < num_chunks_; ++chunk) holders_[chunk] = options.RankOf(chunk);
    if (rank != first_) return;
    row_peers_.resize(shares_.size() * options.ranks);
    rows_missing_.assign(num_groups_, 0);
    group_left_.assign(num_groups_, 0);
    for (int32_t i = 0; i < microbatches_; ++i) ++group_left_[options.GroupOf(i)];
    for (int32_t group = 0; group < num_groups_; ++group) {
      for (int32_t encoder = 0; encoder < num_encoders_; ++encoder) {
        for (int32_t peer = 0; peer < options.ranks; ++peer) {
          if (encoding.Encodes(peer, encoder, group)) ++rows_missing_[group];
        }
      }
    }
  }

  absl::Status Run() {
    for (index_ = 0; index_ < static_cast<int64_t>(program_.size()); ++index_) {
      absl::Status status = Step(program_[index_]);
      if (!status.ok()) return status;
    }
    return Complete();
  }

 private:
  struct ChunkState {
    bool forward = false, input = false, weight = false;  // done
    bool hidden = false, hidden_grad = false;             // received
    bool sent = false, sent_grad = false;                 // what its forward and backward give
  };
  struct Share {  // of an (encoder, group)
    bool encoded = false, kept = false, backward = false;
    bool sent = false, grads_received = false;
  };

  template <typename... Parts>
  absl::Status Error(const Parts&... why) const {
    return ActionError(rank_, index_, program_[index_], absl::StrCat(why...));
  }
  template <typename... Parts>
  absl::Status Never(const Action& action, const Parts&... why) const {
    return absl::FailedPreconditionError(
        absl::StrCat("rank ", rank_, ": ", ToString(action), " never comes", why...));
  }

  bool Encodes(int32_t encoder, int32_t group) const {
    return encoding_.Encodes(rank_, encoder, group);
  }
  ChunkState& ChunkAt(int32_t chunk, int32_t microbatch) {
    return chunks_[int64_t{local_[chunk]} * microbatches_ + microbatch];
  }
  Share& ShareAt(const Action& action) {
    return shares_[int64_t{action.encoder} * num_groups_ + action.microbatch];
  }

  absl::Status Step(const Action& action) {
    if (!action.is_transfer()) in_slot_ = false;
    switch (action.kind) {
      case ActionKind::kForwardBackward:
        return Error("belongs to the plain program alone");
      case ActionKind::kForward:
      case ActionKind::kBackward:
      case ActionKind::kBackwardInput:
      case ActionKind::kWeightGrad:
        return OfChunk(action);
      case ActionKind::kEncodeForward:
      case ActionKind::kEncodeOnly:
      case ActionKind::kEncodeBackward:
        return OfEncoder(action);
      case ActionKind::kSend:
      case ActionKind::kRecv:
        return Transfer(action);
      case ActionKind::kReduceGradients:
        return Reduce(action);
      case ActionKind::kAgree:
        return End(0);
      case ActionKind::kUpdate:
        return End(1);
      case ActionKind::kGatherParameters:
        return End(2);
    }
    return Error("is of no known kind");
  }

  absl::Status InStep() const {
    if (ends_ > 0) return Error("comes after agree");
    return absl::OkStatus();
  }
  absl::Status KnownMicrobatch(const Action& action) const {
    if (action.microbatch >= 0 && action.microbatch < microbatches_) return absl::OkStatus();
    return Error("there are ", microbatches_, " microbatches");
  }
  absl::Status KnownChunk(int32_t chunk) const {
    if (chunk >= 0 && chunk < num_chunks_) return absl::OkStatus();
    return Error("there are ", num_chunks_, " chunks");
  }
  absl::Status HeldChunk(int32_t chunk) const {
    if (absl::Status status = KnownChunk(chunk); !status.ok()) return status;
    if (local_[chunk] >= 0) return absl::OkStatus();
    return Error("chunk ", chunk, " is on rank ", holders_[chunk]);
  }
  absl::Status KnownGroup(const Action& action) const {
    if (action.encoder < 0 || action.encoder >= num_encoders_) {
      return Error("there are ", num_encoders_, " encoders");
    }
    if (action.microbatch >= 0 && action.microbatch < num_groups_) return absl::OkStatus();
    return Error("there are ", num_groups_, " groups");
  }

  absl::Status OfChunk(const Action& action) {
    absl::Status status = InStep();
    if (status.ok()) status = HeldChunk(action.chunk);
    if (status.ok()) status = KnownMicrobatch(action);
    if (!status.ok()) return status;
    ChunkState& state = ChunkAt(action.chunk, action.microbatch);
    switch (action.kind) {
      case ActionKind::kForward:
        if (state.forward) return Error("comes a second time");
        status = ForwardHasInput(action, state);
        if (!status.ok()) return status;
        if (++activations_ > activations_max_) {
          return Error("would be activation ", activations_, " kept at once, ", activations_max_,
                       " are reserved");
        }
        state.forward = true;
        return absl::OkStatus();
      case ActionKind::kWeightGrad:
        if (state.weight) return Error("comes a second time");
        if (!state.input) return Error("its input backward has to come first");
        state.weight = true;
        return EndActivation(action);
      default:
        if (state.input) return Error("comes a second time");
        if (!state.forward) return Error("its forward has to come first");
        status = BackwardHasInput(action, state);
        if (!status.ok()) return status;
        state.input = true;
        if (action.chunk == 0) --group_left_[options_.GroupOf(action.microbatch)];
        if (action.kind == ActionKind::kBackwardInput) return absl::OkStatus();
        state.weight = true;
        return EndActivation(action);
    }
  }
  absl::Status EndActivation(const Action& action) {
    --activations_;
    --backwards_left_[local_[action.chunk]];
    return absl::OkStatus();
  }

  absl::Status ForwardHasInput(const Action& action, const ChunkState& state) {
    if (action.chunk == 0) return HasRows(action);
    if (local_[action.chunk - 1] >= 0) {
      if (ChunkAt(action.chunk - 1, action.microbatch).forward) return absl::OkStatus();
      return Error("forward of chunk ", action.chunk - 1, " has to come first");
    }
    if (state.hidden) return absl::OkStatus();
    return Error("its hidden rows have not been received before");
  }
  absl::Status HasRows(const Action& action) {
    const int32_t group = options_.GroupOf(action.microbatch);
    if (rows_missing_[group] == 0) return absl::OkStatus();
    for (int32_t encoder = 0; encoder < num_encoders_; ++encoder) {
      const int64_t share = int64_t{encoder} * num_groups_ + group;
      if (Encodes(encoder, group) && !shares_[share].encoded) {
        return Error("encoder ", encoder, " has to encode group ", group, " before");
      }
      for (int32_t peer = 0; peer < options_.ranks; ++peer) {
        if (peer == rank_ || !encoding_.Encodes(peer, encoder, group)) continue;
        if (row_peers_[share * options_.ranks + peer]) continue;
        return Error("rows of encoder ", encoder, " group ", group, " from ", peer,
                     " have not been received before");
      }
    }
    return Error("rows of group ", group, " are missing");
  }
  absl::Status BackwardHasInput(const Action& action, const ChunkState& state) {
    if (action.chunk + 1 == num_chunks_) return absl::OkStatus();
    if (local_[action.chunk + 1] >= 0) {
      if (ChunkAt(action.chunk + 1, action.microbatch).input) return absl::OkStatus();
      return Error("backward of chunk ", action.chunk + 1, " has to come first");
    }
    if (state.hidden_grad) return absl::OkStatus();
    return Error("its hidden gradient has not been received before");
  }

  absl::Status OfEncoder(const Action& action) {
    absl::Status status = InStep();
    if (status.ok()) status = KnownGroup(action);
    if (!status.ok()) return status;
    if (!Encodes(action.encoder, action.microbatch)) return Error("this rank does not encode it");
    Share& share = ShareAt(action);
    const bool trains = options_.encoders[action.encoder].trains;
    if (action.kind != ActionKind::kEncodeBackward) {
      if (share.encoded) return Error("comes a second time");
      share.encoded = true;
      share.kept = action.kind == ActionKind::kEncodeForward;
      if (share.kept && !trains) return Error("a frozen encoder keeps nothing");
      if (rank_ == first_) --rows_missing_[action.microbatch];
      return share.kept ? LiveEncodings(++encodings_) : absl::OkStatus();
    }
    if (!trains) return Error("a frozen encoder has no backward");
    if (share.backward) return Error("comes a second time");
    if (!share.encoded) return Error("it has to be encoded first");
    if (rank_ == first_) {
      if (group_left_[action.microbatch] > 0) {
        return Error("all backwards of chunk 0 of its microbatches have to come first");
      }
    } else if (!share.grads_received) {
      return Error("its row gradients have not been received before");
    }
    share.backward = true;
    if (share.kept) {
      --encodings_;
      return absl::OkStatus();
    }
    return LiveEncodings(encodings_ + 1);  // for as long as it lasts
  }
  absl::Status LiveEncodings(int32_t count) const {
    if (count <= encodings_max_) return absl::OkStatus();
    return Error("would be encoding ", count, " kept at once, ", encodings_max_, " are reserved");
  }

  absl::Status Transfer(const Action& action) {
    absl::Status status = InStep();
    if (status.ok()) status = Slot(action);
    if (!status.ok()) return status;
    switch (action.payload) {
      case Payload::kHidden:
      case Payload::kHiddenGrad:
        return TransferHidden(action);
      case Payload::kRows:
      case Payload::kRowGrads:
        return TransferRows(action);
      case Payload::kNone:
        break;
    }
    return Error("carries nothing");
  }
  absl::Status Slot(const Action& action) {
    if (action.slot < 0) {
      in_slot_ = false;
      return absl::OkStatus();
    }
    if (action.slot < slot_) return Error("is in slot ", action.slot, " after slot ", slot_);
    if (action.slot == slot_ && !in_slot_) {
      return Error("is in slot ", slot_, ", which other actions have ended");
    }
    slot_ = action.slot;
    in_slot_ = true;
    return absl::OkStatus();
  }

  absl::Status TransferHidden(const Action& action) {
    const bool is_grad = action.payload == Payload::kHiddenGrad;
    const int32_t to = action.chunk, from = is_grad ? to + 1 : to - 1;
    for (const int32_t chunk : {to, from}) {
      if (absl::Status status = KnownChunk(chunk); !status.ok()) return status;
    }
    const bool is_send = action.kind == ActionKind::kSend;
    absl::Status status = HeldChunk(is_send ? from : to);
    if (status.ok()) status = KnownMicrobatch(action);
    if (status.ok()) status = Peer(action, holders_[is_send ? to : from]);
    if (!status.ok()) return status;
    ChunkState& state = ChunkAt(is_send ? from : to, action.microbatch);
    if (is_send && !(is_grad ? state.input : state.forward)) {
      return Error(is_grad ? "backward" : "forward", " of chunk ", from, " has to come first");
    }
    bool& done = is_send ? (is_grad ? state.sent_grad : state.sent)
                         : (is_grad ? state.hidden_grad : state.hidden);
    if (std::exchange(done, true)) return Error("comes a second time");
    return absl::OkStatus();
  }

  absl::Status TransferRows(const Action& action) {
    absl::Status status = KnownGroup(action);
    if (!status.ok()) return status;
    const bool is_grad = action.payload == Payload::kRowGrads;
    const bool is_send = action.kind == ActionKind::kSend;
    if (is_grad && !options_.encoders[action.encoder].trains) {
      return Error("no gradients go to a frozen encoder");
    }
    if (is_send == is_grad) {  // at the rank with chunk 0
      if (rank_ != first_) return Error("chunk 0 is on rank ", first_);
      if (action.peer == rank_ || action.peer < 0 || action.peer >= options_.ranks ||
          !encoding_.Encodes(action.peer, action.encoder, action.microbatch)) {
        return Error("rank ", action.peer, " does not encode it for this one");
      }
      if (is_grad && group_left_[action.microbatch] > 0) {
        return Error("all backwards of chunk 0 of its microbatches have to come first");
      }
      uint8_t& done =
          row_peers_[(int64_t{action.encoder} * num_groups_ + action.microbatch) * options_.ranks +
                     action.peer];
      const uint8_t bit = is_grad ? 2 : 1;
      if ((done & bit) != 0) return Error("comes a second time");
      done |= bit;
      if (!is_grad) --rows_missing_[action.microbatch];
      return absl::OkStatus();
    }
    if (!Encodes(action.encoder, action.microbatch)) return Error("this rank does not encode it");
    status = Peer(action, first_);
    if (!status.ok()) return status;
    Share& share = ShareAt(action);
    if (!is_grad && !share.encoded) return Error("it has to be encoded first");
    if (std::exchange(is_grad ? share.grads_received : share.sent, true)) {
      return Error("comes a second time");
    }
    return absl::OkStatus();
  }
  absl::Status Peer(const Action& action, int32_t expected) const {
    if (expected == rank_) return Error("both ends are on this rank");
    if (action.peer == expected) return absl::OkStatus();
    return Error("the other end is on rank ", expected);
  }

  absl::Status Reduce(const Action& action) {
    if (action.encoder >= 0) {
      if (action.encoder >= num_encoders_ || !options_.encoders[action.encoder].trains) {
        return Error("there is no such encoder that trains");
      }
      if (ends_ != 1) return Error("has to come between agree and update");
      if (action.encoder < encoder_expected_) {
        return Error("encoder ", encoder_expected_ - 1, " has been reduced already");
      }
      encoder_reduced_[action.encoder] = true;
      encoder_expected_ = action.encoder + 1;
      return absl::OkStatus();
    }
    absl::Status status = InStep();
    if (status.ok()) status = HeldChunk(action.chunk);
    if (!status.ok()) return status;
    const int32_t local = local_[action.chunk];
    if (chunk_reduced_[local]) return Error("comes a second time");
    if (backwards_left_[local] > 0) {
      return Error(backwards_left_[local], " backwards of the chunk are still to come");
    }
    chunk_reduced_[local] = true;
    if (action.chunk > 0 && action.chunk + 1 < num_chunks_) return absl::OkStatus();
    for (size_t i = index_ + 1; i < program_.size(); ++i) {
      if (program_[i].is_transfer()) {
        return Error("may wait for another stage, but action ", i, " (", ToString(program_[i]),
                     ") is still to come");
      }
    }
    return absl::OkStatus();
  }

  absl::Status End(int32_t place) {
    if (ends_ == place) {
      ++ends_;
      return absl::OkStatus();
    }
    if (ends_ > place) return Error("comes a second time");
    return Error(ends_ == 0 ? "agree has" : "update has", " to come first");
  }

  absl::Status Complete() const {
    for (size_t i = 0; i < chunks_.size(); ++i) {
      const ChunkState& state = chunks_[i];
      Action action{.chunk = static_cast<int16_t>(held_[i / microbatches_]),
                    .microbatch = static_cast<int32_t>(i % microbatches_)};
      if (!state.forward) return Never(action);
      action.kind = state.input ? ActionKind::kWeightGrad : ActionKind::kBackward;
      if (!state.weight) return Never(action);
    }
    for (size_t i = 0; i < shares_.size(); ++i) {
      Action action{.kind = ActionKind::kEncodeForward,
                    .microbatch = static_cast<int32_t>(i % num_groups_),
                    .encoder = static_cast<int16_t>(i / num_groups_)};
      if (!Encodes(action.encoder, action.microbatch)) continue;
      if (!shares_[i].encoded) return Never(action);
      action.kind = ActionKind::kEncodeBackward;
      if (options_.encoders[action.encoder].trains && !shares_[i].backward) return Never(action);
    }
    for (size_t i = 0; i < held_.size(); ++i) {
      if (chunk_reduced_[i]) continue;
      return Never({.kind = ActionKind::kReduceGradients, .chunk = static_cast<int16_t>(held_[i])});
    }
    const bool has_encoders =
        options_.joint != JointKind::kDisaggregated || rank_ >= options_.decoder_ranks();
    for (int32_t encoder = 0; encoder < num_encoders_; ++encoder) {
      if (encoder_reduced_[encoder] || !options_.encoders[encoder].trains || !has_encoders) {
        continue;
      }
      return Never(
          {.kind = ActionKind::kReduceGradients, .encoder = static_cast<int16_t>(encoder)});
    }
    constexpr ActionKind kEnds[] = {ActionKind::kAgree, ActionKind::kUpdate,
                                    ActionKind::kGatherParameters};
    if (ends_ < 3) return Never({.kind = kEnds[ends_]});
    return absl::OkStatus();
  }

  const ScheduleOptions& options_;
  const EncodingRanks& encoding_;
  const int32_t rank_, first_, microbatches_, num_chunks_, num_groups_, num_encoders_;
  const int32_t activations_max_, encodings_max_;
  const Program& program_;
  const std::vector<int32_t> held_;  // chunks
  std::vector<int32_t> local_;       // [chunks]: index into held_, or -1
  std::vector<int32_t> holders_;     // [chunks]: ranks
  std::vector<ChunkState> chunks_;   // [held_][microbatches]
  std::vector<bool> chunk_reduced_;
  std::vector<int32_t> backwards_left_;  // [held_]
  std::vector<Share> shares_;            // [encoders][groups]
  std::vector<bool> encoder_reduced_;
  int32_t encoder_expected_ = 0;
  // On the rank with chunk 0.
  std::vector<uint8_t> row_peers_;     // [encoders][groups][ranks]: bit 0 rows, bit 1 gradients
  std::vector<int32_t> rows_missing_;  // [groups]
  std::vector<int32_t> group_left_;    // [groups]: backwards of chunk 0

  int64_t index_ = 0;  // of the action
  int32_t slot_ = -1;
  bool in_slot_ = false;
  int32_t activations_ = 0, encodings_ = 0;
  int32_t ends_ = 0;  // of agree, update, gather, how many have come
};

}  // namespace

absl::Status VerifyRank(const ScheduleOptions& options, const EncodingRanks& encoding,
                        const VerifyLimits& limits, int32_t rank, const Program& program) {
  return RankVerifier(options, encoding, limits, rank, program).Run();
}

}  // namespace omni::parallel
