#include "parallel/schedule/program.h"

#include "absl/strings/str_cat.h"

namespace omni::parallel {
namespace {

const char* PayloadName(Payload payload) {
  switch (payload) {
    case Payload::kHidden:
      return "hidden";
    case Payload::kHiddenGrad:
      return "hidden gradient";
    case Payload::kRows:
      return "rows";
    case Payload::kRowGrads:
      return "row gradients";
    case Payload::kNone:
      break;
  }
  return "nothing";
}

std::string Transfer(const Action& action) {
  const bool is_send = action.kind == ActionKind::kSend;
  const bool is_rows = action.payload == Payload::kRows || action.payload == Payload::kRowGrads;
  return absl::StrCat(is_send ? "send " : "receive ", PayloadName(action.payload),
                      is_rows ? absl::StrCat(" encoder ", action.encoder, " group ")
                              : absl::StrCat(" chunk ", action.chunk, " microbatch "),
                      action.microbatch, is_send ? " to " : " from ", action.peer);
}

std::string Compute(const char* what, const Action& action) {
  return absl::StrCat(what, " chunk ", action.chunk, " microbatch ", action.microbatch);
}

std::string Encode(const char* what, const Action& action) {
  return absl::StrCat(what, " encoder ", action.encoder, " group ", action.microbatch);
}

}  // namespace

std::string ToString(const Action& action) {
  switch (action.kind) {
    case ActionKind::kForwardBackward:
      return absl::StrCat("forward and backward microbatch ", action.microbatch);
    case ActionKind::kForward:
      return Compute("forward", action);
    case ActionKind::kBackward:
      return Compute("backward", action);
    case ActionKind::kBackwardInput:
      return Compute("input backward", action);
    case ActionKind::kWeightGrad:
      return Compute("weight gradient", action);
    case ActionKind::kEncodeForward:
      return Encode("encode", action);
    case ActionKind::kEncodeOnly:
      return Encode("encode without keeping", action);
    case ActionKind::kEncodeBackward:
      return Encode("encoder backward", action);
    case ActionKind::kSend:
    case ActionKind::kRecv:
      return Transfer(action);
    case ActionKind::kReduceGradients:
      return action.encoder >= 0 ? absl::StrCat("reduce gradients encoder ", action.encoder)
             : action.chunk >= 0 ? absl::StrCat("reduce gradients chunk ", action.chunk)
                                 : "reduce gradients";
    case ActionKind::kAgree:
      return "agree";
    case ActionKind::kUpdate:
      return "update";
    case ActionKind::kGatherParameters:
      return "gather parameters";
  }
  return "?";
}

Program PlainProgram(int32_t num_microbatches) {
  Program program;
  for (int32_t i = 0; i < num_microbatches; ++i) {
    program.push_back({.kind = ActionKind::kForwardBackward, .microbatch = i});
  }
  for (const ActionKind kind : {ActionKind::kAgree, ActionKind::kReduceGradients,
                                ActionKind::kUpdate, ActionKind::kGatherParameters}) {
    program.push_back({.kind = kind});
  }
  return program;
}

}  // namespace omni::parallel
