#include "tools/bench_model.h"

#include <malloc.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <random>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "runtime/base/status.h"
#include "runtime/device/args/optimizer.h"
#include "runtime/device/cpu/fma_peak.h"
#include "runtime/device/cpu/processor.h"
#include "runtime/ops/copy.h"
#include "runtime/ops/ops.h"

namespace omni::tools {
namespace {

// All parameters in one flat buffer, gradients and moments likewise, so that the optimizer is
// one launch.
class Parameters {
 public:
  // A parameter of normal values with this deviation around `mean`.
  void Add(Weight* weight, std::vector<int64_t> shape, float deviation, float mean = 0.0f) {
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    declared_.push_back({weight, std::move(shape), deviation, mean, total_});
    total_ += (count + 15) / 16 * 16;
  }
  void Linear(Weight* weight, int64_t out, int64_t in) {
    Add(weight, {out, in}, 1.0f / std::sqrt(3.0f * static_cast<float>(in)));
  }

  void Allocate(ExecContext& ctx) {
    for (TensorView* flat : {&values_, &grads_, &first_, &second_}) {
      *flat = ctx.New(DType::kFloat32, {total_});
      FillWith(ctx, 0.0, *flat);
    }
    std::mt19937 bits(1);
    std::normal_distribution<float> normal;
    for (const Declared& p : declared_) {
      const auto slice = [&](const TensorView& flat) {
        return TensorView::Dense(flat.ptr<float>() + p.offset, DType::kFloat32, flat.device,
                                 p.shape);
      };
      p.weight->value = slice(values_);
      p.weight->grad = slice(grads_);
      std::vector<float> host(p.weight->value.num_elements());
      for (float& x : host) x = p.mean + p.deviation * normal(bits);
      Upload(ctx, host.data(), p.weight->value.num_bytes(), p.weight->value);
    }
  }
  int64_t total() const { return total_; }

  // AdamW, and gradients back to zero.
  void Update(ExecContext& ctx, int64_t step) {
    const AdamWArgs args{.weight = values_,
                         .grad = grads_,
                         .first_moment = first_,
                         .second_moment = second_,
                         .grad_scale = 1.0,
                         .lr = 3e-4,
                         .beta1 = 0.9,
                         .beta2 = 0.999,
                         .eps = 1e-8,
                         .weight_decay = 0.1,
                         .correction1 = 1.0 - std::pow(0.9, static_cast<double>(step)),
                         .correction2 = 1.0 - std::pow(0.999, static_cast<double>(step))};
    Launch(ctx, OpId::kAdamW, DType::kFloat32, args);
    FillWith(ctx, 0.0, grads_);
  }

