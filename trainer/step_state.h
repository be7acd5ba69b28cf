// What one step of a Trainer gathers on its way; only the trainer's own files include it.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "absl/status/status.h"
#include "dataloader/batch.h"
#include "trainer/optimizer/sharded_optimizer.h"
#include "trainer/trainer.h"

namespace omni::trainer {

struct Trainer::StepState {
  dataloader::StepBatch batch;
  absl::Status failure;  // of this rank
  bool gave_up = false;  // this rank: its data were not ready, and the job is to stop
  int64_t begin_us = 0, compute_begin_us = 0;
  double data_wait_ms = 0, forward_backward_ms = 0, reduce_ms = 0, update_ms = 0, gather_ms = 0;
  // Of this rank, then (after AgreeOnStep) of all.
  double loss_sum = 0;
  std::vector<double> source_loss, source_tokens;
  double encoder_flops = 0, decoder_flops = 0;
  std::vector<double> router_sums;  // see RouterBalance
  std::map<dataloader::SampleFault, int64_t> faults;
  // Agreed.
  double failures = 0, stops = 0;
  double slowest_ms = 0, mean_ms = 0, memory_bytes_max = 0;
  GradientSummary gradients;
  bool skipped = false;
};

}  // namespace omni::trainer
