// A conversation as tokens, with the tokens that have loss and the places of the media.
//
// chatml:  <|im_start|>user\n <media and text> <|im_end|>\n  and so on for each turn
// plain:   parts end to end, <|im_end|> (or the model's eos) last; documents are always plain
// qwen2, qwen2_vl, qwen2_5_omni: chatml; where the first turn is no system turn there is one that
//          says "You are a helpful assistant."
// qwen2_audio:  the same; a sound is "Audio 1: ", the medium, "\n"
// qwen2_5: chatml; the system turn says "You are Qwen, created by Alibaba Cloud. You are a helpful
//          assistant."; results of tools in a row are one user's turn, each of them
//          \n<tool_response>\n ... \n</tool_response>
// qwen3:   chatml, results of tools as in qwen2_5. Assistants' turns before the last question lose
//          what stands up to </think>; the last turn starts with <think>\n ... \n</think>\n\n, with
//          nothing inside if there was no thought. (An assistant's turn that has media is as it
//          is.)
// llama3:  <|begin_of_text|>, then <|start_header_id|>user<|end_header_id|>\n\n <text without white
//          space around it> <|eot_id|> for each turn
//
// These are the texts of the families' own templates (tests/golden/chat_templates.json), but for
// the line break behind the last turn, which nothing is predicted from. Not covered: lists of tools
// and calls of tools as JSON objects (as text they are), Picture 1: and the like, Llama 3.1's
// dates, sound inside of clips. Each medium is its start token, one pad per row the decoder gets,
// its end token; a clip is one such span over all its temporal pairs, or, with a FrameText
// (Qwen3-VL, Seed1.5-VL), one for each, the time before it:
//   <0.2 seconds><|vision_start|><|video_pad|>..<|vision_end|><1.2 seconds><|vision_start|>..
// Loss: on an assistant's text and its <|im_end|>; on a document's text and its
// end. An assistant's text is tokenised by itself, as it is generated; all other text together with
// its neighbours.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "dataloader/data_config.h"
#include "dataloader/formats/conversation.h"
#include "dataloader/media/media_info.h"
#include "dataloader/positions.h"
#include "dataloader/tokenizer.h"
#include "parallel/pack.h"

namespace omni::dataloader {

// One medium as the encoder and the decoder count it, from its metadata alone.
struct MediaShape {
  MediaKind kind = MediaKind::kImage;
  parallel::MediaItem item;               // input_row is not set
  int32_t merge = 1;                      // vision: patches per side of a decoder row
  double seconds_per_grid = 0;            // video
  double video_fps = 0;                   // video: frames drawn a second
  std::vector<double> timestamps_s = {};  // video: of each of item.t

  PositionSpan positions() const;
};

// InvalidArgument: an aspect ratio or a duration beyond the limits.
// `video_fps`: in place of data.video.fps, if > 0.
absl::StatusOr<MediaShape> MediaShapeOf(const MediaInfo& info, const DataConfig& config,
                                        double video_fps = 0);

struct MediaSpan {
  int32_t media_index = 0;  // as in Part
  MediaShape shape;
  int64_t token_begin = 0;  // of the pads; there are shape.item.num_output_rows
  // Where each run of pads begins: one run, or one per frame of a clip told frame by frame; all
  // are as long. The first is token_begin.
  std::vector<int64_t> run_begins = {};
  int64_t span_begin = 0, span_end = 0;  // tokens, with what stands around the pads

  int64_t run_rows() const {
    return shape.item.num_output_rows / static_cast<int64_t>(run_begins.size());
  }
};

struct TokenizedSample {
  std::vector<int32_t> tokens;
  std::vector<uint8_t> loss;       // [tokens]: 1 where the model must predict this token
  std::vector<MediaSpan> media;    // in order of appearance
  std::vector<int64_t> turn_ends;  // tokens up to the end of each assistant turn
  bool is_document = false;

  // Positions that predict: tokens with loss but for the first, which nothing precedes.
  int64_t num_loss_tokens() const;
};

struct TemplateOptions {
  Template kind = Template::kChatml;
  FrameText frame_text = FrameText::kNone;
  bool add_generation_prompt = false;  // end with the start of an assistant's turn
  // With the line break behind the last turn, as the families' own templates have it.
  bool ends_last_turn = false;
  // A special token that a text spells is that token, as other frameworks read it.
  bool text_has_specials = false;
  // qwen3: the prompt has an empty think block (the family's enable_thinking=False).
  bool answers_at_once = false;
};

// -1 where the tokenizer has none.
struct MediaSymbols {
  int32_t start = -1, pad = -1, end = -1;
  bool exist() const { return start >= 0 && pad >= 0 && end >= 0; }
};
MediaSymbols SymbolsOf(MediaKind kind, const Tokenizer& tokenizer);

// `shapes`: one per medium of the conversation, in order of appearance, all of kinds that have
// symbols.
TokenizedSample ApplyTemplate(const Conversation& conversation, absl::Span<const MediaShape> shapes,
                              const Tokenizer& tokenizer, const TemplateOptions& options);

// "<1.5 seconds>" (Qwen3-VL), "[1.5 second]" (Seed1.5-VL); empty for kNone.
std::string FrameTime(double seconds, FrameText text);

// Shortens to at most `max_tokens`: a conversation to its last assistant turn that ends by then,
// a document to a token outside of media. False, leaving the sample as it is, if nothing with
// loss would remain.
bool CutTo(int64_t max_tokens, TokenizedSample* sample);

// The sample's tokens, targets and positions into `pack`, whose vectors have room for
// [offset, offset + tokens). Without `with_loss` all targets are -1.
void WriteTokens(const TokenizedSample& sample, const PositionOptions& positions, bool with_loss,
                 int64_t offset, parallel::TokenPack* pack);

}  // namespace omni::dataloader