 private:
  struct Declared {
    Weight* weight;
    std::vector<int64_t> shape;
    float deviation, mean;
    int64_t offset;
  };
  std::vector<Declared> declared_;
  int64_t total_ = 0;
  TensorView values_, grads_, first_, second_;
};

class Model {
 public:
  virtual ~Model() = default;
  virtual void Declare(Parameters& parameters) = 0;
  virtual void MakeBatch(ExecContext& ctx) = 0;  // in memory that stays
  virtual Var Loss(ExecContext& ctx) = 0;
  virtual int64_t tokens() const = 0;
  virtual double flops() const = 0;
};

std::vector<int32_t> EqualSegments(int32_t count, int32_t length) {
  std::vector<int32_t> cu;
  for (int32_t i = 0; i <= count; ++i) cu.push_back(i * length);
  return cu;
}

std::vector<int32_t> RandomIds(int64_t count, int32_t below, uint32_t seed) {
  std::mt19937 bits(seed);
  std::uniform_int_distribution<int32_t> uniform(0, below - 1);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = uniform(bits);
  return ids;
}

// Attention over a fused projection; `rope` null: none.
Var Attention(ExecContext& ctx, const Var& qkv, int64_t heads, int64_t head_dim,
              absl::Span<const int32_t> cu_seqlens, const RopeTable* rope, bool causal) {
  const int64_t tokens = qkv.value.size(0), hidden = heads * head_dim;
  const std::vector<Var> parts = SplitColumns(ctx, qkv, {hidden, hidden, hidden});
  Var q_TND = Reshape(ctx, parts[0], {tokens, heads, head_dim});
  Var k_TND = Reshape(ctx, parts[1], {tokens, heads, head_dim});
  const Var v_TND = Reshape(ctx, parts[2], {tokens, heads, head_dim});
  if (rope != nullptr) {
    q_TND = Rope(ctx, q_TND, rope->cos_TR, rope->sin_TR);
    k_TND = Rope(ctx, k_TND, rope->cos_TR, rope->sin_TR);
  }
  const Var mixed = VarlenAttention(ctx, q_TND, k_TND, v_TND, cu_seqlens, {.causal = causal});
  return Reshape(ctx, mixed, {tokens, hidden});
}

class Gpt : public Model {
 public:
  void Declare(Parameters& parameters) override {
    parameters.Add(&embedding_, {kVocab, kHidden}, 1.0f);
    layers_.resize(kLayers);
    for (Layer& layer : layers_) {
      parameters.Add(&layer.norm1, {kHidden}, 0.0f, 1.0f);
      parameters.Linear(&layer.qkv, 3 * kHidden, kHidden);
      parameters.Linear(&layer.output, kHidden, kHidden);
      parameters.Add(&layer.norm2, {kHidden}, 0.0f, 1.0f);
      parameters.Linear(&layer.gate_up, 2 * kFfn, kHidden);
      parameters.Linear(&layer.down, kHidden, kFfn);
    }
    parameters.Add(&norm_, {kHidden}, 0.0f, 1.0f);
    parameters.Linear(&head_, kVocab, kHidden);
  }
  void MakeBatch(ExecContext& ctx) override {
    ids_T_ = UploadNew<int32_t>(ctx, RandomIds(tokens(), kVocab, 2), {tokens()});
    targets_T_ = UploadNew<int32_t>(ctx, RandomIds(tokens(), kVocab, 3), {tokens()});
    cu_seqlens_ = EqualSegments(kBatch, kLength);
    std::vector<float> positions(tokens());
    for (int64_t t = 0; t < tokens(); ++t) positions[t] = static_cast<float>(t % kLength);
    rope_ = MakeRopeTable(ctx, positions, tokens(), {.sections = {kHidden / kHeads / 2}},
                          DType::kFloat32);
  }
  Var Loss(ExecContext& ctx) override {
    constexpr float kEps = 1e-5f;
    Var x_TH = Embedding(ctx, ids_T_, embedding_);
    Var normed_TH = RmsNorm(ctx, x_TH, layers_[0].norm1, kEps);
    for (size_t i = 0; i < layers_.size(); ++i) {
      const Layer& layer = layers_[i];
      const Var mixed_TH = Attention(ctx, Linear(ctx, normed_TH, layer.qkv), kHeads,
                                     kHidden / kHeads, cu_seqlens_, &rope_, true);
      const AddNormResult middle =
          AddRmsNorm(ctx, x_TH, Linear(ctx, mixed_TH, layer.output), layer.norm2, kEps);
      const Var gated_TF = SwiGlu(ctx, Linear(ctx, middle.normed_TH, layer.gate_up));
      const Weight& next = i + 1 < layers_.size() ? layers_[i + 1].norm1 : norm_;
      const AddNormResult end =
          AddRmsNorm(ctx, middle.sum_TH, Linear(ctx, gated_TF, layer.down), next, kEps);
      x_TH = end.sum_TH;
      normed_TH = end.normed_TH;
    }
    return LinearCrossEntropy(ctx, normed_TH, head_, targets_T_, 1.0 / tokens()).loss;
  }
  int64_t tokens() const override { return int64_t{kBatch} * kLength; }
  double flops() const override {
    const double products =
        kLayers * (4.0 * kHidden * kHidden + 3.0 * kHidden * kFfn) + 1.0 * kHidden * kVocab;
    return 6.0 * products * tokens() + 3.0 * kLayers * 4.0 * tokens() * kLength * kHidden;
  }

