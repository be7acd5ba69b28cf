#include "parallel/schedule/rank_verifier.h"

namespace omni::parallel {

absl::Status RankVerifier::OfChunk(const Action& action) {
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

absl::Status RankVerifier::EndActivation(const Action& action) {
  --activations_;
  --backwards_left_[local_[action.chunk]];
  return absl::OkStatus();
}

absl::Status RankVerifier::ForwardHasInput(const Action& action, const ChunkState& state) {
  if (action.chunk == 0) return HasRows(action);
  if (local_[action.chunk - 1] >= 0) {
    if (ChunkAt(action.chunk - 1, action.microbatch).forward) return absl::OkStatus();
    return Error("forward of chunk ", action.chunk - 1, " has to come first");
  }
  if (state.hidden) return absl::OkStatus();
  return Error("its hidden rows have not been received before");
}

absl::Status RankVerifier::HasRows(const Action& action) {
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

absl::Status RankVerifier::BackwardHasInput(const Action& action, const ChunkState& state) {
  if (action.chunk + 1 == num_chunks_) return absl::OkStatus();
  if (local_[action.chunk + 1] >= 0) {
    if (ChunkAt(action.chunk + 1, action.microbatch).input) return absl::OkStatus();
    return Error("backward of chunk ", action.chunk + 1, " has to come first");
  }
  if (state.hidden_grad) return absl::OkStatus();
  return Error("its hidden gradient has not been received before");
}

absl::Status RankVerifier::OfEncoder(const Action& action) {
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

absl::Status RankVerifier::LiveEncodings(int32_t count) const {
  if (count <= encodings_max_) return absl::OkStatus();
  return Error("would be encoding ", count, " kept at once, ", encodings_max_, " are reserved");
}

}  // namespace omni::parallel
