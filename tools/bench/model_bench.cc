// Forward and backward of the quickstart's model on one mixed microbatch, one core: 24 pictures of
// 84 x 28, 10 sounds of 0.96 s, 16 clips of 8 x 56 x 56, each with a short question.
//
//   build/bin/model_bench --benchmark_filter=mixed --benchmark_repetitions=20
#include <benchmark/benchmark.h>

#include <set>

#include "parallel/flat_storage.h"
#include "runtime/base/rng.h"
#include "trainer/assemble.h"

namespace omni {
namespace {

constexpr char kModel[] = R"(
decoder: {hidden: 128, layers: 4, heads: 4, kv_heads: 2, head_dim: 32, ffn: 352, vocab: 512,
          rope: {theta: 10000, sections: [4, 6, 6]}}
encoders:
  vision: {kind: qwen_vision, hidden: 128, layers: 4, heads: 4, ffn: 352, patch: 14, window: 112,
           full_attention_layers: [1, 3]}
  audio: {kind: qwen_audio, mel_bands: 80, hidden: 128, layers: 4, heads: 4, ffn: 512}
)";

struct Batch {
  parallel::TokenPack tokens;
  trainer::MediaPacks media;
  double scale = 0;
};

// Samples of `text` tokens, of which the last two have loss, around one medium each.
class BatchBuilder {
 public:
  explicit BatchBuilder(const trainer::MultimodalModel& model) : model_(model) {
    batch_.tokens.cu_seqlens = {0};
  }

  void Add(const std::string& encoder, parallel::MediaItem item, int64_t row_bytes, int text) {
    parallel::MediaPack& pack = batch_.media[encoder];
    pack.dtype = encoder == "audio" ? DType::kFloat32 : DType::kUInt8;
    pack.row_elements = static_cast<int32_t>(row_bytes / SizeOf(pack.dtype));
    item.input_row = pack.num_rows();
    item.num_input_rows = item.t * std::max(1, item.h * item.w);
    item.num_output_rows = model_.encoder(encoder)->NumOutputRows(item);
    for (int64_t i = 0; i < item.num_input_rows * row_bytes / SizeOf(pack.dtype); ++i) {
      if (pack.dtype == DType::kUInt8) {
        pack.payload.push_back(static_cast<uint8_t>(rng_.NextBelow(256)));
      } else {
        const auto value = static_cast<float>(rng_.NextNormal());
        const auto* bytes = reinterpret_cast<const uint8_t*>(&value);
        pack.payload.insert(pack.payload.end(), bytes, bytes + sizeof(value));
      }
    }
    parallel::TokenPack& tokens = batch_.tokens;
    const int64_t length = item.num_output_rows + text;
    for (int64_t i = 0; i < length; ++i) {
      const bool is_medium = i >= 4 && i < 4 + item.num_output_rows;
      if (is_medium) pack.token_rows.push_back(static_cast<int32_t>(tokens.num_tokens()));
      tokens.token_ids.push_back(is_medium ? 3 : static_cast<int32_t>(4 + rng_.NextBelow(500)));
      tokens.targets.push_back(i >= length - 2 ? static_cast<int32_t>(rng_.NextBelow(512)) : -1);
      num_targets_ += i >= length - 2;
      positions_.push_back(static_cast<float>(i));
    }
    tokens.cu_seqlens.push_back(static_cast<int32_t>(tokens.num_tokens()));
    pack.items.push_back(item);
  }

  Batch Build() {
    for (int axis = 0; axis < 3; ++axis) {
      batch_.tokens.positions.insert(batch_.tokens.positions.end(), positions_.begin(),
                                     positions_.end());
    }
    batch_.scale = 1.0 / std::max<int64_t>(1, num_targets_);
    return std::move(batch_);
  }

 private:
  const trainer::MultimodalModel& model_;
  CounterRng rng_{7, 0};
  Batch batch_;
  std::vector<float> positions_;
  int64_t num_targets_ = 0;
};

void BM_ForwardBackward(benchmark::State& state, const std::set<std::string>& kinds, DType dtype) {
  KernelRegistry kernels;
  RegisterCpuKernels(kernels);
  auto device = Device::Create({.reserved_bytes = int64_t{2} << 30, .kernels = &kernels});
  OMNI_CHECK_OK(device.status());
  const auto stream = (*device)->NewStream();
  encoders::EncoderRegistry registry;
  encoders::RegisterEncoders(registry);
  auto node = ConfigNode::Parse(kModel, "model.yaml");
  OMNI_CHECK_OK(node.status());
  auto model = trainer::MultimodalModel::Create(*node, registry);
  OMNI_CHECK_OK(model.status());
  TensorArena arena(**device);
  Tape tape(**device);
  ExecContext ctx{.device = **device, .stream = *stream, .tape = nullptr, .arena = &arena};
  const auto specs = (*model)->Parameters();
  const auto storage = parallel::FlatStorage::Create(
      ctx, specs,
      {.dtype = dtype,
       .module_of = [&](const std::string& path) { return (*model)->ModuleOf(path); },
       .rule_of = [](const parallel::ParameterSpec&) { return parallel::UpdateRule::kAdamW; },
       .ever_trained = [](const std::string&) { return true; }});
  (*model)->Bind(storage->Store([](const std::string&) { return true; }));

  BatchBuilder builder(**model);
  constexpr int64_t kPatchBytes = 3 * 2 * 14 * 14, kFrameBytes = 80 * 4;
  if (kinds.count("image") > 0) {
    for (int i = 0; i < 24; ++i) builder.Add("vision", {.t = 1, .h = 2, .w = 6}, kPatchBytes, 15);
  }
  if (kinds.count("audio") > 0) {
    for (int i = 0; i < 10; ++i) builder.Add("audio", {.t = 96}, kFrameBytes, 11);
  }
  if (kinds.count("video") > 0) {
    for (int i = 0; i < 16; ++i) builder.Add("vision", {.t = 4, .h = 4, .w = 4}, kPatchBytes, 12);
  }
  const Batch batch = builder.Build();
  ExecContext recording{.device = **device, .stream = *stream, .tape = &tape, .arena = nullptr};
  for (auto _ : state) {
    (*model)->ForwardBackward(recording, batch.tokens, batch.media, {.loss_token = batch.scale});
    OMNI_CHECK_OK(stream->Synchronize());
  }
  const auto flops = static_cast<double>((*model)->Flops(batch.tokens, batch.media).total());
  state.counters["GFLOP"] = flops * 1e-9;
  state.counters["GFLOP/s"] = benchmark::Counter(
      flops * 1e-9 * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
  state.counters["tokens"] = static_cast<double>(batch.tokens.num_tokens());
  state.counters["peak_MiB"] =
      static_cast<double>((*device)->pool().stats().high_water_bytes) / (1 << 20);
  tape.Reset();
}

const std::set<std::string> kMixed = {"image", "audio", "video"};
BENCHMARK_CAPTURE(BM_ForwardBackward, mixed / fp32, kMixed, DType::kFloat32)
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_ForwardBackward, image / fp32, std::set<std::string>{"image"}, DType::kFloat32)
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_ForwardBackward, audio / fp32, std::set<std::string>{"audio"}, DType::kFloat32)
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_ForwardBackward, video / fp32, std::set<std::string>{"video"}, DType::kFloat32)
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_ForwardBackward, mixed / bf16, kMixed, DType::kBFloat16)
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace omni

BENCHMARK_MAIN();
