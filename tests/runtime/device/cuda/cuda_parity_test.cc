// The CUDA kernels on the emulated GPU: against plain loops where the op has such a reference, else
// against the CPU kernels; with dense and with strided views, aligned and not.
#include <gtest/gtest.h>

#include <set>

#include "absl/strings/str_cat.h"
#include "runtime/device/args/attention.h"
#include "runtime/device/args/conv.h"
#include "runtime/device/args/elementwise.h"
#include "runtime/device/args/optimizer.h"
#include "runtime/device/args/rope.h"
#include "runtime/device/args/rows.h"
#include "runtime/device/cuda/register.h"
#include "runtime/device/cuda_emulated/runtime.h"
#include "tests/runtime/device/cuda/on_device.h"
#include "tests/runtime/ops/kernel_cases.h"

namespace omni {
namespace {

using ::omni::testing::DeviceStream;
using ::omni::testing::ExpectResults;
using ::omni::testing::HostTensor;
using ::omni::testing::KernelProblem;
using ::omni::testing::RunOnDevice;

KernelRegistry CudaKernels() {
  KernelRegistry registry;
  cuda::RegisterCudaKernels(registry);
  return registry;
}

class CudaParityTest : public ::testing::Test {
 protected:
  // Nothing may be left behind, and (in the build that looks for them) no race be seen.
  void TearDown() override {
    stream_.ReleaseLibrary();
    EXPECT_EQ(emulated::BytesAllocated(), 0u);
    EXPECT_EQ(emulated::num_races, 0u);
  }
  DeviceStream stream_;
};

TEST_F(CudaParityTest, EveryKernelMatchesPlainLoops) {
  int num_cases = 0;
  ::omni::testing::ForEachCase(CudaKernels(),
                               [&](const KernelEntry& entry, KernelProblem& problem) {
                                 ++num_cases;
                                 ASSERT_EQ(RunOnDevice(entry, problem, stream_), 0);
                                 ExpectResults(entry, problem);
                               });
  EXPECT_GT(num_cases, 600);
}

// Rows wider than a warp, than a block, and than what a thread keeps in registers. Not of products,
// which do not go by rows and whose plain loops would take minutes.
TEST_F(CudaParityTest, WideRows) {
  const std::set<OpId> products = {OpId::kLinearForward,
                                   OpId::kLinearBackwardInput,
                                   OpId::kLinearBackwardWeight,
                                   OpId::kGroupedLinearForward,
                                   OpId::kGroupedLinearBackwardInput,
                                   OpId::kGroupedLinearBackwardWeight,
                                   OpId::kConv1dForward,
                                   OpId::kConv1dBackward,
                                   OpId::kCrossEntropyForward};
  const KernelRegistry registry = CudaKernels();
  for (const KernelEntry& entry : registry.entries())
    for (const int64_t width : {520, 2304, 9000})
      for (int variant = 0; variant < 3; ++variant) {
        KernelProblem problem(entry.dtype, 13);
        if (products.count(entry.op) > 0) continue;
        if (!::omni::testing::MakeReference(entry.op, 3, width, variant, problem)) continue;
        SCOPED_TRACE(absl::StrCat(entry.name, " width ", width, " variant ", variant));
        ASSERT_EQ(RunOnDevice(entry, problem, stream_), 0);
        ExpectResults(entry, problem);
      }
}

TEST(CudaKernelsTest, NoneIsMissing) {
  const auto keys = [](const KernelRegistry& registry) {
    std::set<std::pair<OpId, DType>> found;
    for (const KernelEntry& entry : registry.entries()) found.insert({entry.op, entry.dtype});
    return found;
  };
  KernelRegistry cpu;
  RegisterCpuKernels(cpu);
  EXPECT_EQ(keys(CudaKernels()), keys(cpu));
}

TEST_F(CudaParityTest, TheSameBitsEachTime) {
  if (emulated::keeps_works) GTEST_SKIP() << "minutes where each access is looked at";
  ::omni::testing::ForEachCase(CudaKernels(),
                               [&](const KernelEntry& entry, KernelProblem& problem) {
                                 problem.Snapshot();
                                 ASSERT_EQ(RunOnDevice(entry, problem, stream_), 0);
                                 const auto once = problem.memory();
                                 problem.Restore();
                                 ASSERT_EQ(RunOnDevice(entry, problem, stream_), 0);
                                 EXPECT_EQ(once, problem.memory());
                               });
}

// What the CPU kernel makes of the problem's arguments is expected in `outputs`.
void ExpectAsOnCpu(OpId op, DType dtype, absl::Span<const TensorView> outputs,
                   KernelProblem& problem) {
  KernelRegistry registry;
  RegisterCpuKernels(registry);
  const KernelEntry* entry = registry.Find(op, DeviceKind::kCpu, dtype, problem.args());
  ASSERT_NE(entry, nullptr);
  problem.Snapshot();
  std::vector<std::byte> scratch(
      entry->scratch_bytes == nullptr ? 0 : entry->scratch_bytes(problem.args()));
  const KernelContext context{
      .stream = nullptr,
      .scratch = scratch.data(),
      .scratch_bytes = static_cast<int64_t>(scratch.size()),
      .pool = nullptr,
      .parallel_for =
          [](void*, int64_t num_tasks, void (*body)(void*, int64_t), void* arg) {
            for (int64_t task = 0; task < num_tasks; ++task) body(arg, task);
          },
      .flags = nullptr,
      .library = nullptr};
  ASSERT_EQ(entry->run(problem.args(), &context), 0);
  for (const TensorView& view : outputs) {
    std::vector<double> values(view.num_elements());
    for (size_t i = 0; i < values.size(); ++i) values[i] = KernelProblem::Read(view, i);
    problem.Expect(view, values);
  }
  problem.Restore();
}

// The whole tensor is an output, so what lies beside a slice must stay.
struct Slice {
  TensorView whole, part;
};
// [rows, width] of each layout: dense; columns of a wider tensor, from an odd one or an aligned
// one; heads of a fused [rows, 3, width + 8].
constexpr int kLayouts = 4;
Slice MakeSlice(KernelProblem& problem, int64_t rows, int64_t width, int layout) {
  if (layout == 0) {
    const TensorView view = problem.Random({rows, width}).view;
    return {view, view};
  }
  if (layout == 3) {
    const TensorView whole = problem.Random({rows, 3, width + 8}).view;
    return {whole, whole.Slice(1, 1, 2).Columns(8, width)};
  }
  const TensorView whole = problem.Random({rows, width + 16}).view;
  return {whole, whole.Columns(layout == 1 ? 3 : 8, width)};
}

class AgainstCpuTest : public CudaParityTest,
                       public ::testing::WithParamInterface<std::tuple<DType, int>> {
 protected:
  DType dtype() const { return std::get<0>(GetParam()); }
  int layout() const { return std::get<1>(GetParam()); }

  template <typename Args>
  void Run(OpId op, const Args& args, absl::Span<const TensorView> outputs,
           KernelProblem& problem) {
    problem.SetArgs(args);
    ExpectAsOnCpu(op, dtype(), outputs, problem);
    const KernelRegistry registry = CudaKernels();
    const KernelEntry* entry = registry.Find(op, DeviceKind::kCuda, dtype(), problem.args());
    ASSERT_NE(entry, nullptr) << OpName(op);
    ASSERT_EQ(RunOnDevice(*entry, problem, stream_), 0);
    ExpectResults(*entry, problem);
  }
};

constexpr std::pair<int64_t, int64_t> kSizes[] = {{0, 8}, {1, 1}, {3, 40}, {17, 64}, {5, 131}};

TEST_P(AgainstCpuTest, Elementwise) {
  for (const auto& [rows, width] : kSizes) {
    SCOPED_TRACE(absl::StrCat(rows, " x ", width));
    KernelProblem fill(dtype(), 1), add(dtype(), 2), axpy(dtype(), 3), scale(dtype(), 4);
    const Slice filled = MakeSlice(fill, rows, width, layout());
    Run(OpId::kFill, FillArgs{.out = filled.part, .value = 0.375}, {filled.whole}, fill);
    const Slice a = MakeSlice(add, rows, width, layout()), b = MakeSlice(add, rows, width, 0);
    const TensorView added = layout() == 3 ? a.part : b.part;
    Run(OpId::kAdd, AddArgs{.a = a.part, .b = added, .out = a.part}, {a.whole}, add);
    if (dtype() != DType::kBFloat16) {  // it adds to sums alone
      const Slice x = MakeSlice(axpy, rows, width, layout());
      const Slice y = MakeSlice(axpy, rows, width, layout());
      Run(OpId::kAxpy, AxpyArgs{.x = x.part, .y = y.part, .alpha = -0.7}, {y.whole}, axpy);
    }
    const Slice scaled = MakeSlice(scale, rows, width, layout());
    Run(OpId::kScale, ScaleArgs{.x = scaled.part, .alpha = 1.3}, {scaled.whole}, scale);
  }
}

// bf16 gradients are added to fp32 sums.
TEST_F(CudaParityTest, AxpyOfALowerPrecision) {
  KernelProblem problem(DType::kFloat32, 12);
  const TensorView y = problem.Random({17, 40}).view;
  const TensorView x = TensorView::Dense(problem.Integers(std::vector<int64_t>(340)).view.data,
                                         DType::kBFloat16, DeviceKind::kCpu, {17, 40});
  for (int64_t i = 0; i < x.num_elements(); ++i)
    x.ptr<BFloat16>()[i] = BFloat16(static_cast<float>(i % 19 - 9));
  problem.SetArgs(AxpyArgs{.x = x, .y = y, .alpha = 0.3});
  ExpectAsOnCpu(OpId::kAxpy, DType::kFloat32, {y}, problem);
  const KernelRegistry registry = CudaKernels();
  const KernelEntry* entry =
      registry.Find(OpId::kAxpy, DeviceKind::kCuda, DType::kFloat32, problem.args());
  ASSERT_EQ(RunOnDevice(*entry, problem, stream_), 0);
  ExpectResults(*entry, problem);
}

// A tensor of another type than the problem's.
TensorView MakeOfType(KernelProblem& problem, DType dtype, std::initializer_list<int64_t> sizes) {
  int64_t bytes = SizeOf(dtype);
  for (const int64_t size : sizes) bytes *= size;
  const HostTensor room = problem.Integers(std::vector<int64_t>(bytes / 4 + 1));
  return TensorView::Dense(room.view.data, dtype, DeviceKind::kCpu, sizes);
}

TEST_P(AgainstCpuTest, CopyToEveryType) {
  // Not to uint8: that negative numbers have no place there is the caller's business.
  for (const DType to :
       {DType::kFloat64, DType::kFloat32, DType::kBFloat16, DType::kInt32, DType::kInt64}) {
    for (const auto& [rows, width] : kSizes) {
      KernelProblem problem(dtype(), 5);
      const Slice in = MakeSlice(problem, rows, width, layout());
      const TensorView out = layout() == 3 ? MakeOfType(problem, to, {rows, 2, width})
                                           : MakeOfType(problem, to, {rows, width});
      Run(OpId::kCopyCast, CopyCastArgs{.in = in.part, .out = out}, {out}, problem);
    }
  }
}

TEST_P(AgainstCpuTest, RopeInPlace) {
  for (const OpId op : {OpId::kRopeForward, OpId::kRopeBackward}) {
    for (const int64_t half : {1, 8, 36}) {
      KernelProblem problem(dtype(), 6);
      const int64_t tokens = 7, heads = 3;
      const TensorView whole = problem.Random({tokens, heads + layout(), 2 * half}).view;
      const TensorView x = whole.Slice(1, layout(), heads);
      const HostTensor cos = problem.RandomSums({tokens, half}),
                       sin = problem.RandomSums({tokens, half});
      Run(op, RopeArgs{.x_TND = x, .cos_TR = cos.view, .sin_TR = sin.view, .y_TND = x}, {whole},
          problem);
    }
  }
}

TEST_P(AgainstCpuTest, Optimizers) {
  if (dtype() == DType::kBFloat16) GTEST_SKIP() << "master weights are fp32 or fp64";
  for (const int64_t count : {1, 4, 1000, 40000}) {
    const int64_t from = layout();  // 0: aligned
    const auto make = [&](KernelProblem& problem) {
      return problem.Random({count + from}).view.Rows(from, count);
    };
    KernelProblem adam(dtype(), 7);
    const TensorView weight = make(adam), grad = make(adam), first = make(adam);
    const TensorView second = make(adam);
    for (int64_t i = 0; i < count; ++i) {  // a mean of squares
      if (dtype() == DType::kFloat64)
        second.ptr<double>()[i] = std::abs(second.ptr<double>()[i]);
      else
        second.ptr<float>()[i] = std::abs(second.ptr<float>()[i]);
    }
    Run(OpId::kAdamW,
        AdamWArgs{.weight = weight,
                  .grad = grad,
                  .first_moment = first,
                  .second_moment = second,
                  .grad_scale = 0.5,
                  .lr = 1e-2,
                  .beta1 = 0.9,
                  .beta2 = 0.95,
                  .eps = 1e-8,
                  .weight_decay = 0.1,
                  .correction1 = 0.4,
                  .correction2 = 0.2},
        {weight, first, second}, adam);
    KernelProblem sum(dtype(), 8);
    const TensorView squares = make(sum);
    const TensorView total = MakeOfType(sum, DType::kFloat64, {1});
    Run(OpId::kSumOfSquares, SumOfSquaresArgs{.x = squares, .out = total}, {total}, sum);
    KernelProblem muon(dtype(), 9);
    const TensorView g = make(muon), buffer = make(muon), direction = make(muon);
    Run(OpId::kMuonMomentum,
        MuonMomentumArgs{
            .grad = g, .buffer = buffer, .direction = direction, .grad_scale = 2, .momentum = 0.95},
        {buffer, direction}, muon);
    KernelProblem apply(dtype(), 10);
    const TensorView w = make(apply), d = make(apply);
    Run(OpId::kMuonApply,
        MuonApplyArgs{.weight = w, .direction = d, .lr = 0.02, .weight_decay = 0.1, .scale = 3},
        {w}, apply);
  }
}

struct AttentionCase {
  std::vector<int64_t> lengths;
  int64_t heads, kv_heads, dim;
  AttentionMask mask;
};
const AttentionCase kAttentions[] = {
    {{}, 2, 1, 8, {.causal = 1}},
    {{1, 5, 40}, 4, 2, 16, {.causal = 1}},
    {{33, 7}, 3, 3, 20, {}},
    {{70}, 2, 1, 64, {.causal = 1, .window = 9}},
    {{11, 50}, 2, 2, 80, {.causal = 0, .window = 6}},
    {{9, 34}, 2, 1, 136, {.causal = 1}},
    {{37}, 1, 1, 256, {}},
};

// q, k and v are heads of one fused tensor, or apart.
struct Attended {
  TensorView q, k, v;
  std::vector<TensorView> whole;
  Attended(KernelProblem& problem, const AttentionCase& c, int64_t queries, int64_t keys,
           bool fused) {
    if (fused && queries == keys) {
      const TensorView all = problem.Random({queries, c.heads + 2 * c.kv_heads, c.dim}).view;
      whole = {all};
      q = all.Slice(1, 0, c.heads);
      k = all.Slice(1, c.heads, c.kv_heads);
      v = all.Slice(1, c.heads + c.kv_heads, c.kv_heads);
    } else {
      q = problem.Random({queries, c.heads, c.dim}).view;
      k = problem.Random({keys, c.kv_heads, c.dim}).view;
      v = problem.Random({keys, c.kv_heads, c.dim}).view;
      whole = {q, k, v};
    }
  }
};

TEST_P(AgainstCpuTest, Attention) {
  for (const AttentionCase& c : kAttentions) {
    SCOPED_TRACE(absl::StrCat("dim ", c.dim, " heads ", c.heads));
    std::vector<int64_t> cu = {0};
    int64_t longest = 0;
    for (const int64_t length : c.lengths) {
      cu.push_back(cu.back() + length);
      longest = std::max(longest, length);
    }
    const int64_t tokens = cu.back();
    KernelProblem problem(dtype(), 21);
    const Attended in(problem, c, tokens, tokens, layout() % 2 == 1);
    const HostTensor segments = problem.Integers(cu);
    const TensorView out = problem.Random({tokens, c.heads, c.dim}).view;
    const TensorView lse = problem.RandomSums({tokens, c.heads}).view;
    const double scale = 1 / std::sqrt(static_cast<double>(c.dim));
    AttentionForwardArgs forward{.q_TND = in.q,
                                 .k_TKD = in.k,
                                 .v_TKD = in.v,
                                 .cu_seqlens = segments.view,
                                 .out_TND = out,
                                 .lse_TN = lse,
                                 .scale = scale,
                                 .mask = c.mask,
                                 .max_seqlen = static_cast<int32_t>(longest)};
    Run(OpId::kAttentionForward, forward, {out, lse}, problem);

    // From what the forward pass left in out and lse.
    problem.ForgetExpectations();
    const TensorView grad_out = problem.Random({tokens, c.heads, c.dim}).view;
    const Attended grads(problem, c, tokens, tokens, layout() >= 2);
    AttentionBackwardArgs backward{.q_TND = in.q,
                                   .k_TKD = in.k,
                                   .v_TKD = in.v,
                                   .cu_seqlens = segments.view,
                                   .out_TND = out,
                                   .lse_TN = lse,
                                   .grad_out_TND = grad_out,
                                   .grad_q_TND = grads.q,
                                   .grad_k_TKD = grads.k,
                                   .grad_v_TKD = grads.v,
                                   .scale = scale,
                                   .mask = c.mask,
                                   .max_seqlen = static_cast<int32_t>(longest)};
    Run(OpId::kAttentionBackward, backward, grads.whole, problem);
  }
}

// Two calls for the keys of one segment, the second merged into the first; one segment's queries
// are its last.
TEST_P(AgainstCpuTest, AttentionInParts) {
  for (const AttentionCase& c : kAttentions) {
    SCOPED_TRACE(absl::StrCat("dim ", c.dim, " heads ", c.heads));
    KernelProblem problem(dtype(), 22);
    const int64_t queries = 19, keys = 47;
    const Attended in(problem, c, queries, keys, false);
    // Rows of q: 0 to 6 see keys 3 to 22, 9 to 18 see 25 to 46.
    const HostTensor segments = problem.Integers({0, 7, 3, 20, 9, 10, 25, 22});
    TensorView four = segments.view.Reshape({2, 4});
    const TensorView out = problem.RandomSums({queries, c.heads, c.dim}).view;
    const TensorView lse = problem.RandomSums({queries, c.heads}).view;
    const double scale = 1 / std::sqrt(static_cast<double>(c.dim));
    AttentionPartialForwardArgs forward{.q_TND = in.q,
                                        .k_TKD = in.k,
                                        .v_TKD = in.v,
                                        .segments = four,
                                        .out_TND = out,
                                        .lse_TN = lse,
                                        .scale = scale,
                                        .mask = c.mask,
                                        .continues = layout() % 2};
    Run(OpId::kAttentionPartialForward, forward, {out, lse}, problem);
    problem.ForgetExpectations();
    const TensorView rounded = problem.Random({queries, c.heads, c.dim}).view;
    const TensorView grad_out = problem.Random({queries, c.heads, c.dim}).view;
    const TensorView dq = problem.RandomSums({queries, c.heads, c.dim}).view;
    const TensorView dk = problem.RandomSums({keys, c.kv_heads, c.dim}).view;
    const TensorView dv = problem.RandomSums({keys, c.kv_heads, c.dim}).view;
    AttentionPartialBackwardArgs backward{.q_TND = in.q,
                                          .k_TKD = in.k,
                                          .v_TKD = in.v,
                                          .segments = four,
                                          .out_TND = rounded,
                                          .lse_TN = lse,
                                          .grad_out_TND = grad_out,
                                          .grad_q_TND = dq,
                                          .grad_k_TKD = dk,
                                          .grad_v_TKD = dv,
                                          .scale = scale,
                                          .mask = c.mask};
    Run(OpId::kAttentionPartialBackward, backward, {dq, dk, dv}, problem);
  }
}

TEST_P(AgainstCpuTest, AttentionWithACache) {
  for (const AttentionCase& c : kAttentions) {
    KernelProblem problem(dtype(), 23);
    const Attended in(problem, c, 3, 41, false);
    const TensorView out = problem.Random({3, c.heads, c.dim}).view;
    Run(OpId::kAttentionCached,
        AttentionCachedArgs{
            .q_TND = in.q, .k_LKD = in.k, .v_LKD = in.v, .out_TND = out, .scale = 0.3},
        {out}, problem);
  }
}

TEST_P(AgainstCpuTest, Convolution) {
  for (const int32_t stride : {1, 2}) {
    const int32_t padding = layout() % 2;
    constexpr int64_t kKernel = 3;
    std::vector<int64_t> in = {0}, frames = {0};
    for (const int64_t length : {9, 3, 20}) {
      in.push_back(in.back() + length);
      frames.push_back(frames.back() + (length + 2 * padding - kKernel) / stride + 1);
    }
    const int64_t inputs = 5, outputs = 12;
    KernelProblem problem(dtype(), 24);
    const Slice x = MakeSlice(problem, in.back(), inputs, layout() % 3);
    const HostTensor cu_in = problem.Integers(in), cu_out = problem.Integers(frames);
    const TensorView weight = problem.Random({outputs, inputs, kKernel}).view;
    const TensorView bias = problem.Random({outputs}).view;
    const Slice y = MakeSlice(problem, frames.back(), outputs, layout() % 3);
    Run(OpId::kConv1dForward,
        Conv1dForwardArgs{.x_FC = x.part,
                          .cu_seqlens = cu_in.view,
                          .cu_outlens = cu_out.view,
                          .weight_OCk = weight,
                          .bias_O = bias,
                          .y_FO = y.part,
                          .stride = stride,
                          .padding = padding},
        {y.whole}, problem);
    problem.ForgetExpectations();
    const Slice grad_x = MakeSlice(problem, in.back(), inputs, layout() % 3);
    const TensorView grad_weight = problem.RandomSums({outputs, inputs, kKernel}).view;
    const TensorView grad_bias = problem.RandomSums({outputs}).view;
    Run(OpId::kConv1dBackward,
        Conv1dBackwardArgs{.x_FC = x.part,
                           .cu_seqlens = cu_in.view,
                           .cu_outlens = cu_out.view,
                           .weight_OCk = weight,
                           .grad_y_FO = y.part,
                           .grad_x_FC = grad_x.part,
                           .grad_weight_OCk = grad_weight,
                           .grad_bias_O = grad_bias,
                           .stride = stride,
                           .padding = padding},
        {grad_x.whole, grad_weight, grad_bias}, problem);
  }
}

TEST_P(AgainstCpuTest, Orthogonalisation) {
  if (dtype() == DType::kBFloat16) GTEST_SKIP() << "master weights are fp32 or fp64";
  for (const auto& [rows, cols] : {std::pair{1, 1}, {3, 40}, {40, 3}, {24, 24}}) {
    KernelProblem problem(dtype(), 25);
    const TensorView direction = problem.Random({rows, cols}).view;
    Run(OpId::kNewtonSchulz, NewtonSchulzArgs{.direction = direction, .steps = 5 - layout() % 2},
        {direction}, problem);
  }
}

INSTANTIATE_TEST_SUITE_P(TypesAndLayouts, AgainstCpuTest,
                         ::testing::Combine(::testing::Values(DType::kFloat64, DType::kFloat32,
                                                              DType::kBFloat16),
                                            ::testing::Range(0, kLayouts)),
                         [](const auto& info) {
                           return absl::StrCat(Name(std::get<0>(info.param)), "Layout",
                                               std::get<1>(info.param));
                         });

// Numbers of rows that do not exist are left out, and raise their code.
TEST_F(CudaParityTest, ABadRowIsRaised) {
  KernelProblem problem(DType::kFloat32, 11);
  const TensorView x = problem.Random({4, 8}).view, y = problem.Random({3, 8}).view;
  for (const int64_t bad : {-1, 4}) {
    problem.SetArgs(
        GatherRowsArgs{.x_TH = x, .rows_R = problem.Integers({0, bad, 3}).view, .y_RH = y});
    const KernelRegistry registry = CudaKernels();
    const KernelEntry* entry =
        registry.Find(OpId::kGatherRows, DeviceKind::kCuda, DType::kFloat32, problem.args());
    EXPECT_EQ(RunOnDevice(*entry, problem, stream_), kBadRowIndex);
    EXPECT_EQ(y.ptr<float>()[0], x.ptr<float>()[0]);
    EXPECT_EQ(y.ptr<float>()[16], x.ptr<float>()[24]);
  }
}

}  // namespace
}  // namespace omni
