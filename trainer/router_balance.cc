#include "trainer/router_balance.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"

namespace omni::trainer {
namespace {

// The step's values that are sums over microbatches; loads follow them.
constexpr const char* kLosses[] = {"moe/balance_loss", "moe/z_loss"};
constexpr int64_t kNumLosses = std::size(kLosses);

double ReadScalar(ExecContext& ctx, const TensorView& view) {
  if (view.dtype == DType::kFloat64) return HostRead<double>(ctx, view)[0];
  return HostRead<float>(ctx, view)[0];
}

void Write(ExecContext& ctx, const std::vector<double>& values, const TensorView& to) {
  if (to.dtype == DType::kFloat64) {
    Upload(ctx, values.data(), to.num_bytes(), to);
  } else {
    const std::vector<float> narrow(values.begin(), values.end());
    Upload(ctx, narrow.data(), to.num_bytes(), to);
  }
}

}  // namespace

RouterBalance::RouterBalance(ExecContext& ctx, const backbone::DecoderConfig& config, DType dtype)
    : config_(config),
      layers_(config.num_moe_layers()),
      experts_(config.moe.experts),
      arena_(ctx.device) {
  if (layers_ == 0 || config_.moe.bias_update_rate == 0) return;
  bias_.assign(layers_ * experts_, 0.0);
  const DType bias_dtype = dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  const int64_t sizes[] = {layers_, experts_};
  bias_LE_ = arena_.New(bias_dtype, sizes);
  Write(ctx, bias_, bias_LE_);
}

std::vector<double> RouterBalance::NoSums() const {
  return std::vector<double>(layers_ == 0 ? 0 : kNumLosses + layers_ * experts_, 0.0);
}

void RouterBalance::Add(ExecContext& ctx, const std::vector<backbone::AuxiliaryLoss>& losses,
                        const std::vector<TensorView>& expert_offsets, int32_t first_layer,
                        std::vector<double>* sums) const {
  for (const backbone::AuxiliaryLoss& loss : losses) {
    for (int64_t i = 0; i < kNumLosses; ++i) {
      if (std::string_view(kLosses[i]) == loss.metric) {
        (*sums)[i] += ReadScalar(ctx, loss.value.value);
      }
    }
  }
  int64_t row = 0;  // of the first of these layers, among MoE layers
  for (int32_t i = 0; i < first_layer; ++i) row += config_.moe.IsMoe(i);
  auto load = sums->begin() + (sums->empty() ? 0 : kNumLosses + row * experts_);
  for (const TensorView& offsets_E1 : expert_offsets) {
    const std::vector<int32_t> offsets = HostRead<int32_t>(ctx, offsets_E1);
    for (int64_t e = 0; e < experts_; ++e) *load++ += offsets[e + 1] - offsets[e];
  }
}

void RouterBalance::Measure(const std::vector<double>& sums,
                            std::map<std::string, double>* values) const {
  if (sums.empty()) return;
  for (int64_t i = 0; i < kNumLosses; ++i) (*values)[kLosses[i]] = sums[i];
  double worst = 0.0;
  for (int64_t layer = 0; layer < layers_; ++layer) {
    const auto load = sums.begin() + kNumLosses + layer * experts_;
    double total = 0.0, most = 0.0;
    for (auto it = load; it != load + experts_; ++it) {
      total += *it;
      most = std::max(most, *it);
    }
    if (total > 0) worst = std::max(worst, most * static_cast<double>(experts_) / total);
  }
  (*values)["moe/load_max_over_mean"] = worst;
}

void RouterBalance::Update(ExecContext& ctx, const std::vector<double>& sums) {
  if (bias_.empty()) return;
  const bool is_wide = bias_LE_.dtype == DType::kFloat64;
  for (int64_t layer = 0; layer < layers_; ++layer) {
    const auto load = sums.begin() + kNumLosses + layer * experts_;
    double total = 0.0;
    for (auto it = load; it != load + experts_; ++it) total += *it;
    for (int64_t e = 0; e < experts_; ++e) {
      // Times the number of experts, so that all is integers.
      const double excess = load[e] * static_cast<double>(experts_) - total;
      double& bias = bias_[layer * experts_ + e];
      if (excess != 0) bias -= config_.moe.bias_update_rate * (excess > 0 ? 1.0 : -1.0);
      if (!is_wide) bias = static_cast<float>(bias);  // as it is stored
    }
  }
  Write(ctx, bias_, bias_LE_);
}

std::vector<TensorRange> RouterBalance::StateRanges() const {
  std::vector<TensorRange> ranges;
  if (bias_.empty()) return ranges;
  for (int32_t i = 0, row = 0; i < config_.layers; ++i) {
    if (!config_.moe.IsMoe(i)) continue;
    ranges.push_back({.name = absl::StrCat("decoder.layers.", i, ".moe.router.selection_bias"),
                      .shape = {experts_},
                      .begin = 0,
                      .data = bias_LE_.Rows(row++, 1).Reshape({experts_})});
  }
  return ranges;
}

bool RouterBalance::IsIn(const std::set<std::string>& names) const {
  for (const TensorRange& range : StateRanges()) {
    if (names.count(range.name) == 0) return false;
  }
  return true;
}

void RouterBalance::Loaded(ExecContext& ctx) {
  if (bias_.empty()) return;
  if (bias_LE_.dtype == DType::kFloat64) {
    bias_ = HostRead<double>(ctx, bias_LE_);
  } else {
    const std::vector<float> narrow = HostRead<float>(ctx, bias_LE_);
    bias_.assign(narrow.begin(), narrow.end());
  }
}

}  // namespace omni::trainer