 private:
  static constexpr int32_t kHidden = 512, kLayers = 8, kHeads = 8, kFfn = 1408, kVocab = 8192,
                           kBatch = 8, kLength = 256;
  struct Layer {
    Weight norm1, qkv, output, norm2, gate_up, down;
  };
  Weight embedding_, norm_, head_;
  std::vector<Layer> layers_;
  TensorView ids_T_, targets_T_;
  std::vector<int32_t> cu_seqlens_;
  RopeTable rope_;
};

class Vit : public Model {
 public:
  void Declare(Parameters& parameters) override {
    const auto linear = [&](Affine* affine, int64_t out, int64_t in) {
      parameters.Linear(&affine->weight, out, in);
      parameters.Add(&affine->bias, {out}, 0.0f);
    };
    const auto norm = [&](Affine* affine) {
      parameters.Add(&affine->weight, {kHidden}, 0.0f, 1.0f);
      parameters.Add(&affine->bias, {kHidden}, 0.0f);
    };
    linear(&patch_, kHidden, kPatchDim);
    parameters.Add(&position_, {kPatches, kHidden}, 0.0f);
    layers_.resize(kLayers);
    for (Layer& layer : layers_) {
      norm(&layer.norm1);
      linear(&layer.qkv, 3 * kHidden, kHidden);
      linear(&layer.output, kHidden, kHidden);
      norm(&layer.norm2);
      linear(&layer.up, 4 * kHidden, kHidden);
      linear(&layer.down, kHidden, 4 * kHidden);
    }
    norm(&norm_);
    parameters.Linear(&head_, kClasses, kHidden);
  }
  void MakeBatch(ExecContext& ctx) override {
    std::mt19937 bits(2);
    std::normal_distribution<float> normal;
    std::vector<float> pixels(tokens() * kPatchDim);
    for (float& x : pixels) x = normal(bits);
    pixels_TI_ = UploadNew<float>(ctx, pixels, {tokens(), kPatchDim});
    std::vector<int32_t> places(tokens());
    for (int64_t t = 0; t < tokens(); ++t) places[t] = static_cast<int32_t>(t % kPatches);
    places_T_ = UploadNew<int32_t>(ctx, places, {tokens()});
    classes_ = UploadNew<int32_t>(ctx, RandomIds(kBatch, kClasses, 3), {kBatch});
    cu_seqlens_ = EqualSegments(kBatch, kPatches);
  }
  Var Loss(ExecContext& ctx) override {
    constexpr float kEps = 1e-5f;
    const Var pixels{.value = pixels_TI_};
    Var x_TH = Add(ctx, Linear(ctx, pixels, patch_.weight, &patch_.bias),
                   Embedding(ctx, places_T_, position_));
    Var normed_TH = LayerNorm(ctx, x_TH, layers_[0].norm1.weight, &layers_[0].norm1.bias, kEps);
    for (size_t i = 0; i < layers_.size(); ++i) {
      const Layer& layer = layers_[i];
      const Var mixed_TH = Attention(ctx, Linear(ctx, normed_TH, layer.qkv.weight, &layer.qkv.bias),
                                     kHeads, kHidden / kHeads, cu_seqlens_, nullptr, false);
      const AddNormResult middle =
          AddLayerNorm(ctx, x_TH, Linear(ctx, mixed_TH, layer.output.weight, &layer.output.bias),
                       layer.norm2.weight, &layer.norm2.bias, kEps);
      const Var up_TF = Gelu(ctx, Linear(ctx, middle.normed_TH, layer.up.weight, &layer.up.bias));
      const Affine& next = i + 1 < layers_.size() ? layers_[i + 1].norm1 : norm_;
      const AddNormResult end =
          AddLayerNorm(ctx, middle.sum_TH, Linear(ctx, up_TF, layer.down.weight, &layer.down.bias),
                       next.weight, &next.bias, kEps);
      x_TH = end.sum_TH;
      normed_TH = end.normed_TH;
    }
    const Var pooled_BH = AvgPool1d(ctx, normed_TH, cu_seqlens_, kPatches);
    return LinearCrossEntropy(ctx, pooled_BH, head_, classes_, 1.0 / kBatch).loss;
  }
  int64_t tokens() const override { return int64_t{kBatch} * kPatches; }
  double flops() const override {
    const double products = kLayers * 12.0 * kHidden * kHidden + 1.0 * kPatchDim * kHidden;
    return 6.0 * products * tokens() + 3.0 * kLayers * 4.0 * tokens() * kPatches * kHidden;
  }

