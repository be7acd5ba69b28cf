#include <algorithm>

#include "parallel/schedule/rank_verifier.h"

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

RankVerifier::RankVerifier(const ScheduleOptions& options, const EncodingRanks& encoding,
                           const VerifyLimits& limits, int32_t rank, const Program& program)
    : options_(options),
      encoding_(encoding),
      rank_(rank),
      first_(options.RankOf(0)),
      microbatches_(options.microbatches),
      num_chunks_(options.num_chunks()),
      num_groups_(options.num_groups()),
      num_encoders_(static_cast<int32_t>(options.encoders.size())),
      activations_max_(limits.live_activations.empty() ? INT32_MAX : limits.live_activations[rank]),
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

absl::Status RankVerifier::Run() {
  for (index_ = 0; index_ < static_cast<int64_t>(program_.size()); ++index_) {
    absl::Status status = Step(program_[index_]);
    if (!status.ok()) return status;
  }
  return Complete();
}

// What an action of this kind does not have has to be left out: whoever runs it may look.
absl::Status RankVerifier::NothingElse(const Action& action) const {
  bool has_chunk = false, has_microbatch = false, has_encoder = false, is_transfer = false;
  switch (action.kind) {
    case ActionKind::kForward:
    case ActionKind::kBackward:
    case ActionKind::kBackwardInput:
    case ActionKind::kWeightGrad:
      has_chunk = has_microbatch = true;
      break;
    case ActionKind::kEncodeForward:
    case ActionKind::kEncodeOnly:
    case ActionKind::kEncodeBackward:
      has_encoder = has_microbatch = true;
      break;
    case ActionKind::kSend:
    case ActionKind::kRecv:
      if (action.payload == Payload::kNone) return Error("carries nothing");
      has_encoder = action.payload == Payload::kRows || action.payload == Payload::kRowGrads;
      has_chunk = !has_encoder;
      has_microbatch = is_transfer = true;
      break;
    case ActionKind::kReduceGradients:
      has_encoder = action.encoder >= 0;
      has_chunk = !has_encoder;
      break;
    default:
      break;
  }
  const auto unused = [&](bool used, const char* what, int32_t found) {
    if (used || found == -1) return absl::OkStatus();
    return Error("its ", what, ", ", found, ", means nothing here, expected -1");
  };
  absl::Status status = unused(has_chunk, "chunk", action.chunk);
  status.Update(unused(has_microbatch, "microbatch", action.microbatch));
  status.Update(unused(has_encoder, "encoder", action.encoder));
  status.Update(unused(is_transfer, "peer", action.peer));
  status.Update(unused(is_transfer, "slot", action.slot));
  if (status.ok() && !is_transfer && action.payload != Payload::kNone) {
    return Error("carries something, but is no transfer");
  }
  return status;
}

absl::Status RankVerifier::Step(const Action& action) {
  if (!action.is_transfer()) in_slot_ = false;
  if (action.kind == ActionKind::kForwardBackward) {
    return Error("belongs to the plain program alone");
  }
  if (absl::Status status = NothingElse(action); !status.ok()) return status;
  switch (action.kind) {
    case ActionKind::kForwardBackward:
      break;
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

absl::Status RankVerifier::InStep() const {
  if (ends_ > 0) return Error("comes after agree");
  return absl::OkStatus();
}

absl::Status RankVerifier::KnownMicrobatch(const Action& action) const {
  if (action.microbatch >= 0 && action.microbatch < microbatches_) return absl::OkStatus();
  return Error("there are ", microbatches_, " microbatches");
}

absl::Status RankVerifier::KnownChunk(int32_t chunk) const {
  if (chunk >= 0 && chunk < num_chunks_) return absl::OkStatus();
  return Error("there are ", num_chunks_, " chunks");
}

absl::Status RankVerifier::HeldChunk(int32_t chunk) const {
  if (absl::Status status = KnownChunk(chunk); !status.ok()) return status;
  if (local_[chunk] >= 0) return absl::OkStatus();
  return Error("chunk ", chunk, " is on rank ", holders_[chunk]);
}

absl::Status RankVerifier::KnownGroup(const Action& action) const {
  if (action.encoder < 0 || action.encoder >= num_encoders_) {
    return Error("there are ", num_encoders_, " encoders");
  }
  if (action.microbatch >= 0 && action.microbatch < num_groups_) return absl::OkStatus();
  return Error("there are ", num_groups_, " groups");
}

absl::Status RankVerifier::Reduce(const Action& action) {
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

absl::Status RankVerifier::End(int32_t place) {
  if (ends_ == place) {
    ++ends_;
    return absl::OkStatus();
  }
  if (ends_ > place) return Error("comes a second time");
  return Error(ends_ == 0 ? "agree has" : "update has", " to come first");
}

absl::Status RankVerifier::Complete() const {
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
    return Never({.kind = ActionKind::kReduceGradients, .encoder = static_cast<int16_t>(encoder)});
  }
  constexpr ActionKind kEnds[] = {ActionKind::kAgree, ActionKind::kUpdate,
                                  ActionKind::kGatherParameters};
  if (ends_ < 3) return Never({.kind = kEnds[ends_]});
  return absl::OkStatus();
}

absl::Status VerifyRank(const ScheduleOptions& options, const EncodingRanks& encoding,
                        const VerifyLimits& limits, int32_t rank, const Program& program) {
  return RankVerifier(options, encoding, limits, rank, program).Run();
}

}  // namespace omni::parallel
