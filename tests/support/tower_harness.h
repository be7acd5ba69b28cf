// One encoder with its weights on a CPU device: what tests of towers by themselves share.
#pragma once

#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "encoders/encoder.h"
#include "runtime/base/rng.h"
#include "tests/support/test_device.h"

namespace omni::testing {

class TowerHarness {
 public:
  using Values = std::map<std::string, std::vector<double>>;

  struct Outcome {
    std::vector<std::vector<double>> outputs;  // rows, then deepstack features
    Values grads;                              // of trained parameters
    int64_t kept_bytes = 0;                    // by the tape between forward and backward
    int64_t high_water_bytes = 0;              // above weights and their gradients
  };

  struct RunOptions {
    encoders::EncodeOptions encode = {};  // its communicators follow the device's stream
    DeviceKind device = DeviceKind::kCpu;
  };

  // `add_encoders`: kinds that are not the program's own.
  TowerHarness(const std::string& yaml, DType dtype, const std::string& name, int32_t output_hidden,
               void (*add_encoders)(encoders::EncoderRegistry&) = nullptr)
      : dtype_(dtype) {
    encoders::EncoderRegistry registry;
    encoders::RegisterEncoders(registry);
    if (add_encoders != nullptr) add_encoders(registry);
    const auto node = ConfigNode::Parse(yaml, "tower.yaml");
    OMNI_CHECK_OK(node.status());
    auto encoder =
        registry.Create(*node, {.name = name, .output_hidden = output_hidden, .init = {}});
    OMNI_CHECK_OK(encoder.status());
    encoder_ = *std::move(encoder);
    for (const parallel::ParameterSpec& spec : encoder_->Parameters()) {
      shapes_[spec.path] = spec.shape;
      is_fixed_[spec.path] = spec.optimizer == parallel::OptimizerClass::kFixed;
      const CounterRng rng(7, StreamOf(spec.path));
      std::vector<double>& values = values_[spec.path];
      for (int64_t i = 0; i < spec.num_elements(); ++i) {
        // Off the initial zeros and ones, so that no gradient vanishes by symmetry.
        const double start = spec.init == parallel::InitKind::kOnes ? 1.0 : 0.0;
        const double spread = spec.init == parallel::InitKind::kNormal ? spec.init_std : 0.1;
        values.push_back(start + spread * rng.Normal(i));
      }
    }
  }

  const encoders::Encoder& encoder() const { return *encoder_; }
  const Values& values() const { return values_; }
  const std::vector<int64_t>& shape(const std::string& path) const { return shapes_.at(path); }
  void Set(const std::string& path, std::vector<double> values) {
    OMNI_CHECK_EQ(values.size(), values_.at(path).size());
    values_[path] = std::move(values);
  }
  // Which parameters are trained; all that aren't fixed at first.
  void Train(std::function<bool(const std::string& path)> trains) { trains_ = std::move(trains); }
  bool Trains(const std::string& path) const {
    return !is_fixed_.at(path) && (trains_ == nullptr || trains_(path));
  }

  // `output_grads`, one per output; empty: forward only, nothing recorded.
  Outcome Run(const parallel::MediaPack& pack,
              const std::vector<std::vector<double>>& output_grads = {}) {
    return Run(pack, output_grads, RunOptions{});
  }
  Outcome Run(const parallel::MediaPack& pack, const std::vector<std::vector<double>>& output_grads,
              const RunOptions& options) {
    TestDevice device(options.device, {.reserved_bytes = int64_t{1} << 28});
    const Following following(options.encode.shard, &device.stream());
    Tape tape(device.device());
    std::map<std::string, Weight> weights;
    parallel::ParameterStore store;
    const DType sums = dtype_ == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
    for (const auto& [path, values] : values_) {
      Weight& weight = weights[path];
      weight.value = device.UploadAs(dtype_, values, shapes_.at(path), device.arena());
      if (!output_grads.empty() && Trains(path)) {
        weight.grad = device.UploadAs(sums, std::vector<double>(values.size(), 0.0),
                                      shapes_.at(path), device.arena());
      }
      store.Put(path, weight);
    }
    encoder_->Bind(store);
    ExecContext ctx = device.ctx(output_grads.empty() ? nullptr : &tape);
    const int64_t before = device.used_bytes();
    device.device().pool().ResetHighWater();
    const encoders::EncoderOutput output = encoder_->Encode(ctx, pack, options.encode);
    std::vector<Var> vars = {output.rows_RH};
    vars.insert(vars.end(), output.deepstack_RH.begin(), output.deepstack_RH.end());
    Outcome outcome;
    for (const Var& var : vars) outcome.outputs.push_back(Doubles(device, var.value));
    if (output_grads.empty()) return outcome;
    OMNI_CHECK_EQ(output_grads.size(), vars.size());
    tape.EndForward(vars);
    outcome.kept_bytes = device.used_bytes() - before;
    std::vector<Tape::RootGrad> roots;
    for (size_t i = 0; i < vars.size(); ++i) {
      if (!vars[i].needs_grad()) continue;
      roots.push_back({vars[i], device.UploadAs(dtype_, output_grads[i], vars[i].value.shape(),
                                                device.arena())});
    }
    ExecContext untaped = device.ctx();
    if (!roots.empty()) tape.Backward(untaped, roots);
    outcome.high_water_bytes = device.device().pool().stats().high_water_bytes - before;
    for (const auto& [path, weight] : weights) {
      if (weight.trainable()) outcome.grads[path] = Doubles(device, weight.grad);
    }
    return outcome;
  }

 private:
  // Communicators wait for the stream as long as this lives.
  class Following {
   public:
    Following(const parallel::SampleShard& shard, Stream* stream) : shard_(shard) { Set(stream); }
    ~Following() { Set(nullptr); }

   private:
    void Set(Stream* stream) {
      for (Communicator* comm : {shard_.ulysses.comm, shard_.ring.comm}) {
        if (comm != nullptr) comm->SetInputStream(stream);
      }
    }
    const parallel::SampleShard shard_;
  };

  static std::vector<double> Doubles(TestDevice& device, const TensorView& view) {
    return view.num_elements() == 0 ? std::vector<double>{} : device.ReadDoubles(view);
  }

  const DType dtype_;
  std::unique_ptr<encoders::Encoder> encoder_;
  Values values_;
  std::map<std::string, std::vector<int64_t>> shapes_;
  std::map<std::string, bool> is_fixed_;
  std::function<bool(const std::string&)> trains_;
};

}  // namespace omni::testing
