// A whole model on one CPU device, with its weights held here: what tests of towers, decoder and
// their assembly share. Values go in and come out as double, whatever the dtype in between.
#pragma once

#include <cmath>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "parallel/flat_storage.h"
#include "runtime/base/rng.h"
#include "runtime/checkpoint/safetensors.h"
#include "runtime/device/device.h"
#include "runtime/device/exec_context.h"
#include "runtime/ops/tape.h"
#include "trainer/assemble.h"

namespace omni::testing {

inline std::vector<double> ReadDoubles(ExecContext& ctx, const TensorView& view) {
  std::vector<double> out;
  if (view.num_elements() == 0) return out;
  if (view.dtype == DType::kFloat64) {
    out = HostRead<double>(ctx, view);
  } else if (view.dtype == DType::kFloat32) {
    for (const float v : HostRead<float>(ctx, view)) out.push_back(v);
  } else {
    for (const BFloat16 v : HostRead<BFloat16>(ctx, view)) out.push_back(static_cast<float>(v));
  }
  return out;
}

inline void WriteDoubles(ExecContext& ctx, const std::vector<double>& values,
                         const TensorView& view) {
  OMNI_CHECK_EQ(view.num_elements(), static_cast<int64_t>(values.size()));
  if (view.dtype == DType::kFloat64) {
    Upload(ctx, values.data(), view.num_bytes(), view);
  } else if (view.dtype == DType::kFloat32) {
    const std::vector<float> host(values.begin(), values.end());
    Upload(ctx, host.data(), view.num_bytes(), view);
  } else {
    std::vector<BFloat16> host;
    for (const double v : values) host.emplace_back(static_cast<float>(v));
    Upload(ctx, host.data(), view.num_bytes(), view);
  }
}

inline double Norm(const std::vector<double>& x) {
  double sum = 0;
  for (const double v : x) sum += v * v;
  return std::sqrt(sum);
}

inline double Distance(const std::vector<double>& a, const std::vector<double>& b) {
  OMNI_CHECK_EQ(a.size(), b.size());
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(sum);
}

class ModelHarness {
 public:
  using Values = std::map<std::string, std::vector<double>>;

  struct Outcome {
    double loss = 0;
    std::map<std::string, double> auxiliary;  // by metric
    double objective = 0;                     // loss + the auxiliary ones by their coefficients
    std::vector<double> losses;
    std::vector<int32_t> argmax;
    Values grads;  // of trainable parameters
  };

  // `add_encoders`: kinds that are not the program's own.
  ModelHarness(const std::string& model_yaml, DType dtype, uint64_t seed = 7,
               DeviceKind device_kind = DeviceKind::kCpu,
               void (*add_encoders)(encoders::EncoderRegistry&) = nullptr) {
    RegisterCpuKernels(kernels_);
    auto device = Device::Create(
        {.kind = device_kind, .reserved_bytes = int64_t{2} << 30, .kernels = &kernels_});
    OMNI_CHECK_OK(device.status());
    device_ = *std::move(device);
    stream_ = device_->NewStream();
    arena_ = std::make_unique<TensorArena>(*device_);
    tape_ = std::make_unique<Tape>(*device_);
    encoders::EncoderRegistry registry;
    encoders::RegisterEncoders(registry);
    if (add_encoders != nullptr) add_encoders(registry);
    auto node = ConfigNode::Parse(model_yaml, "model.yaml");
    OMNI_CHECK_OK(node.status());
    auto model = trainer::MultimodalModel::Create(*node, registry);
    OMNI_CHECK_OK(model.status());
    model_ = *std::move(model);

    ExecContext ctx = context();
    for (const parallel::ParameterSpec& spec : model_->Parameters()) {
      if (spec.optimizer == parallel::OptimizerClass::kFixed) fixed_.insert(spec.path);
      Weight& weight = weights_[spec.path];
      weight.value = ctx.New(dtype, spec.shape);
      weight.grad =
          ctx.New(dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32, spec.shape);
      std::vector<double> values(spec.num_elements());
      for (size_t i = 0; i < values.size(); ++i) {
        values[i] = parallel::InitialValue(spec, seed, static_cast<int64_t>(i));
      }
      Set(spec.path, values);
    }
    Bind();
  }

  ~ModelHarness() {
    tape_.reset();
    arena_.reset();
  }

