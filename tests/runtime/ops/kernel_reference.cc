// The specification of the CPU kernels: plain loops in fp64, nothing clever.
#include <algorithm>

#include "runtime/device/args/activation.h"
#include "runtime/device/args/conv.h"
#include "runtime/device/args/linear.h"
#include "runtime/device/args/norm.h"
#include "runtime/device/args/rows.h"
#include "tests/runtime/ops/kernel_problem.h"

namespace omni::testing {
namespace {

using Values = std::vector<double>;

void Linear(OpId op, int64_t rows, int64_t width, bool with_bias, KernelProblem& p) {
  const int64_t outs = width + 3;
  const HostTensor x = p.Random({rows, width}), w = p.Random({outs, width}), b = p.Random({outs});
  const HostTensor dy = p.Random({rows, outs});
  if (op == OpId::kLinearForward) {
    Values y(rows * outs);
    for (int64_t t = 0; t < rows; ++t)
      for (int64_t o = 0; o < outs; ++o) {
        double sum = with_bias ? b(o) : 0.0;
        for (int64_t i = 0; i < width; ++i) sum += x(t, i) * w(o, i);
        y[t * outs + o] = sum;
      }
    p.SetArgs(LinearForwardArgs{x.view, w.view, with_bias ? b.view : TensorView{},
                                p.Output({rows, outs}, y)});
  } else if (op == OpId::kLinearBackwardInput) {
    Values dx(rows * width);
    for (int64_t t = 0; t < rows; ++t)
      for (int64_t o = 0; o < outs; ++o)
        for (int64_t i = 0; i < width; ++i) dx[t * width + i] += dy(t, o) * w(o, i);
    p.SetArgs(LinearBackwardInputArgs{dy.view, w.view, p.Output({rows, width}, dx)});
  } else {
    const HostTensor dw = p.RandomSums({outs, width}), db = p.RandomSums({outs});
    Values dw_sum = dw.values, db_sum = db.values;
    for (int64_t t = 0; t < rows; ++t)
      for (int64_t o = 0; o < outs; ++o) {
        db_sum[o] += dy(t, o);
        for (int64_t i = 0; i < width; ++i) dw_sum[o * width + i] += dy(t, o) * x(t, i);
      }
    p.Expect(dw.view, dw_sum);
    if (with_bias) p.Expect(db.view, db_sum);
    p.SetArgs(
        LinearBackwardWeightArgs{x.view, dy.view, dw.view, with_bias ? db.view : TensorView{}});
  }
}

void Rows(OpId op, int64_t rows, int64_t width, KernelProblem& p) {
  const int64_t table_rows = 11 + rows;
  std::vector<int64_t> ids, distinct;
  for (int64_t t = 0; t < rows; ++t) {
    ids.push_back(t * t % table_rows);
    distinct.push_back(table_rows - 1 - t);
  }
  const HostTensor table = p.Random({table_rows, width}), source = p.Random({rows, width});
  const HostTensor index = p.Integers(op == OpId::kScatterRows ? distinct : ids);
  const auto added = [&](Values to) {
    for (int64_t t = 0; t < rows; ++t)
      for (int64_t i = 0; i < width; ++i) to[ids[t] * width + i] += source(t, i);
    return to;
  };
  if (op == OpId::kGatherRows || op == OpId::kEmbeddingForward) {
    Values y;
    for (const int64_t id : ids)
      for (int64_t i = 0; i < width; ++i) y.push_back(table(id, i));
    const TensorView out = p.Output({rows, width}, y);
    if (op == OpId::kGatherRows)
      p.SetArgs(GatherRowsArgs{table.view, index.view, out});
    else
      p.SetArgs(EmbeddingForwardArgs{index.view, table.view, out});
  } else if (op == OpId::kScatterRows) {
    Values y = table.values;
    for (int64_t t = 0; t < rows; ++t)
      for (int64_t i = 0; i < width; ++i) y[distinct[t] * width + i] = source(t, i);
    p.SetArgs(
        ScatterRowsArgs{table.view, source.view, index.view, p.Output({table_rows, width}, y)});
  } else if (op == OpId::kScatterAddRows) {
    p.Expect(table.view, added(table.values));
    p.SetArgs(ScatterAddRowsArgs{source.view, index.view, table.view, 0});
  } else {
    const HostTensor grad = p.RandomSums({table_rows, width});
    p.Expect(grad.view, added(grad.values));
    p.SetArgs(EmbeddingBackwardArgs{index.view, source.view, grad.view});
  }
}

void InterpolateRows(bool backward, int64_t rows, int64_t width, int64_t num_taps,
                     KernelProblem& p) {
  const int64_t table_rows = 5 + rows / 3;
  std::vector<int64_t> ids;
  Values factors;
  for (int64_t i = 0; i < rows * num_taps; ++i) {
    ids.push_back(i * i % table_rows);
    factors.push_back(std::sin(static_cast<double>(i)));
  }
  const HostTensor flat_taps = p.Integers(ids), flat_weights = p.Sums(factors);
  const TensorView taps = flat_taps.view.Reshape({rows, num_taps});
  const TensorView weights = flat_weights.view.Reshape({rows, num_taps});
  if (backward) {
    const HostTensor dy = p.Random({rows, width}), grad = p.RandomSums({table_rows, width});
    Values sums = grad.values;
    for (int64_t i = 0; i < rows * num_taps; ++i)
      for (int64_t j = 0; j < width; ++j)
        sums[ids[i] * width + j] += flat_weights(i) * dy(i / num_taps, j);
    p.Expect(grad.view, sums);
    p.SetArgs(InterpolateRowsBackwardArgs{taps, weights, dy.view, grad.view});
  } else {
    const HostTensor table = p.Random({table_rows, width});
    Values y(rows * width);
    for (int64_t i = 0; i < rows * num_taps; ++i)
      for (int64_t j = 0; j < width; ++j)
        y[i / num_taps * width + j] += flat_weights(i) * table(ids[i], j);
    p.SetArgs(InterpolateRowsForwardArgs{table.view, taps, weights, p.Output({rows, width}, y)});
  }
}

void Norm(bool backward, bool layer, int64_t rows, int64_t width, bool with_branch,
          KernelProblem& p) {
  const double eps = 1e-5;
  const HostTensor x = p.Random({rows, width}), branch = p.Random({rows, width});
  const HostTensor w = p.Random({width}), b = p.Random({width}), dy = p.Random({rows, width});
  Values sum(rows * width), y(rows * width), mean(rows), rstd(rows);
  for (int64_t t = 0; t < rows; ++t) {
    double total = 0.0, squares = 0.0;
    for (int64_t i = 0; i < width; ++i) {
      double v = x(t, i) + (with_branch && !backward ? branch(t, i) : 0.0);
      if (p.dtype() == DType::kBFloat16) v = static_cast<float>(BFloat16(static_cast<float>(v)));
      sum[t * width + i] = v;
      total += v;
    }
    mean[t] = layer ? total / static_cast<double>(width) : 0.0;
    for (int64_t i = 0; i < width; ++i) squares += std::pow(sum[t * width + i] - mean[t], 2);
    rstd[t] = 1.0 / std::sqrt(squares / static_cast<double>(width) + eps);
    for (int64_t i = 0; i < width; ++i)
      y[t * width + i] = (sum[t * width + i] - mean[t]) * rstd[t] * w(i) + (layer ? b(i) : 0.0);
  }
  if (!backward) {
    NormForwardArgs args;
    args.x_TH = x.view;
    args.weight_H = w.view;
    if (layer) args.bias_H = b.view;
    if (with_branch) {
      args.branch_TH = branch.view;
      args.sum_TH = p.Output({rows, width}, sum);
    }
    args.y_TH = p.Output({rows, width}, y);
    args.rstd_T = p.Output(p.sums_dtype(), {rows}, rstd);
    if (layer) args.mean_T = p.Output(p.sums_dtype(), {rows}, mean);
    args.eps = eps;
    return p.SetArgs(args);
  }
  const HostTensor dw = p.RandomSums({width}), db = p.RandomSums({width});
  Values dx(rows * width), dw_sum = dw.values, db_sum = db.values;
  for (int64_t t = 0; t < rows; ++t) {
    double g_mean = 0.0, gx_mean = 0.0;
    const auto xhat = [&](int64_t i) { return (x(t, i) - mean[t]) * rstd[t]; };
    for (int64_t i = 0; i < width; ++i) {
      g_mean += dy(t, i) * w(i) / static_cast<double>(width);
      gx_mean += dy(t, i) * w(i) * xhat(i) / static_cast<double>(width);
      dw_sum[i] += dy(t, i) * xhat(i);
      db_sum[i] += dy(t, i);
    }
    for (int64_t i = 0; i < width; ++i)
      dx[t * width + i] = rstd[t] * (dy(t, i) * w(i) - (layer ? g_mean : 0.0) - xhat(i) * gx_mean) +
                          (with_branch ? branch(t, i) : 0.0);
  }
  NormBackwardArgs args;
  args.x_TH = x.view;
  args.weight_H = w.view;
  args.mean_T = p.Sums(mean).view;
  args.rstd_T = p.Sums(rstd).view;
  args.grad_y_TH = dy.view;
  if (with_branch) args.grad_sum_TH = branch.view;
  args.grad_x_TH = p.Output({rows, width}, dx);
  args.grad_weight_H = dw.view;
  p.Expect(dw.view, dw_sum);
  if (layer) {
    args.grad_bias_H = db.view;
    p.Expect(db.view, db_sum);
  }
  p.SetArgs(args);
}

void SwiGlu(bool backward, int64_t rows, int64_t width, KernelProblem& p) {
  const HostTensor x = p.Random({rows, 2 * width}, 3.0), dy = p.Random({rows, width});
  Values y(rows * width), dx(rows * 2 * width);
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t i = 0; i < width; ++i) {
      const double g = x(t, i), u = x(t, width + i), s = 1.0 / (1.0 + std::exp(-g));
      y[t * width + i] = g * s * u;
      dx[t * 2 * width + i] = dy(t, i) * u * s * (1.0 + g * (1.0 - s));
      dx[t * 2 * width + width + i] = dy(t, i) * g * s;
    }
  if (backward)
    p.SetArgs(SwiGluBackwardArgs{x.view, dy.view, p.Output({rows, 2 * width}, dx)});
  else
    p.SetArgs(SwiGluForwardArgs{x.view, p.Output({rows, width}, y)});
}

void Gelu(bool backward, bool tanh_form, int64_t rows, int64_t width, KernelProblem& p) {
  const HostTensor x = p.Random({rows, width}, 3.0), dy = p.Random({rows, width});
  Values y(rows * width), dx(rows * width);
  for (size_t i = 0; i < y.size(); ++i) {
    const double v = x(i);
    if (tanh_form) {
      const double c = std::sqrt(2.0 / M_PI), th = std::tanh(c * (v + 0.044715 * v * v * v));
      y[i] = 0.5 * v * (1.0 + th);
      dx[i] = dy(i) *
              (0.5 * (1.0 + th) + 0.5 * v * (1.0 - th * th) * c * (1.0 + 3.0 * 0.044715 * v * v));
    } else {
      y[i] = 0.5 * v * std::erfc(-v / std::sqrt(2.0));
      dx[i] = dy(i) * (0.5 * std::erfc(-v / std::sqrt(2.0)) +
                       v * std::exp(-0.5 * v * v) / std::sqrt(2.0 * M_PI));
    }
  }
  if (backward)
    p.SetArgs(GeluBackwardArgs{x.view, dy.view, p.Output({rows, width}, dx), tanh_form});
  else
    p.SetArgs(GeluForwardArgs{x.view, p.Output({rows, width}, y), tanh_form});
}

// `rows` as segments of different length, one of them empty.
std::vector<int64_t> Segments(int64_t rows) { return {0, rows / 3, rows / 3, rows}; }

void Conv1d(bool backward, int64_t rows, int64_t width, int stride, KernelProblem& p) {
  const int64_t outs = 5, kernel = 3, padding = stride == 3 ? 0 : 1;
  const std::vector<int64_t> cu = Segments(rows);
  std::vector<int64_t> cu_out = {0};
  for (size_t s = 0; s + 1 < cu.size(); ++s) {
    const int64_t length = cu[s + 1] - cu[s], room = length + 2 * padding - kernel;
    cu_out.push_back(cu_out.back() + (length == 0 || room < 0 ? 0 : room / stride + 1));
  }
  const int64_t out_rows = cu_out.back();
  const HostTensor x = p.Random({rows, width}), w = p.Random({outs, width, kernel});
  const HostTensor b = p.Random({outs}), dy = p.Random({out_rows, outs});
  const HostTensor dw = p.RandomSums({outs, width, kernel}), db = p.RandomSums({outs});
  Values y(out_rows * outs), dx(rows * width), dw_sum = dw.values, db_sum = db.values;
  for (size_t s = 0; s + 1 < cu.size(); ++s)
    for (int64_t f = cu_out[s]; f < cu_out[s + 1]; ++f)
      for (int64_t o = 0; o < outs; ++o) {
        y[f * outs + o] += b(o);
        db_sum[o] += dy(f, o);
        for (int64_t j = 0; j < kernel; ++j) {
          const int64_t i = cu[s] + (f - cu_out[s]) * stride + j - padding;
          if (i < cu[s] || i >= cu[s + 1]) continue;
          for (int64_t c = 0; c < width; ++c) {
            const int64_t at = (o * width + c) * kernel + j;
            y[f * outs + o] += x(i, c) * w(at);
            dx[i * width + c] += dy(f, o) * w(at);
            dw_sum[at] += dy(f, o) * x(i, c);
          }
        }
      }
  const TensorView cu_view = p.Integers(cu).view, cu_out_view = p.Integers(cu_out).view;
  const auto step = static_cast<int32_t>(stride), pad = static_cast<int32_t>(padding);
  if (!backward)
    return p.SetArgs(Conv1dForwardArgs{x.view, cu_view, cu_out_view, w.view, b.view,
                                       p.Output({out_rows, outs}, y), step, pad});
  p.Expect(dw.view, dw_sum);
  p.Expect(db.view, db_sum);
  p.SetArgs(Conv1dBackwardArgs{x.view, cu_view, cu_out_view, w.view, dy.view,
                               p.Output({rows, width}, dx), dw.view, db.view, step, pad});
}

void AvgPool1d(bool backward, int64_t rows, int64_t width, int kernel, KernelProblem& p) {
  const std::vector<int64_t> cu = Segments(rows);
  std::vector<int64_t> cu_out = {0};
  for (size_t s = 0; s + 1 < cu.size(); ++s)
    cu_out.push_back(cu_out.back() + (cu[s + 1] - cu[s]) / kernel);
  const HostTensor x = p.Random({rows, width}), dy = p.Random({cu_out.back(), width});
  Values y(cu_out.back() * width), dx(rows * width);
  for (size_t s = 0; s + 1 < cu.size(); ++s)
    for (int64_t f = cu_out[s]; f < cu_out[s + 1]; ++f)
      for (int64_t j = 0; j < kernel; ++j) {
        const int64_t i = cu[s] + (f - cu_out[s]) * kernel + j;
        for (int64_t h = 0; h < width; ++h) {
          y[f * width + h] += x(i, h) / kernel;
          dx[i * width + h] = dy(f, h) / kernel;
        }
      }
  const TensorView cu_view = p.Integers(cu).view, cu_out_view = p.Integers(cu_out).view;
  if (backward)
    p.SetArgs(
        AvgPool1dBackwardArgs{dy.view, cu_view, cu_out_view, p.Output({rows, width}, dx), kernel});
  else
    p.SetArgs(AvgPool1dForwardArgs{x.view, cu_view, cu_out_view,
                                   p.Output({cu_out.back(), width}, y), kernel});
}

void Normalize(int64_t rows, int64_t width, KernelProblem& p) {
  PatchNormalizeArgs args;
  args.num_channels = 3;
  const HostTensor x = p.Bytes({rows, 3 * width});
  args.patches_PI = x.view;
  Values y(rows * 3 * width);
  for (int c = 0; c < 3; ++c) {
    args.mean[c] = 0.4f + 0.05f * static_cast<float>(c);
    args.std[c] = 0.25f + 0.02f * static_cast<float>(c);
    for (int64_t t = 0; t < rows; ++t)
      for (int64_t i = c * width; i < (c + 1) * width; ++i)
        y[t * 3 * width + i] = (x(t, i) / 255.0 - args.mean[c]) / args.std[c];
  }
  args.y_PI = p.Output({rows, 3 * width}, y);
  p.SetArgs(args);
}

}  // namespace

