// The element-wise kernels against plain loops over strides, every dtype, dense and not; the
// kernel table; and bf16 kernels made of fp32 ones.
#include "runtime/device/args/elementwise.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "runtime/base/rng.h"
#include "runtime/device/cpu/kernel_helpers.h"
#include "tests/support/test_device.h"

namespace omni {
namespace {

using testing::TestDevice;

const DType kFloats[] = {DType::kFloat64, DType::kFloat32, DType::kBFloat16};

// What a value becomes in `dtype`.
double Rounded(double value, DType dtype) {
  if (dtype == DType::kFloat64) return value;
  const auto narrow = static_cast<float>(value);
  return dtype == DType::kBFloat16 ? static_cast<float>(BFloat16(narrow)) : narrow;
}

std::vector<double> Draws(int64_t count, uint64_t stream, DType dtype) {
  const CounterRng rng(7, stream);
  std::vector<double> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = Rounded(rng.Normal(i), dtype);
  return values;
}

// One tensor in one of several layouts, with the memory around it watched.
struct Layout {
  const char* name;
  std::vector<int64_t> sizes;
  bool strided;  // columns of a wider tensor
};
const Layout kLayouts[] = {{"empty", {0, 7}, false},       {"one", {1}, false},
                           {"vector", {10001}, false},     {"matrix", {13, 7}, false},
                           {"columns", {13, 7}, true},     {"heads", {5, 3, 6}, true},
                           {"long_rows", {2, 40000}, true}};

class ElementwiseTest : public ::testing::TestWithParam<Layout> {
 protected:
  TensorView Make(DType dtype, const std::vector<double>& values) {
    const Layout& layout = GetParam();
    if (!layout.strided) return device_.UploadAs(dtype, values, layout.sizes, device_.arena());
    std::vector<int64_t> wide = layout.sizes;
    wide.back() += 5;
    ExecContext ctx = device_.ctx();
    const TensorView all = ctx.New(dtype, wide);
    Launch(ctx, OpId::kFill, dtype, FillArgs{all, 99.0});
    const TensorView view = all.Columns(2, layout.sizes.back());
    const TensorView dense = device_.UploadAs(dtype, values, layout.sizes, device_.arena());
    Launch(ctx, OpId::kCopyCast, dtype, CopyCastArgs{dense, view});
    wholes_.push_back(all);
    return view;
  }
  // The columns beside the strided tensors are as they were.
  void ExpectMarginsIntact() {
    for (const TensorView& all : wholes_) {
      const std::vector<double> values = device_.ReadDoubles(all);
      const int64_t width = all.size(-1);
      for (size_t i = 0; i < values.size(); ++i) {
        const int64_t column = static_cast<int64_t>(i) % width;
        if (column < 2 || column >= width - 3) {
          ASSERT_EQ(values[i], 99.0) << i;
        }
      }
    }
  }
  int64_t Count() const {
    int64_t count = 1;
    for (const int64_t size : GetParam().sizes) count *= size;
    return count;
  }

