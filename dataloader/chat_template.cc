#include "dataloader/chat_template.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace omni::dataloader {
namespace {

void Truncate(int64_t num_tokens, TokenizedSample* sample) {
  sample->tokens.resize(num_tokens);
  sample->loss.resize(num_tokens);
  while (!sample->media.empty() && sample->media.back().token_begin >= num_tokens) {
    sample->media.pop_back();
  }
  while (!sample->turn_ends.empty() && sample->turn_ends.back() > num_tokens) {
    sample->turn_ends.pop_back();
  }
}

}  // namespace

PositionSpan MediaShape::positions() const {
  if (kind == MediaKind::kAudio) return PositionSpan::Tokens(item.num_output_rows);
  return PositionSpan::Grid(item.t, item.h / merge, item.w / merge,
                            kind == MediaKind::kVideo ? seconds_per_grid : 0);
}

absl::StatusOr<MediaShape> MediaShapeOf(const MediaInfo& info, const DataConfig& config,
                                        double video_fps) {
  MediaShape shape;
  shape.kind = info.kind;
  if (info.kind == MediaKind::kAudio ? !config.has_audio : !config.has_vision) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the model has no encoder for ", info.kind == MediaKind::kAudio ? "sounds" : "pictures",
        " (model.encoders.",
        info.kind == MediaKind::kAudio ? config.audio_encoder : config.vision_encoder, ")"));
  }
  if (info.kind == MediaKind::kAudio) {
    if (info.duration_s > config.audio.max_seconds) {
      return absl::InvalidArgumentError(absl::StrCat("a sound of ", info.duration_s,
                                                     " s, data.audio.max_seconds is ",
                                                     config.audio.max_seconds));
    }
    const MelShape mel = MelShapeOf(AudioSamples(info), config.audio);
    shape.item.t = static_cast<int32_t>(mel.frames);
    shape.item.num_input_rows = mel.rows;
    // A convolution of stride 2, then the mean of pairs.
    shape.item.num_output_rows = (mel.frames + 1) / 2 / 2;
    return shape;
  }
  PatchGrid grid;
  if (info.kind == MediaKind::kImage) {
    OMNI_ASSIGN_OR_RETURN(grid, ImageGrid({info.height, info.width}, config.image));
  } else {
    VideoOptions video = config.video;
    if (video_fps > 0) video.fps = video_fps;
    shape.video_fps = video.fps;
    OMNI_ASSIGN_OR_RETURN(const VideoPlan plan, PlanVideo(info, video));
    grid = plan.grid;
    shape.seconds_per_grid = plan.seconds_per_grid;
    shape.timestamps_s = plan.timestamps_s;
  }
  shape.merge = config.image.geometry.merge;
  shape.item = {.t = grid.t, .h = grid.h, .w = grid.w, .num_input_rows = grid.num_rows()};
  shape.item.num_output_rows = grid.num_rows() / (int64_t{shape.merge} * shape.merge);
  return shape;
}

std::string FrameTime(double seconds, FrameText text) {
  switch (text) {
    case FrameText::kNone:
      return "";
    case FrameText::kQwen3Vl:
      return absl::StrFormat("<%.1f seconds>", seconds);
    case FrameText::kSeed:
      return absl::StrFormat("[%.1f second]", seconds);
  }
  return "";
}

int64_t TokenizedSample::num_loss_tokens() const {
  return loss.empty() ? 0 : std::count(loss.begin() + 1, loss.end(), 1);
}

bool CutTo(int64_t max_tokens, TokenizedSample* sample) {
  if (static_cast<int64_t>(sample->tokens.size()) <= max_tokens) return true;
  int64_t end = 0;
  if (sample->is_document) {
    end = max_tokens;
    for (const MediaSpan& media : sample->media) {
      if (media.span_begin < end && end < media.span_end) end = media.span_begin;
    }
  } else {
    for (const int64_t turn_end : sample->turn_ends) {
      if (turn_end <= max_tokens) end = turn_end;
    }
  }
  if (end < 2 || std::count(sample->loss.begin() + 1, sample->loss.begin() + end, 1) == 0) {
    return false;
  }
  Truncate(end, sample);
  return true;
}

void WriteTokens(const TokenizedSample& sample, const PositionOptions& options, bool with_loss,
                 int64_t offset, parallel::TokenPack* pack) {
  const auto n = static_cast<int64_t>(sample.tokens.size());
  const int64_t total = pack->num_tokens();
  OMNI_CHECK_LE(offset + n, total);
  std::copy(sample.tokens.begin(), sample.tokens.end(), pack->token_ids.begin() + offset);
  for (int64_t i = 0; i < n; ++i) {
    const bool predicts = with_loss && i + 1 < n && sample.loss[i + 1] != 0;
    pack->targets[offset + i] = predicts ? sample.tokens[i + 1] : -1;
  }
  std::vector<PositionSpan> spans;
  int64_t begin = 0;
  for (const MediaSpan& media : sample.media) {
    PositionSpan run = media.shape.positions();
    if (media.run_begins.size() > 1) run = PositionSpan::Grid(1, run.h, run.w);
    for (const int64_t run_begin : media.run_begins) {
      spans.push_back(PositionSpan::Tokens(run_begin - begin));
      spans.push_back(run);
      begin = run_begin + media.run_rows();
    }
  }
  spans.push_back(PositionSpan::Tokens(n - begin));
  float* positions = pack->positions.data() + offset;
  const auto count = static_cast<size_t>(n);
  MropePositions(spans, options, {positions, count}, {positions + total, count},
                 {positions + 2 * total, count});
}

}  // namespace omni::dataloader
