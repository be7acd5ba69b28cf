// Rows of experts back to their tokens, and rows times a gate. One pass, bound by memory; cut by
// tokens, whose rows nobody else touches.
#include <cmath>

#include "runtime/device/args/moe.h"
#include "runtime/device/cpu/register.h"
#include "runtime/device/cpu/tasks.h"

namespace omni::cpu {
namespace {

template <typename T>
struct MoeRows {
  using C = ComputeOf<T>;
  static constexpr int64_t kColumns = 128, kLanes = 16;

  static T* Row(const TensorView& x, int64_t i) {
    return static_cast<T*>(x.data) + i * x.stride(0);
  }
  static C Weight(const TensorView& weights_TK, int64_t t, int64_t k) {
    return weights_TK.empty()
               ? C(1)
               : static_cast<const C*>(weights_TK.data)[t * weights_TK.stride(0) + k];
  }
  static C Sigmoid(C x) { return 1 / (1 + std::exp(-x)); }

  // sum of x[i] y[i], in kLanes sums that are added in order.
  static C Dot(const T* x, const T* y, int64_t count) {
    C sums[kLanes] = {}, sum = 0;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
      for (int64_t l = 0; l < kLanes; ++l)
        sums[l] += static_cast<C>(x[i + l]) * static_cast<C>(y[i + l]);
    for (; i < count; ++i) sum += static_cast<C>(x[i]) * static_cast<C>(y[i]);
    for (const C s : sums) sum += s;
    return sum;
  }

  // to = factor * from
  static void Scaled(const T* from, C factor, T* to, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(factor * static_cast<C>(from[i]));
  }

  static int64_t CombineForward(const MoeCombineForwardArgs& args, const KernelContext* context) {
    if (context == nullptr) return 0;
    const int64_t tokens = args.y_TH.size(0), width = args.y_TH.size(1);
    const int64_t top_k = args.rows_TK.size(1);
    ForEachRange(*context, tokens, RowGrain(width * top_k), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int32_t* rows = args.rows_TK.ptr<int32_t>() + t * top_k;
        for (int64_t first = 0; first < width; first += kColumns) {
          const int64_t count = AtMost(kColumns, width - first);
          C sum[kColumns] = {};
          for (int64_t k = 0; k < top_k; ++k) {
            const T* from = Row(args.x_RH, rows[k]) + first;
            const C weight = Weight(args.weights_TK, t, k);
            for (int64_t i = 0; i < count; ++i) sum[i] += weight * static_cast<C>(from[i]);
          }
          T* to = Row(args.y_TH, t) + first;
          for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(sum[i]);
        }
      }
    });
    return 0;
  }

  static int64_t CombineBackward(const MoeCombineBackwardArgs& args, const KernelContext* context) {
    if (context == nullptr) return 0;
    const int64_t tokens = args.grad_y_TH.size(0), width = args.grad_y_TH.size(1);
    const int64_t top_k = args.rows_TK.size(1);
    ForEachRange(*context, tokens, RowGrain(width * top_k), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const T* grad = Row(args.grad_y_TH, t);
        for (int64_t k = 0; k < top_k; ++k) {
          const int64_t row = args.rows_TK.ptr<int32_t>()[t * top_k + k];
          if (!args.grad_weights_TK.empty())
            args.grad_weights_TK.ptr<C>()[t * top_k + k] = Dot(Row(args.x_RH, row), grad, width);
          if (!args.grad_x_RH.empty())
            Scaled(grad, Weight(args.weights_TK, t, k), Row(args.grad_x_RH, row), width);
        }
      }
    });
    return 0;
  }

  static int64_t GateForward(const SigmoidGateForwardArgs& args, const KernelContext* context) {
    if (context == nullptr) return 0;
    const int64_t width = args.y_TH.size(1);
    ForEachRange(*context, args.y_TH.size(0), RowGrain(width), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        Scaled(Row(args.x_TH, t), Sigmoid(static_cast<C>(*Row(args.gate_T1, t))), Row(args.y_TH, t),
               width);
    });
    return 0;
  }

  static int64_t GateBackward(const SigmoidGateBackwardArgs& args, const KernelContext* context) {
    if (context == nullptr) return 0;
    const int64_t width = args.grad_y_TH.size(1);
    ForEachRange(*context, args.grad_y_TH.size(0), RowGrain(width),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t t = begin; t < end; ++t) {
                     const T* grad = Row(args.grad_y_TH, t);
                     const C gate = Sigmoid(static_cast<C>(*Row(args.gate_T1, t)));
                     if (!args.grad_x_TH.empty()) Scaled(grad, gate, Row(args.grad_x_TH, t), width);
                     if (!args.grad_gate_T1.empty())
                       *Row(args.grad_gate_T1, t) =
                           static_cast<T>(gate * (1 - gate) * Dot(Row(args.x_TH, t), grad, width));
                   }
                 });
    return 0;
  }

  static void Register(KernelRegistry& registry, DType dtype, const char* const (&names)[4]) {
    registry.Register(MakeEntry<MoeCombineForwardArgs, &CombineForward>(OpId::kMoeCombineForward,
                                                                        dtype, names[0]));
    registry.Register(MakeEntry<MoeCombineBackwardArgs, &CombineBackward>(OpId::kMoeCombineBackward,
                                                                          dtype, names[1]));
    registry.Register(MakeEntry<SigmoidGateForwardArgs, &GateForward>(OpId::kSigmoidGateForward,
                                                                      dtype, names[2]));
    registry.Register(MakeEntry<SigmoidGateBackwardArgs, &GateBackward>(OpId::kSigmoidGateBackward,
                                                                        dtype, names[3]));
  }
};

}  // namespace

void RegisterMoeRowKernels(KernelRegistry& registry) {
  MoeRows<double>::Register(registry, DType::kFloat64,
                            {"f64_moe_combine_fwd_cpu", "f64_moe_combine_bwd_cpu",
                             "f64_sigmoid_gate_fwd_cpu", "f64_sigmoid_gate_bwd_cpu"});
  MoeRows<float>::Register(registry, DType::kFloat32,
                           {"f32_moe_combine_fwd_cpu", "f32_moe_combine_bwd_cpu",
                            "f32_sigmoid_gate_fwd_cpu", "f32_sigmoid_gate_bwd_cpu"});
  MoeRows<BFloat16>::Register(registry, DType::kBFloat16,
                              {"bf16_moe_combine_fwd_cpu", "bf16_moe_combine_bwd_cpu",
                               "bf16_sigmoid_gate_fwd_cpu", "bf16_sigmoid_gate_bwd_cpu"});
}

}  // namespace omni::cpu
