// Training without a model: parameters of a small multimodal decoder laid over ranks by a layout,
// gradients drawn at random in parts that sum to the same whole whatever the layout.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "parallel/placement_groups.h"
#include "runtime/comm/communicator.h"
#include "tests/support/test_device.h"
#include "trainer/optimizer/sharded_optimizer.h"

namespace omni::trainer {

// Ranks lie pipeline > data > tensor; experts over a stage's ranks, expert fastest; sequence groups
// of the encoders likewise.
struct PlacedLayout {
  int32_t pipeline = 1, data = 1, tensor = 1, expert = 1;
  int32_t chunks_per_rank = 1;
  int32_t sequence = 1;
  parallel::WeightStorage weights = parallel::WeightStorage::kReplicated;  // of the encoders
  parallel::WeightStorage decoder_weights = parallel::WeightStorage::kReplicated;
  int32_t num_ranks() const { return pipeline * data * tensor; }
  std::string ToString() const;
};

struct PlacedModel {
  int32_t heads = 4, kv_heads = 2;
  bool tied = false;
  bool lora = false;  // adapters, and only they and the encoder are trained
  std::vector<parallel::ParameterSpec> specs() const;
  // "vision", "audio" (frozen), "decoder", "lora.decoder".
  static std::string ModuleOf(const std::string& path);
  bool EverTrained(const std::string& module) const;
};

// Of 2 to `max_ranks` ranks, as the model divides.
PlacedLayout RandomLayout(const PlacedModel& model, uint64_t seed, int32_t max_ranks);

struct PlacedRun {
  PlacedModel model;
  PlacedLayout layout;
  OptimizerConfig config;
  DType dtype = DType::kFloat64;
  DeviceKind device = DeviceKind::kCpu;
  int first_step = 0, end_step = 3;
  bool reduce_early = false;                     // chunk by chunk
  std::string load_from, save_to;                // checkpoint folders
  std::map<std::string, int64_t> update_counts;  // with load_from
};

struct PlacedOutcome {
  std::map<std::string, std::vector<double>> state;  // whole tensors, from what ranks would save
  std::vector<double> norms;
  std::map<std::string, int64_t> update_counts;
};

// Every rank as a thread. Fails the test, and says why, if a rank fails, if ranks disagree on
// values, norms or counts, or if an element is saved never or twice.
PlacedOutcome RunPlaced(const PlacedRun& run);

}  // namespace omni::trainer