bool MakeReference(OpId op, int64_t rows, int64_t width, int variant, KernelProblem& p) {
  if (variant >= (op == OpId::kConv1dForward || op == OpId::kConv1dBackward ? 3 : 2)) return false;
  const bool second = variant == 1;
  switch (op) {
    case OpId::kLinearForward:
    case OpId::kLinearBackwardWeight:
      Linear(op, rows, width, second, p);
      return true;
    case OpId::kLinearBackwardInput:
      Linear(op, rows, width, false, p);
      return !second;
    case OpId::kEmbeddingForward:
    case OpId::kEmbeddingBackward:
    case OpId::kGatherRows:
    case OpId::kScatterRows:
    case OpId::kScatterAddRows:
      Rows(op, rows, width, p);
      return !second;
    case OpId::kInterpolateRowsForward:
    case OpId::kInterpolateRowsBackward:
      InterpolateRows(op == OpId::kInterpolateRowsBackward, rows, width, second ? 4 : 1, p);
      return true;
    case OpId::kRmsNormForward:
    case OpId::kRmsNormBackward:
      Norm(op == OpId::kRmsNormBackward, false, rows, width, second, p);
      return true;
    case OpId::kLayerNormForward:
    case OpId::kLayerNormBackward:
      Norm(op == OpId::kLayerNormBackward, true, rows, width, second, p);
      return true;
    case OpId::kSwiGluForward:
    case OpId::kSwiGluBackward:
      SwiGlu(op == OpId::kSwiGluBackward, rows, width, p);
      return !second;
    case OpId::kGeluForward:
    case OpId::kGeluBackward:
      Gelu(op == OpId::kGeluBackward, second, rows, width, p);
      return true;
    case OpId::kConv1dForward:
    case OpId::kConv1dBackward:
      Conv1d(op == OpId::kConv1dBackward, rows, width, 1 + variant, p);
      return true;
    case OpId::kPatchNormalize:
      Normalize(rows, width, p);
      return !second;
    case OpId::kAvgPool1dForward:
    case OpId::kAvgPool1dBackward:
      AvgPool1d(op == OpId::kAvgPool1dBackward, rows, width, 2 + variant, p);
      return true;
    default:
      return MakeLossReference(op, rows, width, second, p) ||
             MakeMoeReference(op, rows, width, second, p);
  }
}

}  // namespace omni::testing
