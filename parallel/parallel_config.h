// The recipe's `parallel:` section: how a job wishes to lie over its workers.
//
//   parallel:
//     workers: 8
//     pipeline: 2               # stages; the ranks that pipeline, context and tensor leave over
//                               # are data parallel
//     schedule: 1f1b            # gpipe | 1f1b | interleaved | zb_h1 | zb_v
//     chunks_per_rank: 1        # virtual stages: interleaved >= 2, zb_v 2 (its default)
//     layers: [3, 5]            # of each chunk, in order; absent: even, the first ones longer
//     tensor: 2                 # with sequence parallelism
//     context: {degree: 2, kind: ring, threshold: 0}
//                               # ulysses: by heads, as far as they divide, the rest a ring;
//                               # a ring splits documents of more than threshold tokens
//     expert: 2                 # over data x context x tensor
//     recompute: none           # none | full | selective, of decoder chunks
//     weights: replicated       # | zero2 | zero3, of the decoder over the ranks that share them
//     offload: {optimizer_state: device, activations: device}
//                               # or host: offload.h; refused until there is a device apart from it
//     joint: {kind: uniform, q: 1, groups_ahead: 1}
//                               # uniform | upfront | recompute | first_stage
//     reshard: {staging: 0.25, whole_mib: 64}
//                               # rows between encoders and decoder travel in rounds, so that a
//                               # rank stages at most this fraction of a group's at once, or
//                               # whole_mib where that is more (trainer/pipeline/row_exchange.h);
//                               # 1: always all at once
//     encoders:
//       vision: {sequence: 2, threshold: auto, weights: replicated, recompute: none}
//                               # threshold: input rows, auto, or none (nothing is split);
//                               # weights: replicated | zero2 | zero3 within a sequence group
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "parallel/mesh.h"
#include "parallel/offload.h"
#include "parallel/schedule/build.h"
#include "parallel/sequence_shards.h"
#include "runtime/base/config.h"

namespace omni::parallel {

enum class ContextKind : uint8_t { kRing, kUlysses };
enum class Recompute : uint8_t { kNone, kFull, kSelective };
enum class WeightStorage : uint8_t { kReplicated, kZero2, kZero3 };  // sharded_weights.h
absl::string_view Name(WeightStorage weights);                       // "zero2": as in recipes

inline constexpr int64_t kThresholdAuto = -1;
inline constexpr int64_t kThresholdNone = -2;

struct EncoderParallel {
  int32_t sequence = 1;                // ranks of a sequence group; divides the ranks of a stage
  int64_t threshold = kThresholdAuto;  // input rows: longer samples are split over the group
  WeightStorage weights = WeightStorage::kReplicated;
  Recompute recompute = Recompute::kNone;
  bool operator==(const EncoderParallel&) const = default;
};
absl::Status Read(const ConfigNode& node, EncoderParallel* out);

struct ParallelConfig {
  int32_t workers = 1;
  int32_t pipeline = 1;
  int32_t chunks_per_rank = 1;
  ScheduleKind schedule = ScheduleKind::k1F1B;
  std::vector<int32_t> layers;
  int32_t tensor = 1;
  int32_t context = 1;
  ContextKind context_kind = ContextKind::kRing;
  int32_t ring_threshold = 0;
  int32_t expert = 1;
  Recompute recompute = Recompute::kNone;
  WeightStorage weights = WeightStorage::kReplicated;  // of the decoder
  OffloadConfig offload;                               // likewise
  JointKind joint = JointKind::kUniform;
  int32_t q = 1;
  int32_t groups_ahead = 1;
  double staging = 0.25;         // of a group's rows, in (0, 1]
  double staged_whole_mib = 64;  // that little is staged whole
  std::vector<std::pair<std::string, EncoderParallel>> encoders;

