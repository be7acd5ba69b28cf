#include <utility>

#include "parallel/schedule/rank_verifier.h"
#include "parallel/schedule/work.h"

namespace omni::parallel {

absl::Status RankVerifier::Transfer(const Action& action) {
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
  return Error("carries nothing that is known");
}

absl::Status RankVerifier::Slot(const Action& action) {
  if (action.slot < 0) {
    in_slot_ = false;
    return absl::OkStatus();
  }
  if (action.slot < slot_) return Error("is in slot ", action.slot, " after slot ", slot_);
  if (action.slot == slot_ && !in_slot_) {
    return Error("is in slot ", slot_, ", which other actions have ended");
  }
  const bool stands = StandsAt(options_, action);
  if (action.slot == slot_ && (stands || slot_stands_)) {
    return Error("shares slot ", slot_, ", though rows in rounds need one of their own");
  }
  slot_ = action.slot;
  in_slot_ = true;
  slot_stands_ = stands;
  return absl::OkStatus();
}

absl::Status RankVerifier::TransferHidden(const Action& action) {
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

absl::Status RankVerifier::TransferRows(const Action& action) {
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

absl::Status RankVerifier::Peer(const Action& action, int32_t expected) const {
  if (expected == rank_) return Error("both ends are on this rank");
  if (action.peer == expected) return absl::OkStatus();
  return Error("the other end is on rank ", expected);
}

}  // namespace omni::parallel