  ExecContext context() { return {.device = *device_, .stream = *stream_, .arena = arena_.get()}; }
  ExecContext taped() { return {.device = *device_, .stream = *stream_, .tape = tape_.get()}; }
  Device& device() { return *device_; }
  Tape& tape() { return *tape_; }
  trainer::MultimodalModel& model() { return *model_; }

  std::vector<double> Get(const std::string& path) {
    ExecContext ctx = context();
    return ReadDoubles(ctx, weights_.at(path).value);
  }
  void Set(const std::string& path, const std::vector<double>& values) {
    ExecContext ctx = context();
    WriteDoubles(ctx, values, weights_.at(path).value);
  }
  // Every parameter must be there, with its shape.
  void Load(const SafetensorsFile& file) {
    for (const auto& [path, weight] : weights_) {
      const auto view = file.Get(path);
      OMNI_CHECK_OK(view.status());
      OMNI_CHECK(view->shape() == weight.value.shape());
      const float* data = view->ptr<const float>();
      Set(path, std::vector<double>(data, data + view->num_elements()));
    }
  }

  // Modules (ModuleOf) whose weights get no gradient from now on.
  void Freeze(const std::set<std::string>& modules) {
    frozen_ = modules;
    Bind();
  }

  // Gradients start from zero.
  Outcome Run(const parallel::TokenPack& tokens, const trainer::MediaPacks& media, double scale) {
    return Run(tokens, media, parallel::LossScales{.loss_token = scale});
  }
  Outcome Run(const parallel::TokenPack& tokens, const trainer::MediaPacks& media,
              const parallel::LossScales& scales) {
    ExecContext ctx = context();
    for (const auto& [path, weight] : weights_) {
      WriteDoubles(ctx, std::vector<double>(weight.grad.num_elements(), 0.0), weight.grad);
    }
    ExecContext recording = taped();
    const trainer::MicrobatchResult result =
        model_->ForwardBackward(recording, tokens, media, scales);
    Outcome outcome = Read(result);
    for (const auto& [path, weight] : weights_) {
      if (IsTrainable(path)) outcome.grads[path] = ReadDoubles(ctx, weight.grad);
    }
    tape_->Reset();
    return outcome;
  }

  // Forward only, nothing recorded.
  Outcome Evaluate(const parallel::TokenPack& tokens, const trainer::MediaPacks& media,
                   double scale) {
    return Evaluate(tokens, media, parallel::LossScales{.loss_token = scale});
  }
  Outcome Evaluate(const parallel::TokenPack& tokens, const trainer::MediaPacks& media,
                   const parallel::LossScales& scales) {
    TensorArena arena(*device_);
    ExecContext ctx{.device = *device_, .stream = *stream_, .arena = &arena};
    return Read(model_->ForwardMicrobatch(ctx, tokens, media, scales));
  }

  bool IsTrainable(const std::string& path) const {
    return fixed_.count(path) == 0 && frozen_.count(model_->ModuleOf(path)) == 0;
  }
  const std::map<std::string, Weight>& weights() const { return weights_; }

 private:
  void Bind() {
    parallel::ParameterStore store;
    for (const auto& [path, weight] : weights_) {
      store.Put(path, {weight.value, IsTrainable(path) ? weight.grad : TensorView{}});
    }
    model_->Bind(store);
  }

  Outcome Read(const trainer::MicrobatchResult& result) {
    ExecContext ctx = context();
    Outcome outcome;
    if (result.loss.value.empty()) return outcome;
    outcome.loss = outcome.objective = ReadDoubles(ctx, result.loss.value)[0];
    for (const backbone::AuxiliaryLoss& loss : result.auxiliary) {
      outcome.auxiliary[loss.metric] = ReadDoubles(ctx, loss.value.value)[0];
      outcome.objective += loss.coefficient * outcome.auxiliary[loss.metric];
    }
    outcome.losses = ReadDoubles(ctx, result.losses_T);
    outcome.argmax = HostRead<int32_t>(ctx, result.argmax_T);
    return outcome;
  }

  KernelRegistry kernels_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<TensorArena> arena_;
  std::unique_ptr<Tape> tape_;
  std::unique_ptr<trainer::MultimodalModel> model_;
  std::map<std::string, Weight> weights_;
  std::set<std::string> frozen_;  // modules
  std::set<std::string> fixed_;   // parameters never trained
};

}  // namespace omni::testing
