// A kernel's arguments with what it should write into them: for tests that run kernels of the
// registry directly.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <list>
#include <random>
#include <vector>

#include "runtime/device/kernel_table.h"

namespace omni::testing {

// A tensor on the host and its elements as doubles (after rounding to the tensor's dtype).
struct HostTensor {
  TensorView view;
  std::vector<double> values;

  double operator()(int64_t i) const { return values[i]; }
  double operator()(int64_t i, int64_t j) const { return values[i * view.size(1) + j]; }
};

class KernelProblem {
 public:
  KernelProblem(DType dtype, uint32_t seed) : dtype_(dtype), bits_(seed) {}

  DType dtype() const { return dtype_; }
  DType sums_dtype() const { return dtype_ == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32; }

  HostTensor Random(std::initializer_list<int64_t> sizes, double scale = 1.0) {
    return Make(dtype_, sizes, [&] { return scale * normal_(bits_); });
  }
  HostTensor RandomSums(std::initializer_list<int64_t> sizes) {  // what gradients add to
    return Make(sums_dtype(), sizes, [&] { return normal_(bits_); });
  }
  HostTensor Integers(const std::vector<int64_t>& values) {
    size_t next = 0;
    return Make(DType::kInt32, {static_cast<int64_t>(values.size())},
                [&] { return static_cast<double>(values[next++]); });
  }
  HostTensor Bytes(std::initializer_list<int64_t> sizes) {
    return Make(DType::kUInt8, sizes, [&] { return static_cast<double>(bits_() % 256); });
  }
  // `values` as the dtype of sums holds them: statistics a backward pass is given.
  HostTensor Sums(const std::vector<double>& values) {
    size_t next = 0;
    return Make(sums_dtype(), {static_cast<int64_t>(values.size())},
                [&] { return values[next++]; });
  }

  // An output filled with rubbish; it must come to hold `expected`.
  TensorView Output(DType dtype, std::initializer_list<int64_t> sizes,
                    std::vector<double> expected) {
    const TensorView view = Make(dtype, sizes, [] { return 77.0; }).view;
    Expect(view, std::move(expected));
    return view;
  }
  TensorView Output(std::initializer_list<int64_t> sizes, std::vector<double> expected) {
    return Output(dtype_, sizes, std::move(expected));
  }
  void Expect(const TensorView& view, std::vector<double> expected) {
    OMNI_CHECK_EQ(view.num_elements(), static_cast<int64_t>(expected.size()));
    outputs_.push_back({view, std::move(expected)});
  }
  void ForgetExpectations() { outputs_.clear(); }

  template <typename Args>
  void SetArgs(const Args& args) {
    static_assert(std::is_trivially_copyable_v<Args>);
    args_.resize(sizeof(Args));
    std::memcpy(args_.data(), &args, sizeof(Args));
  }

  // Remembers all tensors, and brings them back: to run on the same arguments again.
  void Snapshot() { initial_ = memory_; }
  void Restore() {
    auto from = initial_.begin();
    for (std::vector<std::byte>& to : memory_) {
      std::copy(from->begin(), from->end(), to.begin());
      ++from;
    }
  }

  // All tensors there are; and the arguments, whose views point into them.
  const std::list<std::vector<std::byte>>& memory() const { return memory_; }
  std::list<std::vector<std::byte>>& memory() { return memory_; }
  const std::vector<std::byte>& arg_bytes() const { return args_; }

  struct Result {
    TensorView view;
    std::vector<double> expected;
  };
  const void* args() const { return args_.data(); }
  const std::vector<Result>& outputs() const { return outputs_; }

  static double Read(const TensorView& view, int64_t i) {
    switch (view.dtype) {
      case DType::kFloat64:
        return view.ptr<double>()[i];
      case DType::kFloat32:
        return view.ptr<float>()[i];
      case DType::kBFloat16:
        return static_cast<float>(view.ptr<BFloat16>()[i]);
      case DType::kInt32:
        return view.ptr<int32_t>()[i];
      case DType::kInt64:
        return static_cast<double>(view.ptr<int64_t>()[i]);
      case DType::kUInt8:
        return view.ptr<uint8_t>()[i];
    }
    return 0.0;
  }

 private:
  template <typename Draw>
  HostTensor Make(DType dtype, std::initializer_list<int64_t> sizes, Draw draw) {
    int64_t count = 1;
    for (const int64_t size : sizes) count *= size;
    memory_.emplace_back(count * SizeOf(dtype) + 1);
    HostTensor tensor;
    tensor.view = TensorView::Dense(memory_.back().data(), dtype, DeviceKind::kCpu, sizes);
    for (int64_t i = 0; i < count; ++i) {
      Write(tensor.view, i, draw());
      tensor.values.push_back(Read(tensor.view, i));
    }
    return tensor;
  }
  static void Write(const TensorView& view, int64_t i, double value) {
    switch (view.dtype) {
      case DType::kFloat64:
        view.ptr<double>()[i] = value;
        break;
      case DType::kFloat32:
        view.ptr<float>()[i] = static_cast<float>(value);
        break;
      case DType::kBFloat16:
        view.ptr<BFloat16>()[i] = BFloat16(static_cast<float>(value));
        break;
      case DType::kInt32:
        view.ptr<int32_t>()[i] = static_cast<int32_t>(value);
        break;
      case DType::kInt64:
        view.ptr<int64_t>()[i] = static_cast<int64_t>(value);
        break;
      case DType::kUInt8:
        view.ptr<uint8_t>()[i] = static_cast<uint8_t>(value);
        break;
    }
  }

  DType dtype_;
  std::mt19937 bits_;
  std::normal_distribution<double> normal_;
  std::list<std::vector<std::byte>> memory_, initial_;
  std::vector<std::byte> args_;
  std::vector<Result> outputs_;
};

// Fills `problem` with an instance of `op`, its results computed by plain loops in fp64. rows may
// be 0, width not; `variant` chooses among the forms an op has (with and without bias, ...).
// False if the op is tested elsewhere, or has no such variant.
bool MakeReference(OpId op, int64_t rows, int64_t width, int variant, KernelProblem& problem);
// Its parts for losses and for mixtures of experts.
bool MakeLossReference(OpId op, int64_t rows, int64_t width, bool second, KernelProblem& problem);
bool MakeMoeReference(OpId op, int64_t rows, int64_t width, bool second, KernelProblem& problem);

}  // namespace omni::testing
