#include "absl/strings/str_join.h"
#include "encoders/encoder.h"
#include "encoders/qwen2_audio.h"
#include "encoders/qwen3_vision.h"
#include "encoders/qwen_audio.h"
#include "encoders/qwen_vision.h"
#include "encoders/seed_vision.h"
#include "runtime/base/status.h"

namespace omni::encoders {

void RegisterEncoders(EncoderRegistry& registry) {
  registry.Register("qwen_vision", QwenVision::Create);
  registry.Register("qwen3_vision", Qwen3Vision::Create);
  registry.Register("seed_vision", SeedVision::Create);
  registry.Register("qwen_audio", QwenAudio::Create);
  registry.Register("qwen2_audio", Qwen2Audio::Create);
}

EncoderOutput NoRows(const ExecContext& ctx, DType dtype, int64_t hidden) {
  return {.rows_RH = {.value = TensorView::Dense(nullptr, dtype, ctx.device.kind(), {0, hidden})}};
}

void EncoderRegistry::Register(const std::string& kind, Factory factory) {
  for (const auto& [name, unused] : factories_) OMNI_CHECK_NE(name, kind);
  factories_.emplace_back(kind, factory);
}

absl::StatusOr<std::unique_ptr<Encoder>> EncoderRegistry::Create(
    const ConfigNode& section, const EncoderOptions& options) const {
  if (!section.is_map()) return section.Error("expected a mapping with the encoder's `kind`");
  const ConfigNode node = section.Get("kind");
  std::vector<std::string> kinds;
  for (const auto& [name, unused] : factories_) kinds.push_back(name);
  if (node.is_null()) {
    return section.Error(absl::StrCat("missing key \"kind\", one of ", absl::StrJoin(kinds, ", ")));
  }
  OMNI_ASSIGN_OR_RETURN(const std::string kind, node.AsString());
  for (const auto& [name, factory] : factories_) {
    if (name == kind) return factory(section, options);
  }
  const std::string nearest = NearestName(kind, kinds);
  return node.Error(absl::StrCat("found \"", kind, "\", expected one of ",
                                 absl::StrJoin(kinds, ", "),
                                 nearest.empty() ? "" : absl::StrCat("; did you mean ", nearest)));
}

}  // namespace omni::encoders
