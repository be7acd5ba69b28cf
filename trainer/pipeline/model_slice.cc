#include "trainer/pipeline/model_slice.h"

#include <map>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace omni::trainer {

using parallel::Axis;
using parallel::Placement;
using parallel::PlacementClass;

std::vector<backbone::DecoderPart> PartsOf(const parallel::Layout& layout, int32_t rank) {
  std::vector<backbone::DecoderPart> parts;
  for (const int32_t chunk : layout.Schedule(1, {}).ChunksOf(layout.PipelineRank(rank))) {
    const auto [first, last] = layout.LayersOf(chunk);
    parts.push_back({.first_layer = first,
                     .last_layer = last,
                     .embeds = chunk == 0,
                     .has_head = chunk + 1 == layout.num_chunks()});
  }
  return parts;
}

std::vector<Placement> PlacementsOf(const MultimodalModel& model, const parallel::Layout& layout,
                                    int32_t rank) {
  const parallel::ScheduleOptions schedule = layout.Schedule(1, {});
  const std::vector<int32_t> chunks = schedule.ChunksOf(layout.PipelineRank(rank));
  std::map<std::string, int32_t> chunk_of;  // the first that has it
  for (size_t i = 0; i < chunks.size(); ++i) {
    for (const parallel::ParameterSpec& spec : model.chunks()[i]->Parameters()) {
      chunk_of.emplace(spec.path, chunks[i]);
    }
  }
  for (size_t e = 0; e < model.encoders().size(); ++e) {
    for (const parallel::ParameterSpec& spec : model.encoders()[e].second->Parameters()) {
      chunk_of.emplace(spec.path, layout.num_chunks() + static_cast<int32_t>(e));
    }
  }
  for (const parallel::LoraTarget& target : model.lora_targets()) {
    for (const parallel::ParameterSpec* spec : {&target.a, &target.b}) {
      chunk_of.emplace(spec->path, chunk_of.at(target.path));
    }
  }
  const bool is_tied =  // between two chunks, of the same stage or not
      model.decoder().config().tied_embeddings && layout.num_chunks() > 1;
  std::vector<Placement> placements;
  for (const parallel::ParameterSpec& spec : model.Parameters()) {
    const int32_t chunk = chunk_of.at(spec.path);
    const PlacementClass whole = chunk >= layout.num_chunks() ? PlacementClass::kEncoder
                                 : is_tied && spec.path == "decoder.embedding.weight"
                                     ? PlacementClass::kTied
                                     : PlacementClass::kStage;
    placements.push_back(parallel::Place(
        spec, whole, layout.decoder_mesh().Coord(rank, Axis::kTensor), layout.sequence().tensor,
        layout.expert_mesh().Coord(rank, Axis::kExpert), layout.config().expert));
    placements.back().chunk = chunk;
  }
  return placements;
}

}  // namespace omni::trainer