  TestDevice device_;
  std::vector<TensorView> wholes_;
};

TEST_P(ElementwiseTest, Fill) {
  for (const DType dtype : kFloats) {
    const TensorView x = Make(dtype, Draws(Count(), 1, dtype));
    ExecContext ctx = device_.ctx();
    Launch(ctx, OpId::kFill, dtype, FillArgs{x, 0.1});
    EXPECT_EQ(device_.ReadDoubles(x), std::vector<double>(Count(), Rounded(0.1, dtype)));
  }
  ExpectMarginsIntact();
}

TEST_P(ElementwiseTest, CopyCastBetweenAnyTwo) {
  for (const DType from : kFloats) {
    for (const DType to : kFloats) {
      const std::vector<double> values = Draws(Count(), 2, from);
      const TensorView in = Make(from, values);
      const TensorView out = Make(to, std::vector<double>(Count(), 0.0));
      ExecContext ctx = device_.ctx();
      Launch(ctx, OpId::kCopyCast, from, CopyCastArgs{in, out});
      std::vector<double> expected = values;
      for (double& v : expected) v = Rounded(v, to);
      EXPECT_EQ(device_.ReadDoubles(out), expected);
    }
  }
  ExpectMarginsIntact();
}

TEST_P(ElementwiseTest, AddAlsoInPlace) {
  for (const DType dtype : kFloats) {
    const std::vector<double> va = Draws(Count(), 3, dtype), vb = Draws(Count(), 4, dtype);
    const TensorView a = Make(dtype, va), b = Make(dtype, vb);
    ExecContext ctx = device_.ctx();
    const TensorView out = ctx.New(dtype, a.shape());
    Launch(ctx, OpId::kAdd, dtype, AddArgs{a, b, out});
    Launch(ctx, OpId::kAdd, dtype, AddArgs{a, b, a});
    std::vector<double> expected(Count());
    for (int64_t i = 0; i < Count(); ++i) expected[i] = Rounded(va[i] + vb[i], dtype);
    EXPECT_EQ(device_.ReadDoubles(out), expected);
    EXPECT_EQ(device_.ReadDoubles(a), expected);
  }
  ExpectMarginsIntact();
}

TEST_P(ElementwiseTest, AxpyIntoWiderTypes) {
  for (const DType to : {DType::kFloat64, DType::kFloat32}) {
    for (const DType from : kFloats) {
      const std::vector<double> vx = Draws(Count(), 5, from), vy = Draws(Count(), 6, to);
      const TensorView x = Make(from, vx), y = Make(to, vy);
      ExecContext ctx = device_.ctx();
      Launch(ctx, OpId::kAxpy, to, AxpyArgs{x, y, -0.5});  // exact product
      std::vector<double> expected(Count());
      for (int64_t i = 0; i < Count(); ++i)
        expected[i] = Rounded(vy[i] - 0.5 * Rounded(vx[i], to), to);
      EXPECT_EQ(device_.ReadDoubles(y), expected);
    }
  }
  ExpectMarginsIntact();
}

TEST_P(ElementwiseTest, Scale) {
  for (const DType dtype : kFloats) {
    const std::vector<double> values = Draws(Count(), 8, dtype);
    const TensorView x = Make(dtype, values);
    ExecContext ctx = device_.ctx();
    Launch(ctx, OpId::kScale, dtype, ScaleArgs{x, 0.25});
    std::vector<double> expected = values;
    for (double& v : expected) v *= 0.25;
    EXPECT_EQ(device_.ReadDoubles(x), expected);
  }
  ExpectMarginsIntact();
}

INSTANTIATE_TEST_SUITE_P(Layouts, ElementwiseTest, ::testing::ValuesIn(kLayouts),
                         [](const auto& info) { return info.param.name; });

TEST(CopyCastTest, IntegersCopyToThemselves) {
  TestDevice device;
  ExecContext ctx = device.ctx();
  const TensorView in = device.Upload<int64_t>({1, -2, int64_t{1} << 60}, {3});
  const TensorView out = ctx.New(DType::kInt64, {3});
  Launch(ctx, OpId::kCopyCast, DType::kInt64, CopyCastArgs{in, out});
  EXPECT_EQ(device.Read<int64_t>(out), (std::vector<int64_t>{1, -2, int64_t{1} << 60}));
}

TEST(CopyCastTest, EveryTypeConvertsToEveryOther) {
  TestDevice device;
  ExecContext ctx = device.ctx();
  const DType all[] = {DType::kFloat64, DType::kFloat32, DType::kBFloat16,
                       DType::kInt32,   DType::kInt64,   DType::kUInt8};
  const std::vector<double> values = {0, 1, 2, 7, 100, 128};  // all six types hold these
  const TensorView source = device.Upload<double>(values, {2, 3});
  for (const DType from : all) {
    const TensorView in = ctx.New(from, {2, 3});
    Launch(ctx, OpId::kCopyCast, DType::kFloat64, CopyCastArgs{source, in});
    EXPECT_EQ(device.ReadDoubles(in), values);
    for (const DType to : all) {
      const TensorView out = ctx.New(to, {2, 3});
      Launch(ctx, OpId::kCopyCast, from, CopyCastArgs{in, out});
      EXPECT_EQ(device.ReadDoubles(out), values)
          << static_cast<int>(from) << " to " << static_cast<int>(to);
    }
  }
  const TensorView fractions = device.Upload<float>({2.9f, -2.9f}, {2});
  const TensorView whole = ctx.New(DType::kInt32, {2});
  Launch(ctx, OpId::kCopyCast, DType::kFloat32, CopyCastArgs{fractions, whole});
  EXPECT_EQ(device.Read<int32_t>(whole), (std::vector<int32_t>{2, -2}));
}

// ---- the table ----

struct NoArgs {
  int32_t small;
};
int32_t RunNothing(const void*, const KernelContext*) { return 0; }
KernelEntry Entry(const char* name, int32_t priority, bool (*supports)(const void*) = nullptr) {
  return {OpId::kFill, DeviceKind::kCpu, DType::kFloat32, name,
          priority,    RunNothing,       supports,        nullptr};
}

TEST(KernelRegistryTest, TheHighestPriorityThatSupportsTheArgumentsWins) {
  KernelRegistry registry;
  registry.Register(Entry("plain", 0));
  registry.Register(Entry(
      "fast", 10, [](const void* args) { return static_cast<const NoArgs*>(args)->small == 1; }));
  registry.Register(Entry("middle", 5));
  const auto name = [&](int32_t small) {
    const NoArgs args{small};
    return std::string(registry.Find(OpId::kFill, DeviceKind::kCpu, DType::kFloat32, &args)->name);
  };
  EXPECT_EQ(name(1), "fast");
  EXPECT_EQ(name(0), "middle");
}

TEST(KernelRegistryTest, CpuEntriesServeCpuAsyncAndNothingElse) {
  KernelRegistry registry;
  registry.Register(Entry("plain", 0));
  const NoArgs args{};
  const auto found = [&](OpId op, DeviceKind kind, DType dtype) {
    return registry.Find(op, kind, dtype, &args) != nullptr;
  };
  EXPECT_TRUE(found(OpId::kFill, DeviceKind::kCpuAsync, DType::kFloat32));
  EXPECT_FALSE(found(OpId::kFill, DeviceKind::kCuda, DType::kFloat32));
  EXPECT_FALSE(found(OpId::kFill, DeviceKind::kCpu, DType::kFloat64));
  EXPECT_FALSE(found(OpId::kScale, DeviceKind::kCpu, DType::kFloat32));
}

TEST(KernelRegistryTest, AMissIsExplained) {
  KernelRegistry registry;
  registry.Register(Entry("f32_fill_plain", 0));
  const std::string text = registry.Explain(OpId::kFill, DeviceKind::kCuda, DType::kBFloat16);
  for (const char* part : {"fill", "cuda", "bf16", "f32_fill_plain"})
    EXPECT_NE(text.find(part), std::string::npos) << text;
  EXPECT_NE(registry.Explain(OpId::kAdd, DeviceKind::kCpu, DType::kFloat32).find("none"),
            std::string::npos);
}

TEST(KernelRegistryTest, CpuKernelsHaveDistinctNamesThatTellTheirType) {
  KernelRegistry registry;
  RegisterCpuKernels(registry);
  std::vector<std::string> names;
  for (const KernelEntry& entry : registry.entries()) names.push_back(entry.name);
  std::sort(names.begin(), names.end());
  EXPECT_EQ(std::adjacent_find(names.begin(), names.end()), names.end());
  for (const KernelEntry& entry : registry.entries()) {
    const std::string name = entry.name;
    const std::string prefix = name.substr(0, name.find('_'));
    if (entry.dtype == DType::kFloat64) {
      EXPECT_EQ(prefix, "f64") << name;
    }
    if (entry.dtype == DType::kFloat32) {
      EXPECT_EQ(prefix, "f32") << name;
    }
    if (entry.dtype == DType::kBFloat16) {
      EXPECT_EQ(prefix, "bf16") << name;
    }
  }
}

// ---- bf16 through fp32 ----

// y = x + bias; total += x; ids are left as they are. Wants scratch of its own.
struct MixedArgs {
  TensorView x, bias, y, total, ids;
  template <typename F>
  void VisitViews(F&& f) {
    f.In(x);
    f.In(bias);
    f.Out(y);
    f.InOut(total);
    f.In(ids);
  }
};
int64_t MixedScratch(const void* raw) {
  return static_cast<const MixedArgs*>(raw)->x.as<const float, 2>().sizes[1] * 4;
}
int32_t MixedRun(const void* raw, const KernelContext* context) {
  const auto& args = *static_cast<const MixedArgs*>(raw);
  const auto x = args.x.as<const float, 2>();
  const auto y = args.y.as<float, 2>();
  if (args.ids.ptr<int32_t>()[0] != 42 || context->scratch_bytes < x.sizes[1] * 4) return 1;
  auto* row = static_cast<float*>(context->scratch);
  for (int64_t i = 0; i < x.sizes[0]; ++i) {
    for (int64_t j = 0; j < x.sizes[1]; ++j) row[j] = x(i, j);
    for (int64_t j = 0; j < x.sizes[1]; ++j) {
      y(i, j) = row[j] + (args.bias.empty() ? 0.0f : args.bias.ptr<float>()[j]);
      args.total.ptr<float>()[0] += row[j];
    }
  }
  return 0;
}

TEST(BFloat16AdapterTest, WidensRoundsAndPassesTheRest) {
  KernelRegistry registry;
  registry.Register({OpId::kGatherRows, DeviceKind::kCpu, DType::kBFloat16, "bf16_mixed", 0,
                     cpu::BFloat16Run<MixedArgs, MixedRun>, nullptr,
                     cpu::BFloat16Scratch<MixedArgs, MixedScratch>});
  const KernelEntry& kernel = registry.entries()[0];
  TestDevice device;
  ExecContext ctx = device.ctx();
  const std::vector<double> vx = Draws(3 * 9, 1, DType::kBFloat16);
  const std::vector<double> vb = Draws(4, 2, DType::kBFloat16);
  // Columns of a wider tensor, so that the widened copy has other strides.
  const TensorView x = device.UploadAs(DType::kBFloat16, vx, {3, 9}, device.arena()).Columns(3, 4);
  const TensorView y = ctx.New(DType::kBFloat16, {3, 9}).Columns(1, 4);
  const TensorView ids = device.Upload<int32_t>({42}, {1});
  for (const bool wide_total : {true, false}) {
    for (const bool with_bias : {true, false}) {
      const TensorView total = device.UploadAs(wide_total ? DType::kFloat32 : DType::kBFloat16,
                                               {1000.0}, {1}, device.arena());
      MixedArgs args{x, {}, y, total, ids};
      if (with_bias) args.bias = device.UploadAs(DType::kBFloat16, vb, {4}, device.arena());
      std::vector<std::byte> scratch(kernel.scratch_bytes(&args) + 64);
      void* aligned = scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) % 64;
      const KernelContext context{
          nullptr, aligned, kernel.scratch_bytes(&args), nullptr,
          [](void*, int64_t num_tasks, void (*body)(void*, int64_t), void* arg) {
            for (int64_t task = 0; task < num_tasks; ++task) body(arg, task);
          }};
      ASSERT_EQ(kernel.run(&args, &context), 0);
      std::vector<double> expected;
      float sum = 1000.0f;
      for (int i = 0; i < 3; ++i) {
        for (int j = 0; j < 4; ++j) {
          const double v = vx[i * 9 + 3 + j];
          expected.push_back(
              Rounded(Rounded(v + (with_bias ? vb[j] : 0.0), DType::kFloat32), DType::kBFloat16));
          sum += static_cast<float>(v);
        }
      }
      EXPECT_EQ(device.ReadDoubles(y), expected);
      EXPECT_EQ(device.ReadDoubles(total)[0], Rounded(sum, total.dtype));
    }
  }
}

}  // namespace
}  // namespace omni
