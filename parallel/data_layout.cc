#include "parallel/data_layout.h"

#include <numeric>

#include "runtime/base/check.h"

namespace omni::parallel {

DataLayout DataLayout::Of(const Layout& layout, const std::vector<SampleUnit>& units) {
  OMNI_CHECK(units.empty() || static_cast<int32_t>(units.size()) == layout.num_encoders());
  const ParallelConfig& config = layout.config();
  DataLayout data{.stages = config.pipeline,
                  .replicas = config.data(),
                  .sequence = layout.sequence(),
                  .ring_threshold = config.ring_threshold,
                  .group_size = layout.Schedule(1, {}).group_size(),
                  .joint = config.joint,
                  .encoders = {}};
  for (int32_t i = 0; i < layout.num_encoders(); ++i) {
    data.encoders.push_back({.name = layout.encoder_names()[i],
                             .sequence = layout.encoder(i).sequence,
                             .threshold = layout.encoder(i).threshold,
                             .unit = units.empty() ? SampleUnit{} : units[i]});
  }
  return data;
}

DataLayout DataLayout::DataParallel(int32_t world) {
  OMNI_CHECK_GE(world, 1);
  return {.replicas = world, .sequence = {}, .encoders = {}};
}

int32_t DataLayout::DomainReplicas(int32_t encoder) const {
  const int32_t ranks = sequence.num_ranks();
  return std::lcm(ranks, encoders[encoder].sequence) / ranks;
}

}  // namespace omni::parallel
