// A conversation as tokens, with the tokens that have loss and the places of the media.
//
// chatml:  <|im_start|>user\n <media and text> <|im_end|>\n  and so on for each turn
// plain:   parts end to end, <|im_end|> (or the model's eos) last; documents are always plain
// Each medium is its start token, one pad per row the decoder gets, its end token; a clip is one
// such span over all its temporal pairs.
// Loss: on an assistant's text and its <|im_end|>; on a document's text and its end.
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
  parallel::MediaItem item;     // input_row is not set
  int32_t merge = 1;            // vision: patches per side of a decoder row
  double seconds_per_grid = 0;  // video

  PositionSpan positions() const;
};

// InvalidArgument: an aspect ratio or a duration beyond the limits.
absl::StatusOr<MediaShape> MediaShapeOf(const MediaInfo& info, const DataConfig& config);

struct MediaSpan {
  int32_t media_index = 0;  // as in Part
  MediaShape shape;
  int64_t token_begin = 0;  // of the pads; there are shape.item.num_output_rows
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
  bool add_generation_prompt = false;  // chatml: end with <|im_start|>assistant\n
};

// `shapes`: one per medium of the conversation, in order of appearance.
TokenizedSample ApplyTemplate(const Conversation& conversation, absl::Span<const MediaShape> shapes,
                              const Tokenizer& tokenizer, const TemplateOptions& options);

// Shortens to at most `max_tokens`: a conversation to its last assistant turn that ends by then,
// a document to a token outside of media. False, leaving the sample as it is, if nothing with
// loss would remain.
bool CutTo(int64_t max_tokens, TokenizedSample* sample);

// The sample's tokens, targets and positions into `pack`, whose vectors have room for
// [offset, offset + tokens). Without `with_loss` all targets are -1.
void WriteTokens(const TokenizedSample& sample, double positions_per_second, bool with_loss,
                 int64_t offset, parallel::TokenPack* pack);

}  // namespace omni::dataloader