 private:
  static constexpr int32_t kHidden = 384, kLayers = 6, kHeads = 6, kPatches = 256,
                           kPatchDim = 16 * 16 * 3, kClasses = 1000, kBatch = 16;
  struct Affine {
    Weight weight, bias;
  };
  struct Layer {
    Affine norm1, qkv, output, norm2, up, down;
  };
  Affine patch_, norm_;
  Weight position_, head_;
  std::vector<Layer> layers_;
  TensorView pixels_TI_, places_T_, classes_;
  std::vector<int32_t> cu_seqlens_;
};

rusage Usage() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage;
}

double CpuMs() {
  const rusage usage = Usage();
  const auto ms = [](const timeval& t) { return 1e3 * t.tv_sec + 1e-3 * t.tv_usec; };
  return ms(usage.ru_utime) + ms(usage.ru_stime);
}

int64_t HeapBytes() {
  const struct mallinfo2 info = mallinfo2();
  return static_cast<int64_t>(info.arena + info.hblkhd);
}

}  // namespace

absl::StatusOr<BenchModelResult> BenchModel(const BenchModelOptions& options) {
  std::unique_ptr<Model> model;
  if (options.model == "gpt") model = std::make_unique<Gpt>();
  if (options.model == "vit") model = std::make_unique<Vit>();
  if (model == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("bench knows the models gpt and vit, not \"", options.model, "\""));
  }
  if (options.threads < 1 || options.steps < 1) {
    return absl::InvalidArgumentError("bench needs at least one thread and one step");
  }
  KernelRegistry registry;
  RegisterCpuKernels(registry);
  DeviceOptions device_options;
  device_options.num_threads = options.threads;
  device_options.kernels = &registry;
  OMNI_ASSIGN_OR_RETURN(auto device, Device::Create(device_options));
  const auto stream = device->NewStream();
  TensorArena arena(*device);
  ExecContext setup{.device = *device, .stream = *stream, .arena = &arena};
  Parameters parameters;
  model->Declare(parameters);
  parameters.Allocate(setup);
  model->MakeBatch(setup);
  const TensorView one = UploadNew<float>(setup, {1.0f}, {1});

  BenchModelResult result;
  result.model = options.model;
  result.threads = options.threads;
  result.tokens_per_step = model->tokens();
  result.gflop_per_step = model->flops() / 1e9;
  result.processor = cpu::ProcessorText();
  result.peak_gflops = cpu::MeasureFmaPeak(options.threads);
  Tape tape(*device);
  int64_t pool_before = 0, heap_before = 0, faults_before = 0;
  for (int32_t step = 0; step <= options.steps; ++step) {
    const double cpu_begin_ms = CpuMs();
    const auto begin = std::chrono::steady_clock::now();
    tape.Reset();
    ExecContext ctx{.device = *device, .stream = *stream, .tape = &tape};
    const Var loss = model->Loss(ctx);
    tape.EndForward({&loss, 1});
    const Tape::RootGrad root{loss, one};
    tape.Backward(ctx, {&root, 1});
    parameters.Update(setup, step + 1);
    result.loss_last = HostRead<float>(ctx, loss.value)[0];
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
    if (step == 0) {
      result.loss_first = result.loss_last;
      pool_before = device->pool().stats().high_water_bytes;
      heap_before = HeapBytes();
      faults_before = Usage().ru_minflt;
    } else {
      result.step_ms.push_back(took.count());
      result.step_cpu_ms.push_back(CpuMs() - cpu_begin_ms);
    }
  }
  result.page_faults = Usage().ru_minflt - faults_before;
  result.heap_growth_bytes = HeapBytes() - heap_before;
  result.pool_peak_bytes = device->pool().stats().high_water_bytes;
  result.pool_growth_bytes = result.pool_peak_bytes - pool_before;
  result.rss_peak_bytes = Usage().ru_maxrss * int64_t{1024};
  return result;
}

