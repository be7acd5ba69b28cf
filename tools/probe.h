// `omnitrain probe`: one conversation through a model, everything written down, so that it can be
// held against another framework.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"

namespace omni::tools {

struct ProbeOptions {
  std::string model;                   // Hugging Face folder, run directory or checkpoint
  std::string conversation;            // JSON, JSONL (the first sample), with media beside it
  std::string out;                     // safetensors
  std::vector<std::string> overrides;  // key.path=value of the recipe
  bool gradients = true;
};

// Writes, with T tokens, V pieces, one row of patches or mel frames per input row:
//   input_ids, targets int32 [T] (targets[i]: what token i has to predict, -1 for nothing),
//   position_ids fp32 [3, T], logits [T, V], losses [T], token_loss [1] (their mean over the targets),
//   loss [1]: what is minimised, with a mixture of experts' balance and z-loss by their coefficients
//   vision.pixel_values [rows, C * frames * patch * patch] normalised, vision.grid_thw int32
//   [items, 3] audio.input_features [frames, bands], audio.feature_lengths int32 [items] grad.NAME
//   for every parameter the loss reaches, by the checkpoint's names; for a run of no published
//   family by ours
// All in fp32. Errors: those of the model and the conversation.
absl::Status Probe(const ProbeOptions& options);

}  // namespace omni::tools
