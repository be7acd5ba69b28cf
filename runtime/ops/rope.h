// Rotary position embedding, half-split ("rotate_half"): element i of a head is rotated
// together with element i + D/2.
#pragma once

#include "runtime/ops/tape.h"

namespace omni {

// x_TND [T, N, D] (rows may be strided: a slice of a fused projection), cos_TR and sin_TR
// [T, D/2] fp32 (fp64 in fp64): y1 = x1 cos - x2 sin, y2 = x2 cos + x1 sin.
Var Rope(ExecContext& ctx, const Var& x_TND, const TensorView& cos_TR, const TensorView& sin_TR);

// Tables for positions [axes, T]; computed on the host. `sections` says how many of the D/2
// frequencies each axis turns (they sum to D/2); 1-D RoPE is one axis with one section.
//   kChunked:     frequencies 0..s0-1 turn with axis 0, the next s1 with axis 1, ...
//   kInterleaved: frequency i turns with axis i % 3 while that axis has frequencies left in
//                 its section, else with axis 0 (Qwen3-VL)
//   kPerAxis:     each axis restarts at the lowest frequency of its own section: freqs of axis a
//                 are theta^(-2i / (2 s_a)), i < s_a (2-D RoPE of the vision towers)
enum class RopeLayout : uint8_t { kChunked, kInterleaved, kPerAxis };
// How frequencies are lowered so that a model trained on short texts reads longer ones.
//   kLinear:  all divided by `factor`
//   kLlama3:  wavelengths above original_positions / low_frequency_factor divided by `factor`,
//             those below original_positions / high_frequency_factor kept, between them blended
//             (Llama 3.1's "llama3" rope_type)
struct RopeScaling {
  enum class Kind : uint8_t { kNone, kLinear, kLlama3 };
  Kind kind = Kind::kNone;
  double factor = 1.0;
  double low_frequency_factor = 1.0, high_frequency_factor = 4.0;  // kLlama3
  int64_t original_positions = 8192;                               // kLlama3
};
struct RopeOptions {
  double theta = 10000.0;
  RopeLayout layout = RopeLayout::kChunked;
  std::vector<int32_t> sections = {};  // per axis
  RopeScaling scaling = {};
};
struct RopeTable {
  TensorView cos_TR, sin_TR;  // on the device, allocated from ctx
};
RopeTable MakeRopeTable(ExecContext& ctx, absl::Span<const float> positions_AT, int64_t num_tokens,
                        const RopeOptions& options, DType compute);

}  // namespace omni
