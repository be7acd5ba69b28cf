// The `data:` section of a recipe.
//
//   data:
//     seed: 1
//     lanes: 4                     # sequences of one global batch, whatever the number of workers
//     sequence_length: 512         # most tokens of one packed sequence
//     window: 64                   # draws packed together
//     micro_batch_sequences: 1     # sequences one microbatch holds
//     overlong: drop               # or cut, at a turn
//     tokenizer: data/quickstart/tokenizer.model   # or a tokenizer.json
//     template: chatml             # plain, qwen2, qwen2_5, qwen2_vl, qwen2_5_omni, qwen2_audio,
//                                  # qwen3, llama3: see special_tokens.h, chat_template.h
//     text_has_specials: false     # true: what spells a special token is one (else its characters)
//     special_tokens: {image_pad: "<|image_pad|>", ...}   # where not the template's own
//     image: {resize: fast, alpha: white,  # or torchvision; or drop (image.h)
//             min_pixels: 3136, max_pixels: 1003520}
//     video:
//       {resize: fast, fps: 2, min_frames: 4, max_frames: 768,
//        min_pixels_per_frame: .., max_pixels_per_frame: ..,
//        frame_rule: even,       # or qwen2_5, qwen3 (patches.h); then also
//                                # min_pixels_per_clip, max_pixels_per_clip: of all its frames
//        budget: none,           # or seed: at most 81,920 tokens (patches.h)
//        frame_text: none}       # or qwen3_vl, seed: the time before each frame
//     audio: {mel_bands: 80, max_seconds: 30, mask_frames: 0, mask_bands: 0}
//     position_rule: qwen2_5_max # see positions.h
//     positions_per_second: 25
//     loader: {threads: 1, prefetch_steps: 4, memory_mib: 256,
//              retry_s: 10}       # how long a file that can't be read is tried again
//     max_broken: 0.05           # share of a source's draws; 1: any. See sample_tally.h
//     sources: [{name: image, path: data/quickstart/train/image, weight: 24}, ...]  # or video_fps
//     phases:                    # also lanes, sequence_length: the batch while it lasts
//       - {until_step: 100, weights: {image: 1.0}}   # or until_tokens
//     eval:
//       - {name: image, path: data/quickstart/heldout/image,
//          group_by: question}   # a key of the samples with a few short values: scores by it
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "dataloader/media/audio.h"
#include "dataloader/media/patches.h"
#include "dataloader/positions.h"
#include "dataloader/special_tokens.h"
#include "runtime/base/config.h"

namespace omni::dataloader {

// What stands before each frame of a clip; with one, every frame is a run of pads of its own.
enum class FrameText : uint8_t {
  kNone,     // a clip is one run of pads
  kQwen3Vl,  // "<1.5 seconds>"
  kSeed      // "[1.5 second]"
};
enum class Overlong : uint8_t {
  kDrop,  // samples of more than sequence_length tokens are left out
  kCut,   // kept up to the last turn that fits (documents: up to the last token)
};

struct SourceConfig {
  std::string name;      // unique; names the loss of the source. No control characters
  std::string path;      // see OpenSource
  double weight = 1;     // share of the draws, relative to the other sources
  double video_fps = 0;  // of its clips; 0: data.video.fps
};
absl::Status Read(const ConfigNode& node, SourceConfig* out);

// A stretch of training with its own mixture and batch. Exactly one of the two bounds is set;
// tokens are nominal ones: lanes * sequence_length of every step so far. Later phases start where
// earlier ones end; after the last one the section's own values hold.
struct PhaseConfig {
  int64_t until_step = 0;
  int64_t until_tokens = 0;
  // Sources not named are not drawn from; empty: the sources' own weights.
  std::vector<std::pair<std::string, double>> weights;
  // The first so many of the job's lanes are drawn from, the others wait where they stand; 0: all.
  int32_t lanes = 0;
  // Of windows opened in the phase: a lane first uses up the one it has. 0: the section's.
  int64_t sequence_length = 0;
};
absl::Status Read(const ConfigNode& node, PhaseConfig* out);

struct EvalConfig {
  std::string name;  // unique among the eval sources
  std::string path;
  int64_t max_samples = 0;  // the first ones; 0: all
  double video_fps = 0;     // of its clips; 0: data.video.fps
  std::string group_by;     // a key of each sample; "": none
};
absl::Status Read(const ConfigNode& node, EvalConfig* out);

// Random bands of a clip's log-mel set to its mean (SpecAugment), in training only.
struct AudioMask {
  int32_t frames = 0;  // widest band of frames; 0: none
  int32_t bands = 0;   // widest band of mel bands; 0: none
};

struct PrefetchConfig {
  int32_t threads = 1;  // that decode; 0: everything happens inside Next
  int32_t prefetch_steps = 4;
  int64_t memory_mib = 256;  // most decoded media waiting; one step may take more, alone
  // How long reading is tried again while the storage fails, before the step does: 0 to 3600. In
  // training half of runtime.deadline_s at most, for the other ranks wait meanwhile.
  double retry_s = 10;
};
absl::Status Read(const ConfigNode& node, PrefetchConfig* out);

struct DataConfig {
  uint64_t seed = 1;
  int32_t lanes = 1;
  int64_t sequence_length = 4096;
  int32_t window = 64;
  int32_t micro_batch_sequences = 1;
  Overlong overlong = Overlong::kDrop;
  std::string tokenizer;
  Template chat_template = Template::kChatml;
  SpecialTokenNames special_tokens;
  bool text_has_specials = false;  // of TemplateOptions
  // Their `geometry` (patch, temporal_patch, merge) is not read: the vision encoder's, set with
  // SetPatchGeometry.
  ImageOptions image;
  VideoOptions video;
  AudioOptions audio;
  AudioMask audio_mask;
  PositionOptions positions;
  FrameText frame_text = FrameText::kNone;
  std::string vision_encoder = "vision";  // whose packs images and clips are in
  std::string audio_encoder = "audio";
  // Not a key of a recipe: samples are prompts to be continued, so they end where an answer begins
  // and need no loss.
  bool as_prompts = false;
  bool ends_last_turn = false;  // of TemplateOptions; no key either
  // Not keys either: whether the model has towers for them. Samples with other media are left out.
  bool has_vision = true, has_audio = true;
  double max_broken = 0.05;  // share of a source's draws that may be broken or blanked, 0 to 1
  PrefetchConfig loader;
  std::vector<SourceConfig> sources;  // at least one
  std::vector<PhaseConfig> phases;
  std::vector<EvalConfig> eval;

  void SetPatchGeometry(const PatchGeometry& geometry) {
    image.geometry = geometry;
    video.geometry = geometry;
  }
  // Whether the mixture draws from sources[index] at any time.
  bool DrawsFrom(size_t index) const;
  // What the phase of `step` says, or else the section. Weights add up to 1 and hold, as the
  // sequence length, for a window that opens at `step`.
  std::vector<double> WeightsAt(int64_t step) const;
  int32_t LanesAt(int64_t step) const;
  int64_t SequenceLengthAt(int64_t step) const;
  // The first step that has so many nominal tokens before it.
  int64_t StepAtTokens(int64_t tokens) const;
  // The steps at which the phases end.
  std::vector<int64_t> PhaseEnds() const;
  const PhaseConfig* PhaseAt(int64_t step) const;  // null after the last
};

// InvalidArgument with file, line and key: unknown keys, numbers out of range, contradictions.
absl::Status Read(const ConfigNode& node, DataConfig* out);

}  // namespace omni::dataloader