  int32_t replica_ranks() const { return pipeline * context * tensor; }
  int32_t data() const { return workers / replica_ranks(); }
  int32_t stage_ranks() const { return workers / pipeline; }
  // For this many microbatches a replica; `trains` says of each encoder whether it is trained now.
  ScheduleOptions ScheduleOf(int32_t microbatches, const std::vector<bool>& trains) const;
  bool operator==(const ParallelConfig&) const = default;
};
// InvalidArgument with file, line and key.
absl::Status Read(const ConfigNode& node, ParallelConfig* out);

// What of the decoder the layout must fit.
struct DecoderShape {
  int32_t layers = 0, heads = 0, kv_heads = 0, experts = 0;
  // Cut among tensor ranks as well, evenly or not; 0: there is none.
  int32_t ffn = 0, shared_ffn = 0, vocab = 0;
};

// The layout of a job: pure, the same on every rank.
//
// Ranks run pipeline > data > ring > ulysses > tensor, tensor fastest: the most talkative axis is
// innermost. The expert mesh lies over the same stage: pipeline > expert-data > expert. An
// encoder's: pipeline > instance > sequence.
class Layout {
 public:
  // `section`: where errors point, the recipe's `parallel`. InvalidArgument where degrees do not
  // fit ranks, heads, widths, layers or experts: layout_checks.h.
  static absl::StatusOr<Layout> Create(const ConfigNode& section, const ParallelConfig& config,
                                       const DecoderShape& decoder,
                                       const std::vector<std::string>& encoders);
  // Of one rank, without a recipe.
  static Layout Alone(const DecoderShape& decoder, const std::vector<std::string>& encoders);

  const ParallelConfig& config() const { return config_; }
  // kPipeline, kData, kContext, kUlysses, kTensor; kPipeline, kData, kExpert; kPipeline, kInstance,
  // kSequence.
  const Mesh& decoder_mesh() const { return decoder_; }
  const Mesh& expert_mesh() const { return expert_; }
  const Mesh& encoder_mesh(int32_t encoder) const { return encoders_[encoder]; }
  const SequenceDegrees& sequence() const { return sequence_; }
  // Tensor ranks that hold the same KV head: 1 where there are enough of them.
  int32_t kv_copies() const { return kv_copies_; }
  int32_t num_ranks() const { return config_.workers; }
  int32_t num_encoders() const { return static_cast<int32_t>(encoders_.size()); }
  const std::vector<std::string>& encoder_names() const { return encoder_names_; }
  const EncoderParallel& encoder(int32_t index) const { return encoder_parallel_[index]; }

  // Layers [first, last) of a chunk.
  std::pair<int32_t, int32_t> LayersOf(int32_t chunk) const;
  int32_t num_chunks() const { return config_.pipeline * config_.chunks_per_rank; }
  int32_t PipelineRank(int32_t rank) const { return decoder_.Coord(rank, Axis::kPipeline); }
  int32_t Replica(int32_t rank) const { return decoder_.Coord(rank, Axis::kData); }
  // Index of a rank within the ring x ulysses x tensor ranks of its replica and stage.
  int32_t SequenceIndex(int32_t rank) const;
  // The rank at (pipeline rank, replica, sequence index).
  int32_t RankAt(int32_t pipeline_rank, int32_t replica, int32_t sequence_index) const;

  // ParallelConfig::ScheduleOf.
  ScheduleOptions Schedule(int32_t microbatches, const std::vector<bool>& trains) const;

 private:
  Layout(Mesh decoder, Mesh expert) : decoder_(std::move(decoder)), expert_(std::move(expert)) {}

  ParallelConfig config_;
  SequenceDegrees sequence_;
  Mesh decoder_, expert_;
  std::vector<Mesh> encoders_;
  std::vector<std::string> encoder_names_;
  std::vector<EncoderParallel> encoder_parallel_;
  std::vector<int32_t> chunk_begins_;  // [chunks + 1]
  int32_t kv_copies_ = 1;
};

}  // namespace omni::parallel
