// The chat templates that are built in, and the names of the special tokens each needs.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "runtime/base/config.h"

namespace omni::dataloader {

// What a conversation looks like as text; chat_template.h shows each.
enum class Template : uint8_t {
  kChatml,      // turns between <|im_start|> and <|im_end|>; Qwen3-VL, Qwen3-Omni and Qwen3-2507
                // (Instruct) write text and pictures so
  kPlain,       // parts end to end, without roles
  kQwen2,       // chatml with a system turn put first where there is none
  kQwen25,      // the same with another system turn, and results of tools in a user's turn
  kQwen2Vl,     // Qwen2-VL and Qwen2.5-VL: Qwen2's text
  kQwen25Omni,  // Qwen2's text, media between tokens of their own
  kQwen2Audio,  // Qwen2's text, sounds with numbers
  kQwen3,       // Qwen3's text models that think or don't: think blocks
  kLlama3,      // Llama 3 (not 3.1, which puts dates into the system turn)
};

// Symbols the tokenizer must have, each one token. "": none, which only the media's and bos and eos
// may be; samples with media of a kind without symbols are then an error.
struct SpecialTokenNames {
  // Around a turn. Llama 3 has <|start_header_id|> and <|eot_id|> here, and header_end behind the
  // role.
  std::string im_start = "<|im_start|>", im_end = "<|im_end|>", header_end;
  std::string vision_start = "<|vision_start|>", vision_end = "<|vision_end|>";
  std::string image_pad = "<|image_pad|>", video_pad = "<|video_pad|>";
  std::string audio_start = "<|audio_start|>", audio_end = "<|audio_end|>";
  std::string audio_pad = "<|audio_pad|>";
  // Around a document. A SentencePiece model knows its own where these are "".
  std::string bos, eos;
};

// The family's own; what a recipe does not name is one of these.
SpecialTokenNames NamesOf(Template kind);

// Over what `out` holds. InvalidArgument: "" where there must be a symbol, one used twice.
absl::Status Read(const ConfigNode& node, SpecialTokenNames* out);

}  // namespace omni::dataloader
