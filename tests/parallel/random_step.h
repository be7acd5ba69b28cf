// Random data layouts and steps, for tests of dealing and resharding.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel/data_layout.h"
#include "parallel/encoder_deal.h"
#include "parallel/step_layout.h"
#include "runtime/base/rng.h"

namespace omni::parallel {

inline int32_t Pick(CounterRng& rng, int32_t low, int32_t high) {
  return low + static_cast<int32_t>(rng.NextBelow(high - low + 1));
}

inline std::vector<int32_t> Divisors(int32_t number) {
  std::vector<int32_t> divisors;
  for (int32_t d = 1; d <= number; ++d) {
    if (number % d == 0) divisors.push_back(d);
  }
  return divisors;
}

inline DataLayout RandomData(CounterRng& rng) {
  DataLayout data{
      .stages = Pick(rng, 1, 3),
      .replicas = Pick(rng, 1, 3),
      .sequence = {.ring = Pick(rng, 1, 3), .ulysses = Pick(rng, 1, 2), .tensor = Pick(rng, 1, 2)},
      .ring_threshold = Pick(rng, 0, 12),
      .joint = Pick(rng, 0, 2) == 0 ? JointKind::kFirstStage : JointKind::kUniform,
      .encoders = {}};
  data.group_size = data.stages * Pick(rng, 1, 2);
  const std::vector<int32_t> divisors = Divisors(data.stage_ranks());
  const auto sequence = [&] {
    return divisors[Pick(rng, 0, static_cast<int32_t>(divisors.size()) - 1)];
  };
  const std::vector<int64_t> thresholds = {kThresholdAuto, kThresholdNone, 0, 12};
  data.encoders = {{.name = "vision",
                    .sequence = sequence(),
                    .threshold = thresholds[Pick(rng, 0, 3)],
                    .unit = {.input_rows = 4, .output_rows = 1}},
                   {.name = "audio",
                    .sequence = sequence(),
                    .threshold = thresholds[Pick(rng, 0, 3)],
                    .unit = {.input_rows = 10, .output_rows = 3}},
                   {.name = "indivisible", .sequence = sequence(), .threshold = 0}};
  return data;
}

// Not dealt. Documents of 0 to 30 tokens; some of them are media, in runs.
inline StepLayout RandomStep(const DataLayout& data, CounterRng& rng) {
  StepLayout step{.num_replicas = data.replicas,
                  .num_microbatches = Pick(rng, 1, 5),
                  .group_size = data.group_size,
                  .encoders = {},
                  .microbatches = {},
                  .items = {},
                  .routes = {}};
  for (const DataLayout::Encoder& encoder : data.encoders) {
    step.encoders.push_back({encoder.name, encoder.unit});
  }
  for (int32_t replica = 0; replica < data.replicas; ++replica) {
    for (int32_t m = 0; m < step.num_microbatches; ++m) {
      StepLayout::Microbatch microbatch;
      int32_t begin = 0;
      for (int32_t s = Pick(rng, 0, 3); s > 0; --s) {
        const int32_t length = Pick(rng, 0, 30);
        int32_t token = begin;
        while (token < begin + length && Pick(rng, 0, 2) > 0) {
          StepLayout::Item item{.encoder = Pick(rng, 0, 2),
                                .group = m / data.group_size,
                                .replica = replica,
                                .microbatch = m,
                                .lane = m * data.replicas + replica,
                                .sample = s};
          const int32_t index = static_cast<int32_t>(step.items.size());
          // One or two runs of tokens, with a gap between them.
          for (int32_t run = Pick(rng, 1, 2); run > 0; --run) {
            const int32_t rows = Pick(rng, 1, 9);
            if (token + rows > begin + length) break;
            step.routes.push_back({.item = index,
                                   .first_row = item.output_rows,
                                   .num_rows = rows,
                                   .position = token});
            item.output_rows += rows;
            token += rows + Pick(rng, 1, 3);
          }
          if (item.output_rows == 0) break;
          // As the units say: the last one may be cut short.
          item.input_rows = item.encoder == 1   ? (item.output_rows * 10 + 2) / 3
                            : item.encoder == 0 ? item.output_rows * 4
                                                : item.output_rows;
          step.items.push_back(item);
        }
        microbatch.documents.push_back(length);
        begin += length;
      }
      step.microbatches.push_back(std::move(microbatch));
    }
  }
  return step;
}

inline void DealRandomly(const DataLayout& data, CounterRng& rng, StepLayout* step) {
  std::vector<ItemCost> costs;
  for (const StepLayout::Item& item : step->items) {
    costs.push_back({.whole = item.input_rows * Pick(rng, 1, 3)});
  }
  const int64_t split = Pick(rng, 0, 6);
  for (ItemCost& cost : costs) cost.split = split;
  DealItems(data, costs, step);
}

}  // namespace omni::parallel
