#include "encoders/qwen_audio.h"

#include <algorithm>
#include <cmath>

#include "runtime/base/status.h"
#include "runtime/ops/ops.h"

namespace omni::encoders {
namespace {

using parallel::Affine;
using parallel::Bias;
using parallel::Matrix;
using parallel::MediaItem;
using parallel::MediaPack;
using parallel::Scale;
using parallel::Stem;

constexpr int32_t kKernel = 3;
constexpr Conv1dOptions kConv1{.stride = 1, .padding = 1};
constexpr Conv1dOptions kConv2{.stride = 2, .padding = 1};
constexpr int32_t kPool = 2;

// Host values in the compute dtype, on the device.
template <typename T>
TensorView UploadAs(ExecContext& ctx, DType dtype, absl::Span<const T> host, int64_t rows,
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

// Whisper's: the first half of the channels sin, the second cos, of t * 10000^(-i / (half - 1)).
std::vector<double> Sinusoid(int32_t length, int32_t channels) {
  const int32_t half = channels / 2;
  const double step = std::log(10000.0) / (half - 1);
  std::vector<double> table(static_cast<size_t>(length) * channels);
  for (int32_t t = 0; t < length; ++t) {
    for (int32_t i = 0; i < half; ++i) {
      const double angle = t * std::exp(-step * i);
      table[size_t(t) * channels + i] = std::sin(angle);
      table[size_t(t) * channels + half + i] = std::cos(angle);
    }
  }
  return table;
}

}  // namespace

absl::Status Read(const ConfigNode& node, QwenAudioConfig* out) {
  ConfigReader reader(node);
  reader.Child("kind");
  reader.Read("mel_bands", &out->mel_bands, AtLeast(1));
  reader.Read("hidden", &out->hidden, AtLeast(4));
  reader.Read("layers", &out->layers, AtLeast(1));
  reader.Read("heads", &out->heads, AtLeast(1));
  reader.Read("ffn", &out->ffn, AtLeast(1));
  reader.Read("chunk_frames", &out->chunk_frames, AtLeast(2));
  reader.Read("norm_eps", &out->norm_eps, Positive());
  reader.ReadStruct("init", &out->init);
  OMNI_RETURN_IF_ERROR(reader.Finish());

  if (out->hidden % out->heads != 0) {
    return reader.Error("heads", absl::StrCat("hidden ", out->hidden, " is not a multiple of ",
                                              out->heads, " heads"));
  }
  if (out->hidden % 2 != 0) {
    return reader.Error("hidden", absl::StrCat(out->hidden,
                                               " is odd; sinusoid positions need "
                                               "sine and cosine halves"));
  }
  if (out->chunk_frames % 2 != 0) {
    return reader.Error("chunk_frames", absl::StrCat(out->chunk_frames,
                                                     " is odd, but the stem "
                                                     "halves the frames of a chunk"));
  }
  return absl::OkStatus();
}

AudioLayout MakeAudioLayout(const std::vector<MediaItem>& items, int32_t chunk_frames) {
  AudioLayout layout{.cu_chunks = {0}, .cu_steps = {0}, .cu_items = {0}};
  std::vector<size_t> last_chunk;  // of each item
  for (const MediaItem& item : items) {
    for (int32_t done = 0; done < item.t; done += chunk_frames) {
      layout.cu_chunks.push_back(layout.cu_chunks.back() + std::min(chunk_frames, item.t - done));
    }
    last_chunk.push_back(layout.cu_chunks.size() - 1);
  }
  layout.cu_steps =
      Conv1dSeqlens(Conv1dSeqlens(layout.cu_chunks, kKernel, kConv1), kKernel, kConv2);
  for (const size_t chunk : last_chunk) layout.cu_items.push_back(layout.cu_steps[chunk]);
  return layout;
}

absl::StatusOr<std::unique_ptr<Encoder>> QwenAudio::Create(const ConfigNode& section,
                                                           const EncoderOptions& options) {
  QwenAudioConfig config{.init = options.init};
  OMNI_RETURN_IF_ERROR(Read(section, &config));
  return std::make_unique<QwenAudio>(config, options);
}

QwenAudio::QwenAudio(const QwenAudioConfig& config, const EncoderOptions& options)
    : config_(config),
      output_hidden_(options.output_hidden),
      sinusoid_(Sinusoid(config.chunk_frames / 2, config.hidden)),
      blocks_(config.layers) {
  Declare(options.name);
}

void QwenAudio::Declare(const std::string& name) {
  const parallel::InitConfig& init = config_.init;
  const int64_t hidden = config_.hidden, ffn = config_.ffn;
  const auto add = [&](std::string path, int64_t out, int64_t in, double std, Affine* affine) {
    list_.Add(Matrix(path + ".weight", out, in, std), &affine->weight);
    list_.Add(Bias(path + ".bias", out), &affine->bias);
  };
  const auto add_norm = [&](std::string path, Affine* affine) {
    list_.Add(Scale(path + ".weight", hidden), &affine->weight);
    list_.Add(Bias(path + ".bias", hidden), &affine->bias);
  };

  list_.Add(Stem(name + ".conv1.weight", {hidden, config_.mel_bands, kKernel},
                 init.Std(int64_t{config_.mel_bands} * kKernel)),
            &conv1_.weight);
  list_.Add(Bias(name + ".conv1.bias", hidden), &conv1_.bias);
  list_.Add({.path = name + ".conv2.weight",
             .shape = {hidden, hidden, kKernel},
             .init_std = init.Std(hidden * kKernel)},
            &conv2_.weight);
  list_.Add(Bias(name + ".conv2.bias", hidden), &conv2_.bias);
  for (int32_t layer = 0; layer < config_.layers; ++layer) {
    Block& block = blocks_[layer];
    const std::string prefix = absl::StrCat(name, ".layers.", layer, ".");
    add_norm(prefix + "attention_norm", &block.attention_norm);
    parallel::ParameterSpec qv =
        Matrix(prefix + "attention.qv.weight", 2 * hidden, hidden, init.Std(hidden));
    qv.num_stacked = 2;
    list_.Add(std::move(qv), &block.qv.weight);
    list_.Add(Bias(prefix + "attention.qv.bias", 2 * hidden), &block.qv.bias);
    list_.Add(Matrix(prefix + "attention.k.weight", hidden, hidden, init.Std(hidden)), &block.k);
    add(prefix + "attention.output", hidden, hidden, init.ResidualStd(hidden, config_.layers),
        &block.output);
    add_norm(prefix + "mlp_norm", &block.mlp_norm);
    add(prefix + "mlp.fc1", ffn, hidden, init.Std(hidden), &block.fc1);
    add(prefix + "mlp.fc2", hidden, ffn, init.ResidualStd(ffn, config_.layers), &block.fc2);
  }
  add_norm(name + ".post_norm", &post_norm_);
  add(name + ".projector", output_hidden_, hidden, init.Std(hidden) * init.projector_scale,
      &projector_);
}

int64_t QwenAudio::NumOutputRows(const MediaItem& item) const {
  return MakeAudioLayout({item}, config_.chunk_frames).cu_items.back() / kPool;
}

TensorView QwenAudio::UploadFrames(ExecContext& ctx, const MediaPack& pack) const {
  const absl::Span<const float> frames(reinterpret_cast<const float*>(pack.payload.data()),
                                       pack.payload.size() / sizeof(float));
  return UploadAs(ctx, dtype(), frames, pack.num_rows(), config_.mel_bands);
}

TensorView QwenAudio::UploadPositions(ExecContext& ctx, const AudioLayout& layout) const {
  const int64_t num_steps = layout.cu_steps.back();
  std::vector<double> rows;
  rows.reserve(num_steps * config_.hidden);
  for (size_t chunk = 0; chunk + 1 < layout.cu_steps.size(); ++chunk) {
    const int64_t length = layout.cu_steps[chunk + 1] - layout.cu_steps[chunk];
    rows.insert(rows.end(), sinusoid_.begin(), sinusoid_.begin() + length * config_.hidden);
  }
  return UploadAs(ctx, dtype(), absl::MakeConstSpan(rows), num_steps, config_.hidden);
}

Var QwenAudio::Attention(ExecContext& ctx, const Block& block, const Var& normed_FH,
                         const AudioLayout& layout) const {
  const int64_t num_steps = normed_FH.value.size(0), hidden = config_.hidden;
  const auto heads = [&](const Var& x_FH) {
    return Reshape(ctx, x_FH, {num_steps, config_.heads, config_.head_dim()});
  };
  const Var qv = Linear(ctx, normed_FH, block.qv.weight, &block.qv.bias);
  const Var k_FH = Linear(ctx, normed_FH, block.k);
  const std::vector<Var> parts = SplitColumns(ctx, qv, {hidden, hidden});
  const Var mixed_FND =
      VarlenAttention(ctx, heads(parts[0]), heads(k_FH), heads(parts[1]), layout.cu_steps, {});
  return Linear(ctx, Reshape(ctx, mixed_FND, {num_steps, hidden}), block.output.weight,
                &block.output.bias);
}

EncoderOutput QwenAudio::Encode(ExecContext& ctx, const MediaPack& pack) const {
  const AudioLayout layout = MakeAudioLayout(pack.items, config_.chunk_frames);
  int64_t num_rows = 0;
  for (const MediaItem& item : pack.items) num_rows += NumOutputRows(item);
  if (num_rows == 0) return NoRows(ctx, dtype(), output_hidden_);
  OMNI_CHECK_EQ(static_cast<int>(pack.dtype), static_cast<int>(DType::kFloat32));
  OMNI_CHECK_EQ(pack.row_elements, config_.mel_bands);
  OMNI_CHECK_EQ(pack.num_rows(), int64_t{layout.cu_chunks.back()});

  const Var frames_FM{.value = UploadFrames(ctx, pack)};
  const Var stem =
      Gelu(ctx, Conv1d(ctx, frames_FM, layout.cu_chunks, conv1_.weight, &conv1_.bias, kConv1));
  const Var steps_FH =
      Gelu(ctx, Conv1d(ctx, stem, layout.cu_chunks, conv2_.weight, &conv2_.bias, kConv2));
  const Var positions_FH{.value = UploadPositions(ctx, layout)};
  AddNormResult x = AddLayerNorm(ctx, steps_FH, positions_FH, blocks_[0].attention_norm.weight,
                                 &blocks_[0].attention_norm.bias, config_.norm_eps);
  for (int32_t layer = 0; layer < config_.layers; ++layer) {
    const Block& block = blocks_[layer];
    const Var attention_FH = Attention(ctx, block, x.normed_TH, layout);
    x = AddLayerNorm(ctx, x.sum_TH, attention_FH, block.mlp_norm.weight, &block.mlp_norm.bias,
                     config_.norm_eps);
    const Var inner = Gelu(ctx, Linear(ctx, x.normed_TH, block.fc1.weight, &block.fc1.bias));
    const Var mlp_FH = Linear(ctx, inner, block.fc2.weight, &block.fc2.bias);
    if (layer + 1 < config_.layers) {
      const Affine& next_norm = blocks_[layer + 1].attention_norm;
      x = AddLayerNorm(ctx, x.sum_TH, mlp_FH, next_norm.weight, &next_norm.bias, config_.norm_eps);
    } else {
      x.sum_TH = Add(ctx, x.sum_TH, mlp_FH);
    }
  }
  const Var pooled_RH = AvgPool1d(ctx, x.sum_TH, layout.cu_items, kPool);
  const Var normed_RH =
      LayerNorm(ctx, pooled_RH, post_norm_.weight, &post_norm_.bias, config_.norm_eps);
  return {.rows_RH = Linear(ctx, normed_RH, projector_.weight, &projector_.bias)};
}

FlopCount QwenAudio::Flops(const MediaPack& pack) const {
  FlopCounter counter(/*input_wants_grad=*/false);
  const AudioLayout layout = MakeAudioLayout(pack.items, config_.chunk_frames);
  const int64_t num_steps = layout.cu_steps.back();
  counter.Linear(layout.cu_chunks.back(), conv1_.weight);
  counter.Linear(num_steps, conv2_.weight);
  for (const Block& block : blocks_) {
    counter.Vector(block.attention_norm.weight);
    counter.Linear(num_steps, block.qv.weight);
    counter.Linear(num_steps, block.k);
    counter.Attention(layout.cu_steps, config_.heads, config_.head_dim(), /*causal=*/false);
    counter.Linear(num_steps, block.output.weight);
    counter.Vector(block.mlp_norm.weight);
    counter.Linear(num_steps, block.fc1.weight);
    counter.Linear(num_steps, block.fc2.weight);
  }
  counter.Vector(post_norm_.weight);
  int64_t num_rows = 0;
  for (const MediaItem& item : pack.items) num_rows += NumOutputRows(item);
  counter.Linear(num_rows, projector_.weight);
  return counter.count();
}

}  // namespace omni::encoders
