// Layout: from degrees to meshes (parallel_config.h).
#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
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

// "found 3, which does not divide the 8 layers": `whole` is what it should divide.
std::string DoesNotDivide(int32_t found, absl::string_view what, int32_t whole) {
  return absl::StrCat("found ", found, ", which does not divide ", what, " (", whole, ")");
}

absl::Status CheckDegrees(const ConfigNode& section, const ParallelConfig& config,
                          const DecoderShape& decoder) {
  ConfigReader reader(section);
  if (config.workers % config.replica_ranks() != 0) {
    return reader.Error("workers",
                        absl::StrCat("found ", config.workers, ", expected a multiple of pipeline ",
                                     config.pipeline, " x context ", config.context, " x tensor ",
                                     config.tensor, " = ", config.replica_ranks()));
  }
  if (decoder.heads % config.tensor != 0) {
    return reader.Error("tensor",
                        DoesNotDivide(config.tensor, "model.decoder.heads", decoder.heads));
  }
  if (decoder.kv_heads % config.tensor != 0 &&
      (decoder.kv_heads == 0 || config.tensor % decoder.kv_heads != 0)) {
    return reader.Error("tensor", absl::StrCat("found ", config.tensor,
                                               "; it must divide, or be a multiple of, "
                                               "model.decoder.kv_heads (",
                                               decoder.kv_heads, ")"));
  }
  if (config.expert > 1 && decoder.experts == 0) {
    return reader.Error("expert", absl::StrCat("found ", config.expert,
                                               ", but model.decoder has no experts (moe)"));
  }
  if (config.expert > 1 && decoder.experts % config.expert != 0) {
    return reader.Error("expert",
                        DoesNotDivide(config.expert, "model.decoder.moe.experts", decoder.experts));
  }
  if (config.stage_ranks() % config.expert != 0) {
    return reader.Error("expert",
                        DoesNotDivide(config.expert, "the ranks of a stage", config.stage_ranks()));
  }
  return absl::OkStatus();
}

// [chunks + 1]: the first layer of each.
absl::StatusOr<std::vector<int32_t>> ChunkBegins(const ConfigNode& section,
                                                 const ParallelConfig& config, int32_t layers) {
  const int32_t num_chunks = config.pipeline * config.chunks_per_rank;
  ConfigReader reader(section);
  std::vector<int32_t> begins = {0};
  if (config.layers.empty()) {
    if (layers < num_chunks) {
      return reader.Error("pipeline", absl::StrCat("makes ", num_chunks, " chunks of ", layers,
                                                   " decoder layers; expected at most as many"));
    }
    for (int32_t chunk = 0; chunk < num_chunks; ++chunk) {
      begins.push_back(begins.back() + layers / num_chunks + (chunk < layers % num_chunks));
    }
    return begins;
  }
  const int32_t sum = std::accumulate(config.layers.begin(), config.layers.end(), 0);
  if (static_cast<int32_t>(config.layers.size()) != num_chunks || sum != layers) {
    return reader.Error(
        "layers",
        absl::StrCat("found ", config.layers.size(), " numbers with sum ", sum, ", expected ",
                     num_chunks, " (one a chunk) with sum ", layers, " (model.decoder.layers)"));
  }
  for (const int32_t count : config.layers) begins.push_back(begins.back() + count);
  return begins;
}

}  // namespace

absl::StatusOr<Layout> Layout::Create(const ConfigNode& section, const ParallelConfig& config,
                                      const DecoderShape& decoder,
                                      const std::vector<std::string>& encoders) {
  OMNI_RETURN_IF_ERROR(CheckDegrees(section, config, decoder));
  OMNI_ASSIGN_OR_RETURN(std::vector<int32_t> begins, ChunkBegins(section, config, decoder.layers));
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
  layout.chunk_begins_ = std::move(begins);
  layout.encoder_names_ = encoders;
  for (const auto& [name, unused] : config.encoders) {
    if (std::find(encoders.begin(), encoders.end(), name) != encoders.end()) continue;
    const std::string nearest = NearestName(name, encoders);
    return section.Get("encoders")
        .Error(
            absl::StrCat("no encoder \"", name, "\"",
                         nearest.empty() ? "" : absl::StrCat("; did you mean \"", nearest, "\"?")));
  }
  for (const std::string& name : encoders) {
    EncoderParallel own;
    for (const auto& [mentioned, wishes] : config.encoders) {
      if (mentioned == name) own = wishes;
    }
    if (config.stage_ranks() % own.sequence != 0) {
      ConfigReader reader(section.Get("encoders").Get(name));
      return reader.Error(
          "sequence", DoesNotDivide(own.sequence, "the ranks of a stage", config.stage_ranks()));
    }
    OMNI_ASSIGN_OR_RETURN(Mesh mesh,
                          Mesh::Create({{Axis::kPipeline, config.pipeline},
                                        {Axis::kInstance, config.stage_ranks() / own.sequence},
                                        {Axis::kSequence, own.sequence}},
                                       config.workers));
    layout.encoders_.push_back(std::move(mesh));
    layout.encoder_parallel_.push_back(own);
  }
  const absl::Status schedule = Check(layout.Schedule(1, std::vector<bool>(encoders.size(), true)));
  if (!schedule.ok()) return section.Get("schedule").Error(schedule.message());
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
  ScheduleOptions options{.schedule = config_.schedule,
                          .ranks = config_.pipeline,
                          .chunks_per_rank = config_.chunks_per_rank,
                          .microbatches = microbatches,
                          .joint = config_.joint,
                          .q = config_.q,
                          .groups_ahead = config_.groups_ahead};
  for (const bool encoder_trains : trains) options.encoders.push_back({.trains = encoder_trains});
  return options;
}

}  // namespace omni::parallel
