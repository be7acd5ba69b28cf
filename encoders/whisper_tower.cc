#include "encoders/whisper_tower.h"

#include <utility>

#include "runtime/ops/ops.h"

namespace omni::encoders {
namespace {

using parallel::Bias;
using parallel::Matrix;
using parallel::Scale;
using parallel::Stem;

constexpr int32_t kKernel = 3;
constexpr Conv1dOptions kConv1{.stride = 1, .padding = 1};
constexpr Conv1dOptions kConv2{.stride = 2, .padding = 1};

template <typename T>
TensorView Converted(ExecContext& ctx, DType dtype, absl::Span<const T> host, int64_t rows,
                     int64_t columns) {
  const auto convert = [&]<typename To>(To) {
    std::vector<To> converted(host.size());
    for (size_t i = 0; i < host.size(); ++i) {
      if constexpr (std::is_same_v<To, BFloat16>) {
        converted[i] = BFloat16(static_cast<float>(host[i]));
      } else {
        converted[i] = static_cast<To>(host[i]);
      }
    }
    return UploadNew<To>(ctx, converted, {rows, columns});
  };
  if (DTypeOf<T>::value == dtype) return UploadNew<T>(ctx, host, {rows, columns});
  if (dtype == DType::kFloat64) return convert(double{});
  if (dtype == DType::kFloat32) return convert(float{});
  OMNI_CHECK(dtype == DType::kBFloat16);
  return convert(BFloat16{});
}

}  // namespace

TensorView UploadAs(ExecContext& ctx, DType dtype, absl::Span<const float> host, int64_t rows,
                    int64_t columns) {
  return Converted(ctx, dtype, host, rows, columns);
}
TensorView UploadAs(ExecContext& ctx, DType dtype, absl::Span<const double> host, int64_t rows,
                    int64_t columns) {
  return Converted(ctx, dtype, host, rows, columns);
}

void ReadWhisperTower(ConfigReader& reader, WhisperTowerConfig* out) {
  reader.Read("mel_bands", &out->mel_bands, AtLeast(1));
  reader.Read("hidden", &out->hidden, AtLeast(4));
  reader.Read("layers", &out->layers, AtLeast(1));
  reader.Read("heads", &out->heads, AtLeast(1));
  reader.Read("ffn", &out->ffn, AtLeast(1));
  reader.Read("norm_eps", &out->norm_eps, Positive());
  reader.ReadStruct("init", &out->init);
}

absl::Status CheckWhisperTower(const ConfigReader& reader, const WhisperTowerConfig& config) {
  if (config.hidden % config.heads != 0) {
    return reader.Error("heads", absl::StrCat("hidden ", config.hidden, " is not a multiple of ",
                                              config.heads, " heads"));
  }
  if (config.hidden % 2 != 0) {
    return reader.Error("hidden", absl::StrCat(config.hidden,
                                               " is odd; sinusoid positions need "
                                               "sine and cosine halves"));
  }
  return absl::OkStatus();
}

std::vector<int32_t> WhisperTower::Steps(absl::Span<const int32_t> cu_frames) {
  return Conv1dSeqlens(Conv1dSeqlens(cu_frames, kKernel, kConv1), kKernel, kConv2);
}

WhisperTower::WhisperTower(const WhisperTowerConfig& config, int32_t output_hidden)
    : config_(config),
      output_hidden_(output_hidden),
      blocks_({.hidden = config.hidden,
               .layers = config.layers,
               .heads = config.heads,
               .ffn = config.ffn,
               .norm_eps = config.norm_eps,
               .gelu = GeluKind::kErf,
               .key_bias = false}) {}

void WhisperTower::Declare(const std::string& name, parallel::ParameterList* list) {
  const parallel::InitConfig& init = config_.init;
  const int64_t hidden = config_.hidden;
  list->Add(Stem(name + ".conv1.weight", {hidden, config_.mel_bands, kKernel},
                 init.Std(int64_t{config_.mel_bands} * kKernel)),
            &conv1_.weight);
  list->Add(Bias(name + ".conv1.bias", hidden), &conv1_.bias);
  list->Add({.path = name + ".conv2.weight",
             .shape = {hidden, hidden, kKernel},
             .init_std = init.Std(hidden * kKernel)},
            &conv2_.weight);
  list->Add(Bias(name + ".conv2.bias", hidden), &conv2_.bias);
  blocks_.Declare(name + ".layers", init, list);
  list->Add(Scale(name + ".post_norm.weight", hidden), &post_norm_.weight);
  list->Add(Bias(name + ".post_norm.bias", hidden), &post_norm_.bias);
  list->Add(Matrix(name + ".projector.weight", output_hidden_, hidden,
                   init.Std(hidden) * init.projector_scale),
            &projector_.weight);
  list->Add(Bias(name + ".projector.bias", output_hidden_), &projector_.bias);
}

Var WhisperTower::Forward(ExecContext& ctx, const parallel::MediaPack& pack, const Layout& layout,
                          const Var& positions_SH, const SegmentAttention& attention,
                          parallel::Recompute recompute) const {
  OMNI_CHECK_EQ(static_cast<int>(pack.dtype), static_cast<int>(DType::kFloat32));
  OMNI_CHECK_EQ(pack.row_elements, config_.mel_bands);
  OMNI_CHECK_EQ(pack.num_rows(), int64_t{layout.cu_frames.back()});
  const absl::Span<const float> frames(reinterpret_cast<const float*>(pack.payload.data()),
                                       pack.payload.size() / sizeof(float));
  const Var frames_FM{.value = UploadAs(ctx, dtype(), frames, pack.num_rows(), config_.mel_bands)};
  const Var stem_FH =
      Gelu(ctx, Conv1d(ctx, frames_FM, layout.cu_frames, conv1_.weight, &conv1_.bias, kConv1));
  Var steps_SH =
      Gelu(ctx, Conv1d(ctx, stem_FH, layout.cu_frames, conv2_.weight, &conv2_.bias, kConv2));
  if (layout.kept_steps.has_value()) {
    const auto num_kept = static_cast<int64_t>(layout.kept_steps->size());
    steps_SH = GatherRows(ctx, steps_SH, UploadNew<int32_t>(ctx, *layout.kept_steps, {num_kept}));
  }
  const std::vector<Var> states = blocks_.Forward(ctx, {.x_PH = steps_SH,
                                                        .positions_PH = &positions_SH,
                                                        .attention = attention,
                                                        .recompute = recompute});
  const Var pooled_RH = AvgPool1d(ctx, states.back(), layout.cu_items, kPool);
  const Var normed_RH =
      LayerNorm(ctx, pooled_RH, post_norm_.weight, &post_norm_.bias, config_.norm_eps);
  return Linear(ctx, normed_RH, projector_.weight, &projector_.bias);
}

void WhisperTower::CountFlops(const Layout& layout, FlopCounter* counter) const {
  counter->Linear(layout.cu_frames.back(), conv1_.weight);
  counter->Linear(Steps(layout.cu_frames).back(), conv2_.weight);
  blocks_.CountFlops(layout.cu_steps.back(), FlopCounter::Pairs(layout.cu_steps, /*causal=*/false),
                     counter);
  counter->Vector(post_norm_.weight);
  int64_t num_rows = 0;
  for (size_t item = 0; item + 1 < layout.cu_items.size(); ++item) {
    num_rows += (layout.cu_items[item + 1] - layout.cu_items[item]) / kPool;
  }
  counter->Linear(num_rows, projector_.weight);
}

}  // namespace omni::encoders
