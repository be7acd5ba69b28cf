#include "dataloader/special_tokens.h"

#include <set>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"

namespace omni::dataloader {

SpecialTokenNames NamesOf(Template kind) {
  SpecialTokenNames names;
  if (kind == Template::kChatml || kind == Template::kPlain) return names;
  const auto without_vision = [&] {
    names.vision_start = names.vision_end = names.image_pad = names.video_pad = "";
  };
  const auto without_audio = [&] { names.audio_start = names.audio_end = names.audio_pad = ""; };
  const auto with_audio_of_qwen2 = [&] {
    names.audio_start = "<|audio_bos|>";
    names.audio_end = "<|audio_eos|>";
    names.audio_pad = "<|AUDIO|>";
  };
  names.eos = "<|endoftext|>";
  switch (kind) {
    case Template::kChatml:
    case Template::kPlain:
      break;
    case Template::kQwen2:
    case Template::kQwen25:
    case Template::kQwen3:
      without_vision();
      without_audio();
      break;
    case Template::kQwen2Vl:
      without_audio();
      break;
    case Template::kQwen25Omni:
      names.vision_start = "<|vision_bos|>";
      names.vision_end = "<|vision_eos|>";
      names.image_pad = "<|IMAGE|>";
      names.video_pad = "<|VIDEO|>";
      with_audio_of_qwen2();
      break;
    case Template::kQwen2Audio:
      without_vision();
      with_audio_of_qwen2();
      break;
    case Template::kLlama3:
      names.im_start = "<|start_header_id|>";
      names.header_end = "<|end_header_id|>";
      names.im_end = "<|eot_id|>";
      names.bos = "<|begin_of_text|>";
      names.eos = "<|end_of_text|>";
      without_vision();
      without_audio();
      break;
  }
  return names;
}

absl::Status Read(const ConfigNode& node, SpecialTokenNames* out) {
  ConfigReader reader(node);
  struct Name {
    const char* key;
    std::string* value;
    bool is_optional;
  };
  const bool has_header = !out->header_end.empty();
  const Name names[] = {
      {"im_start", &out->im_start, false},           {"im_end", &out->im_end, false},
      {"header_end", &out->header_end, !has_header}, {"vision_start", &out->vision_start, true},
      {"vision_end", &out->vision_end, true},        {"image_pad", &out->image_pad, true},
      {"video_pad", &out->video_pad, true},          {"audio_start", &out->audio_start, true},
      {"audio_end", &out->audio_end, true},          {"audio_pad", &out->audio_pad, true},
  };
  std::set<std::string> seen;
  for (const auto& [key, value, is_optional] : names) {
    reader.Read(key, value);
    if (value->empty() && !is_optional) {
      reader.Keep(reader.Error(key, "is empty, expected a symbol"));
    }
    if (!value->empty() && !seen.insert(*value).second) {
      reader.Keep(reader.Error(key, absl::StrCat("\"", *value, "\" is used twice")));
    }
  }
  if (!has_header && !out->header_end.empty()) {
    reader.Keep(reader.Error("header_end", "belongs to data.template: llama3"));
  }
  // A document may end as a turn does.
  reader.Read("bos", &out->bos);
  reader.Read("eos", &out->eos);
  return reader.Finish();
}

}  // namespace omni::dataloader
