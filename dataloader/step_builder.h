// One rank's part of one step: laid out from metadata, then filled in by decoding.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "dataloader/batch.h"
#include "dataloader/media_decoder.h"
#include "dataloader/media_task.h"
#include "dataloader/payload_buffers.h"
#include "dataloader/sample_planner.h"
#include "dataloader/step_planner.h"
#include "parallel/data_layout.h"

namespace omni::dataloader {

// Who this rank is, and how all share a step.
struct LoaderView {
  int32_t rank = 0;
  parallel::DataLayout data;  // that names config's encoders (NameEncoders)
  parallel::EncodeCosts costs;
};

class StepBuilder {
 public:
  StepBuilder(const SamplePlanner& planner, StepPlan plan, const LoaderView& view);

  StepBuilder(const StepBuilder&) = delete;
  StepBuilder& operator=(const StepBuilder&) = delete;

  int64_t payload_bytes() const;  // of all that this rank decodes; known before Allocate
  void Allocate(PayloadBuffers& buffers);

  // Samples with media that this rank decodes, in order.
  size_t num_tasks() const { return tasks_.size(); }
  const std::string& sample_id(size_t task) const { return tasks_[task].plan->sample_id; }
  // After Allocate; several threads may fill different tasks. As dataloader::Fill.
  absl::Status Fill(size_t task, const MediaDecoder& decoder);

  StepBatch Finish();

 private:
  // What this rank encodes of one encoder in one group.
  struct Encode {
    PackBuilder whole, shard;
    std::vector<int32_t> whole_items, shard_items;
  };
  void LayMedia(const StepPlan& plan);

  const SamplePlanner& planner_;
  const int32_t rank_;
  StepBatch batch_;
  std::vector<std::vector<std::unique_ptr<Encode>>>
      encodes_;  // [encoder][group]; tasks point there
  std::vector<MediaTask> tasks_;
  std::vector<SampleFailure> task_samples_;  // which each task decodes
};

}  // namespace omni::dataloader
