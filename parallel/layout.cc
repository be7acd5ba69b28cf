// Layout: from degrees to meshes (parallel_config.h).
#include <algorithm>

#include "parallel/layout_checks.h"
#include "parallel/parallel_config.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace omni::parallel {
namespace {

// How the context ranks divide between heads (all-to-all) and a ring. By heads as far as queries,
// and keys and values with or without copies, divide.
SequenceDegrees Degrees(const ParallelConfig& config, const DecoderShape& decoder) {
  SequenceDegrees degrees{.ring = config.context, .ulysses = 1, .tensor = config.tensor};
  if (config.context_kind == ContextKind::kRing) return degrees;
  const int32_t heads = decoder.heads / config.tensor;
  const int32_t kv_heads = std::max(1, decoder.kv_heads / config.tensor);
  for (int32_t u = config.context; u >= 1; --u) {
    if (config.context % u != 0 || heads % u != 0) continue;
    if (kv_heads % u != 0 && u % kv_heads != 0) continue;
    degrees.ring = config.context / u;
    degrees.ulysses = u;
    break;
  }
  return degrees;
}

// [chunks + 1]: the first layer of each; even unless the recipe says otherwise.
std::vector<int32_t> ChunkBegins(const ParallelConfig& config, int32_t layers) {
  const int32_t num_chunks = config.pipeline * config.chunks_per_rank;
  std::vector<int32_t> begins = {0};
  for (int32_t chunk = 0; chunk < num_chunks; ++chunk) {
    const int32_t even = layers / num_chunks + (chunk < layers % num_chunks);
    begins.push_back(begins.back() + (config.layers.empty() ? even : config.layers[chunk]));
  }
  return begins;
}

}  // namespace

absl::StatusOr<Layout> Layout::Create(const ConfigNode& section, const ParallelConfig& config,
                                      const DecoderShape& decoder,
                                      const std::vector<std::string>& encoders) {
  OMNI_RETURN_IF_ERROR(CheckRanks(section, config));
  OMNI_RETURN_IF_ERROR(CheckDecoderFits(section, config, decoder));
  OMNI_RETURN_IF_ERROR(CheckSchedule(section, config));
  OMNI_RETURN_IF_ERROR(CheckChunks(section, config, decoder.layers));
  OMNI_RETURN_IF_ERROR(CheckEncoders(section, config, encoders));
  const SequenceDegrees sequence = Degrees(config, decoder);
  OMNI_ASSIGN_OR_RETURN(Mesh decoder_mesh, Mesh::Create({{Axis::kPipeline, config.pipeline},
                                                         {Axis::kData, config.data()},
                                                         {Axis::kContext, sequence.ring},
                                                         {Axis::kUlysses, sequence.ulysses},
                                                         {Axis::kTensor, sequence.tensor}},
                                                        config.workers));
  OMNI_ASSIGN_OR_RETURN(Mesh expert_mesh,
                        Mesh::Create({{Axis::kPipeline, config.pipeline},
                                      {Axis::kData, config.stage_ranks() / config.expert},
                                      {Axis::kExpert, config.expert}},
                                     config.workers));
  Layout layout(std::move(decoder_mesh), std::move(expert_mesh));
  layout.config_ = config;
  layout.sequence_ = sequence;
  layout.kv_copies_ = std::max(1, config.tensor / std::max(1, decoder.kv_heads));
  layout.chunk_begins_ = ChunkBegins(config, decoder.layers);
  layout.encoder_names_ = encoders;
  for (const std::string& name : encoders) {
    EncoderParallel own;
    for (const auto& [mentioned, wishes] : config.encoders) {
      if (mentioned == name) own = wishes;
    }
    OMNI_ASSIGN_OR_RETURN(Mesh mesh,
                          Mesh::Create({{Axis::kPipeline, config.pipeline},
                                        {Axis::kInstance, config.stage_ranks() / own.sequence},
                                        {Axis::kSequence, own.sequence}},
                                       config.workers));
    layout.encoders_.push_back(std::move(mesh));
    layout.encoder_parallel_.push_back(own);
  }
  return layout;
}

Layout Layout::Alone(const DecoderShape& decoder, const std::vector<std::string>& encoders) {
  auto layout = Create(ConfigNode(), {}, decoder, encoders);
  OMNI_CHECK_OK(layout.status());
  return *std::move(layout);
}

std::pair<int32_t, int32_t> Layout::LayersOf(int32_t chunk) const {
  return {chunk_begins_[chunk], chunk_begins_[chunk + 1]};
}

int32_t Layout::SequenceIndex(int32_t rank) const {
  return rank % sequence_.num_ranks();  // ring, ulysses and tensor are the innermost axes
}

int32_t Layout::RankAt(int32_t pipeline_rank, int32_t replica, int32_t sequence_index) const {
  return (pipeline_rank * config_.data() + replica) * sequence_.num_ranks() + sequence_index;
}

ScheduleOptions Layout::Schedule(int32_t microbatches, const std::vector<bool>& trains) const {
  return config_.ScheduleOf(microbatches, trains);
}

}  // namespace omni::parallel
