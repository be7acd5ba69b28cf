#include "runtime/ops/rope.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>
#include <unordered_map>

#include "runtime/device/args/rope.h"

namespace omni {
namespace {

// Which axis turns each of the D/2 frequencies, and the frequency itself (radians per position).
struct Frequency {
  int32_t axis;
  double radians;
};

double Scaled(double radians, const RopeScaling& scaling) {
  switch (scaling.kind) {
    case RopeScaling::Kind::kNone:
      return radians;
    case RopeScaling::Kind::kLinear:
      return radians / scaling.factor;
    case RopeScaling::Kind::kLlama3: {
      const double turns =  // within the original context
          static_cast<double>(scaling.original_positions) * radians / (2 * std::numbers::pi);
      const double low = scaling.low_frequency_factor, high = scaling.high_frequency_factor;
      const double kept = std::clamp((turns - low) / (high - low), 0.0, 1.0);
      return (kept + (1 - kept) / scaling.factor) * radians;
    }
  }
  return radians;
}

std::vector<Frequency> Frequencies(const RopeOptions& options) {
  const auto num_axes = static_cast<int32_t>(options.sections.size());
  OMNI_CHECK_GT(num_axes, 0);
  int32_t total = 0;
  for (const int32_t section : options.sections) {
    OMNI_CHECK_GE(section, 0);
    total += section;
  }
  std::vector<Frequency> frequencies;
  frequencies.reserve(total);
  const auto radians = [&](int32_t i, int32_t of) {
    return Scaled(std::pow(options.theta, -static_cast<double>(i) / of), options.scaling);
  };
  switch (options.layout) {
    case RopeLayout::kChunked:
      for (int32_t axis = 0; axis < num_axes; ++axis)
        for (int32_t n = 0; n < options.sections[axis]; ++n)
          frequencies.push_back({axis, radians(static_cast<int32_t>(frequencies.size()), total)});
      break;
    case RopeLayout::kInterleaved:
      for (int32_t i = 0; i < total; ++i) {
        const int32_t axis = i % num_axes;
        frequencies.push_back(
            {i / num_axes < options.sections[axis] ? axis : 0, radians(i, total)});
      }
      break;
    case RopeLayout::kPerAxis:
      for (int32_t axis = 0; axis < num_axes; ++axis)
        for (int32_t n = 0; n < options.sections[axis]; ++n)
          frequencies.push_back({axis, radians(n, options.sections[axis])});
      break;
  }
  return frequencies;
}

// In fp32, angles are the product of an fp32 frequency and the fp32 position, as the published
// checkpoints were trained: at position 10^4 the rounding is 10^-3 radians, not to be improved on.
template <typename T>
RopeTable MakeTable(ExecContext& ctx, absl::Span<const float> positions_AT, int64_t num_tokens,
                    const RopeOptions& options) {
  const std::vector<Frequency> frequencies = Frequencies(options);
  const auto half = static_cast<int64_t>(frequencies.size());
  OMNI_CHECK_EQ(static_cast<int64_t>(positions_AT.size()),
                static_cast<int64_t>(options.sections.size()) * num_tokens);
  std::vector<T> cos_TR(num_tokens * half), sin_TR(num_tokens * half);
  for (size_t axis = 0; axis < options.sections.size(); ++axis) {
    // Positions repeat (in every segment, along every image row): turn each only once.
    std::unordered_map<uint32_t, int64_t> first_token;
    for (int64_t t = 0; t < num_tokens; ++t) {
      const float position = positions_AT[axis * num_tokens + t];
      const auto [found, is_new] = first_token.try_emplace(std::bit_cast<uint32_t>(position), t);
      const int64_t same = found->second;
      for (int64_t i = 0; i < half; ++i) {
        if (frequencies[i].axis != static_cast<int32_t>(axis)) continue;
        T& cos = cos_TR[t * half + i];
        T& sin = sin_TR[t * half + i];
        if (is_new) {
          const T angle = static_cast<T>(position) * static_cast<T>(frequencies[i].radians);
          cos = static_cast<T>(std::cos(static_cast<double>(angle)));
          sin = static_cast<T>(std::sin(static_cast<double>(angle)));
        } else {
          cos = cos_TR[same * half + i];
          sin = sin_TR[same * half + i];
        }
      }
    }
  }
  return {UploadNew<T>(ctx, cos_TR, {num_tokens, half}),
          UploadNew<T>(ctx, sin_TR, {num_tokens, half})};
}

}  // namespace

RopeTable MakeRopeTable(ExecContext& ctx, absl::Span<const float> positions_AT, int64_t num_tokens,
                        const RopeOptions& options, DType compute) {
  if (compute == DType::kFloat64) return MakeTable<double>(ctx, positions_AT, num_tokens, options);
  return MakeTable<float>(ctx, positions_AT, num_tokens, options);
}

Var Rope(ExecContext& ctx, const Var& x_TND, const TensorView& cos_TR, const TensorView& sin_TR) {
  const TensorView& x = x_TND.value;
  OMNI_CHECK_EQ(static_cast<int>(x.num_dims), 3);
  OMNI_CHECK(x.stride(2) == 1);
  for (const TensorView* table : {&cos_TR, &sin_TR}) {
    OMNI_CHECK_EQ(static_cast<int>(table->num_dims), 2);
    OMNI_CHECK_EQ(table->size(0), x.size(0));
    OMNI_CHECK_EQ(2 * table->size(1), x.size(2));
    OMNI_CHECK(table->dtype == (x.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32));
  }
  RopeArgs args{
      .x_TND = x, .cos_TR = cos_TR, .sin_TR = sin_TR, .y_TND = ctx.New(x.dtype, x.shape())};
  Launch(ctx, OpId::kRopeForward, x.dtype, args);
  const Var inputs[] = {x_TND};
  if (ctx.tape == nullptr || !Tape::Records(inputs, false)) return {.value = args.y_TND};
  ctx.tape->Save("rope_cos", NeededBy::kBackwardInput, cos_TR);
  ctx.tape->Save("rope_sin", NeededBy::kBackwardInput, sin_TR);
  const auto backward = [cos_TR, sin_TR](Tape::BackwardContext& back) {
    if (back.grad_output(0).empty() || !back.needs_grad_input(0)) return;
    const RopeArgs grads{.x_TND = back.grad_output(0),
                         .cos_TR = cos_TR,
                         .sin_TR = sin_TR,
                         .y_TND = back.new_grad_input(0)};
    Launch(back.ctx, OpId::kRopeBackward, grads.x_TND.dtype, grads);
  };
  return ctx.tape->Record("rope", inputs, {&args.y_TND, 1}, false, backward)[0];
}

}  // namespace omni
