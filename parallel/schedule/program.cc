#include "parallel/schedule/program.h"

#include <type_traits>

#include "absl/strings/numbers.h"
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

std::optional<Action> ParseAction(absl::string_view name) {
  // Numbers at the end are taken off, each by the word before it; what is left is a kind's name.
  Action action;
  absl::string_view rest = name;
  const auto TakeNumber = [&](absl::string_view word, auto* out) {
    const size_t at = rest.rfind(absl::StrCat(" ", word, " "));
    if (at == absl::string_view::npos) return;
    int32_t value = 0;
    if (!absl::SimpleAtoi(rest.substr(at + word.size() + 2), &value)) return;
    *out = static_cast<std::decay_t<decltype(*out)>>(value);
    rest = rest.substr(0, at);
  };
  TakeNumber("to", &action.peer);
  TakeNumber("from", &action.peer);
  TakeNumber("microbatch", &action.microbatch);
  TakeNumber("group", &action.microbatch);
  TakeNumber("chunk", &action.chunk);
  TakeNumber("encoder", &action.encoder);
  for (int kind = 0; kind <= static_cast<int>(ActionKind::kGatherParameters); ++kind) {
    for (int payload = 0; payload <= static_cast<int>(Payload::kRowGrads); ++payload) {
      action.kind = static_cast<ActionKind>(kind);
      action.payload = static_cast<Payload>(payload);
      const bool is_transfer = action.kind == ActionKind::kSend || action.kind == ActionKind::kRecv;
      if (is_transfer != (action.payload != Payload::kNone)) continue;
      if (ToString(action) == name) return action;
    }
  }
  return std::nullopt;
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