double BenchModelResult::best_ms() const {
  return *std::min_element(step_ms.begin(), step_ms.end());
}

double BenchModelResult::best_cpu_ms() const {
  return *std::min_element(step_cpu_ms.begin(), step_cpu_ms.end());
}

double BenchModelResult::median_ms() const {
  std::vector<double> sorted = step_ms;
  std::sort(sorted.begin(), sorted.end());
  const size_t middle = sorted.size() / 2;
  return sorted.size() % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

std::string BenchModelResult::ToJson() const {
  const double tokens = static_cast<double>(tokens_per_step);
  return absl::StrFormat(
      "{\"model\": \"%s\", \"threads\": %d, \"steps\": %d, "
      "\"tokens_per_s\": {\"median\": %.1f, \"best\": %.1f}, "
      "\"step_ms\": {\"median\": %.2f, \"best\": %.2f, \"best_cpu\": %.1f}, "
      "\"all_step_ms\": [%s], "
      "\"gflop_per_step\": %.1f, \"gflops\": {\"median\": %.1f, \"best\": %.1f}, "
      "\"processor\": \"%s\", \"peak_gflops\": %.1f, "
      "\"share_of_peak\": {\"median\": %.3f, \"best\": %.3f, \"cpu\": %.3f}, "
      "\"peak_bytes\": {\"rss\": %d, \"pool\": %d}, "
      "\"after_first_step\": {\"pool_growth_bytes\": %d, \"heap_growth_bytes\": %d, "
      "\"page_faults\": %d}, \"loss\": {\"first\": %.5f, \"last\": %.5f}}",
      model, threads, step_ms.size(), 1e3 * tokens / median_ms(), 1e3 * tokens / best_ms(),
      median_ms(), best_ms(), best_cpu_ms(),
      absl::StrJoin(step_ms, ", ",
                    [](std::string* out, double ms) { absl::StrAppendFormat(out, "%.1f", ms); }),
      gflop_per_step, 1e3 * gflop_per_step / median_ms(), 1e3 * gflop_per_step / best_ms(),
      processor, peak_gflops, median_share(), best_share(), cpu_share(), rss_peak_bytes,
      pool_peak_bytes, pool_growth_bytes, heap_growth_bytes, page_faults, loss_first, loss_last);
}

std::string BenchModelResult::ToText() const {
  const double tokens = static_cast<double>(tokens_per_step);
  return absl::StrFormat(
      "%s, %d threads: step %.0f ms median, %.0f best; %.0f tokens/s median, %.0f best; "
      "%.1f GFLOP/s median, %.1f best, %.0f and %.0f %% of the %.1f that FMAs reach (%s); "
      "peak %.2f GB resident, %.2f GB pool; "
      "loss %.3f to %.3f in %d steps; since the first: pool +%d, heap +%d bytes, %d page faults",
      model, threads, median_ms(), best_ms(), 1e3 * tokens / median_ms(), 1e3 * tokens / best_ms(),
      1e3 * gflop_per_step / median_ms(), 1e3 * gflop_per_step / best_ms(), 100 * median_share(),
      100 * best_share(), peak_gflops, processor, static_cast<double>(rss_peak_bytes) / 1e9,
      static_cast<double>(pool_peak_bytes) / 1e9, loss_first, loss_last, step_ms.size() + 1,
      pool_growth_bytes, heap_growth_bytes, page_faults);
}

}  // namespace omni::tools
