// Packs: samples laid end to end, without padding, for towers and decoder alike.
//
// These are plain host values. A loader fills them; encoders and decoder read them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/tensor/dtype.h"

namespace omni::parallel {

// What one rank's decoder runs in one microbatch: sequences end to end.
struct TokenPack {
  std::vector<int32_t> token_ids;   // [T]; media rows hold their placeholder token
  std::vector<int32_t> cu_seqlens;  // [S + 1]; one segment per sample, {0} when empty
  std::vector<int32_t> cu_lanes;    // [L + 1]; one segment per lane's packed sequence; empty: the
                                    // whole pack is one
  std::vector<float> positions;     // [3, T]: temporal, height, width (M-RoPE)
  std::vector<int32_t> targets;     // [T]: the next token where there is loss, else -1

  int64_t num_tokens() const { return static_cast<int64_t>(token_ids.size()); }
};

// What sums over a microbatch are multiplied with so that, added up over all microbatches of the
// global batch, they are means over it, whatever the layout.
struct LossScales {
  double loss_token = 0.0;  // 1 / tokens with a target
  double token = 0.0;       // 1 / tokens
  double lane = 0.0;        // 1 / lanes' packed sequences
};

// One image, clip or sound as an encoder sees it.
struct MediaItem {
  int32_t t = 1, h = 0, w = 0;  // vision: patch grid (t in temporal pairs); audio: t = mel frames
  int64_t input_row = 0;        // first row in the pack's payload
  int64_t num_input_rows = 0;
  int64_t num_output_rows = 0;  // rows the decoder gets
};

// The input of one encoder in one microbatch. Rows are patches in merge order (uint8, laid out
// [C, temporal, h, w]) or mel frames (fp32).
struct MediaPack {
  DType dtype = DType::kUInt8;
  int32_t row_elements = 0;      // elements per input row
  std::vector<uint8_t> payload;  // [rows, row_elements] of dtype
  std::vector<MediaItem> items;
  std::vector<int32_t> token_rows;  // [sum of num_output_rows]: where each output row goes in
                                    // the TokenPack, items in order

  int64_t num_rows() const {
    return row_elements == 0
               ? 0
               : static_cast<int64_t>(payload.size()) / (row_elements * SizeOf(dtype));
  }
};

}  // namespace omni::parallel
