#include "runtime/device/cuda/matmul.h"

#include <cublasLt.h>

#include <array>
#include <map>
#include <vector>

namespace omni::cuda {
namespace {

constexpr size_t kWorkspaceBytes = size_t{32} << 20;

cudaDataType_t TypeOf(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return CUDA_R_64F;
    case DType::kBFloat16:
      return CUDA_R_16BF;
    default:
      return CUDA_R_32F;
  }
}

// The largest power of two up to 256 that divides an address and the bytes from row to row.
uint32_t AlignmentOf(const void* data, int64_t row_bytes) {
  const uint64_t bits = reinterpret_cast<uintptr_t>(data) | static_cast<uint64_t>(row_bytes) | 256;
  return static_cast<uint32_t>(bits & (~bits + 1));
}

// What algorithms are chosen by. Rows of a pack differ from step to step: their number counts as
// the next multiple of 256.
using Kind = std::array<int64_t, 13>;

class Layout {
 public:
  Layout(DType dtype, int64_t rows, int64_t cols, int64_t ld) {
    status_ = cublasLtMatrixLayoutCreate(&layout_, TypeOf(dtype), rows, cols, ld);
  }
  ~Layout() {
    if (layout_ != nullptr) cublasLtMatrixLayoutDestroy(layout_);
  }
  Layout(const Layout&) = delete;
  Layout& operator=(const Layout&) = delete;
  cublasStatus_t status() const { return status_; }
  cublasLtMatrixLayout_t get() const { return layout_; }

 private:
  cublasLtMatrixLayout_t layout_ = nullptr;
  cublasStatus_t status_;
};

class Description {
 public:
  explicit Description(const Product& product) {
    const bool wide = product.dtype == DType::kFloat64;
    status_ =
        cublasLtMatmulDescCreate(&description_, wide ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F,
                                 wide ? CUDA_R_64F : CUDA_R_32F);
    // A row-major matrix is the transpose of a column-major one, so the product is C^T = B^T A^T.
    Set(CUBLASLT_MATMUL_DESC_TRANSA, product.b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    Set(CUBLASLT_MATMUL_DESC_TRANSB, product.a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    if (product.bias == nullptr) return;
    Set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    Set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, product.bias);
  }
  ~Description() {
    if (description_ != nullptr) cublasLtMatmulDescDestroy(description_);
  }
  Description(const Description&) = delete;
  Description& operator=(const Description&) = delete;
  cublasStatus_t status() const { return status_; }
  cublasLtMatmulDesc_t get() const { return description_; }

 private:
  template <typename T>
  void Set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    if (status_ == CUBLAS_STATUS_SUCCESS)
      status_ = cublasLtMatmulDescSetAttribute(description_, attribute, &value, sizeof(value));
  }
  cublasLtMatmulDesc_t description_ = nullptr;
  cublasStatus_t status_;
};

class Preference {
 public:
  Preference() { status_ = cublasLtMatmulPreferenceCreate(&preference_); }
  ~Preference() {
    if (preference_ != nullptr) cublasLtMatmulPreferenceDestroy(preference_);
  }
  Preference(const Preference&) = delete;
  Preference& operator=(const Preference&) = delete;
  template <typename T>
  void Set(cublasLtMatmulPreferenceAttributes_t attribute, const T& value) {
    if (status_ == CUBLAS_STATUS_SUCCESS)
      status_ = cublasLtMatmulPreferenceSetAttribute(preference_, attribute, &value, sizeof(value));
  }
  cublasStatus_t status() const { return status_; }
  cublasLtMatmulPreference_t get() const { return preference_; }

 private:
  cublasLtMatmulPreference_t preference_ = nullptr;
  cublasStatus_t status_;
};

class LtLibrary final : public Library {
 public:
  explicit LtLibrary(cublasLtHandle_t handle) : handle_(handle) {}
  ~LtLibrary() override {
    for (const auto& [stream, workspace] : workspaces_) cudaFree(workspace);
    cublasLtDestroy(handle_);
  }

  cudaError_t Run(cudaStream_t stream, const Product& p) override {
    const int64_t element = static_cast<int64_t>(SizeOf(p.dtype));
    const int64_t c_element = static_cast<int64_t>(SizeOf(p.c_dtype));
    if (p.m == 0 || p.n == 0) return cudaSuccess;
    if (p.k == 0)
      return p.beta != 0
                 ? cudaSuccess
                 : cudaMemset2DAsync(p.c, p.ldc * c_element, 0, p.n * c_element, p.m, stream);
    void* workspace;
    if (const cudaError_t error = WorkspaceOf(stream, &workspace); error != cudaSuccess)
      return error;
    const Description description(p);
    const Layout b(p.dtype, p.b_transposed ? p.k : p.n, p.b_transposed ? p.n : p.k, p.ldb);
    const Layout a(p.dtype, p.a_transposed ? p.m : p.k, p.a_transposed ? p.k : p.m, p.lda);
    const Layout c(p.c_dtype, p.n, p.m, p.ldc);
    for (const cublasStatus_t status : {description.status(), b.status(), a.status(), c.status()})
      if (status != CUBLAS_STATUS_SUCCESS) return Failed(status);

    const uint32_t b_alignment = AlignmentOf(p.b, p.ldb * element);
    const uint32_t a_alignment = AlignmentOf(p.a, p.lda * element);
    const uint32_t c_alignment = AlignmentOf(p.c, p.ldc * c_element);
    const auto rounded = [](int64_t rows) { return (rows + 255) / 256 * 256; };
    const Kind kind = {static_cast<int64_t>(p.dtype),
                       static_cast<int64_t>(p.c_dtype),
                       rounded(p.m),
                       rounded(p.n),
                       rounded(p.k),
                       p.a_transposed,
                       p.b_transposed,
                       p.bias != nullptr,
                       p.beta != 0,
                       b_alignment,
                       a_alignment,
                       c_alignment,
                       p.c_dtype == p.dtype};
    auto found = algorithms_.find(kind);
    if (found == algorithms_.end() || !Takes(found->second, description, b, a, c)) {
      Preference preference;
      preference.Set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
      preference.Set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b_alignment);
      preference.Set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a_alignment);
      preference.Set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c_alignment);
      preference.Set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c_alignment);
      if (preference.status() != CUBLAS_STATUS_SUCCESS) return Failed(preference.status());
      cublasLtMatmulHeuristicResult_t result;
      int count = 0;
      const cublasStatus_t status =
          cublasLtMatmulAlgoGetHeuristic(handle_, description.get(), b.get(), a.get(), c.get(),
                                         c.get(), preference.get(), 1, &result, &count);
      if (status != CUBLAS_STATUS_SUCCESS) return Failed(status);
      if (count == 0) return Failed(CUBLAS_STATUS_NOT_SUPPORTED);
      found = algorithms_.insert_or_assign(kind, result.algo).first;
    }
    const double wide_scales[] = {p.alpha, p.beta};
    const float scales[] = {static_cast<float>(p.alpha), static_cast<float>(p.beta)};
    const bool wide = p.dtype == DType::kFloat64;
    const void* alpha = wide ? static_cast<const void*>(&wide_scales[0]) : &scales[0];
    const void* beta = wide ? static_cast<const void*>(&wide_scales[1]) : &scales[1];
    const cublasStatus_t status =
        cublasLtMatmul(handle_, description.get(), alpha, p.b, b.get(), p.a, a.get(), beta, p.c,
                       c.get(), p.c, c.get(), &found->second, workspace, kWorkspaceBytes, stream);
    return status == CUBLAS_STATUS_SUCCESS ? cudaSuccess : Failed(status);
  }

 private:
  static cudaError_t Failed(cublasStatus_t status) {
    return static_cast<cudaError_t>(kLibraryError + static_cast<int>(status));
  }

  // Whether the algorithm of a kind does for this very product.
  bool Takes(const cublasLtMatmulAlgo_t& algorithm, const Description& description, const Layout& b,
             const Layout& a, const Layout& c) const {
    cublasLtMatmulHeuristicResult_t result;
    return cublasLtMatmulAlgoCheck(handle_, description.get(), b.get(), a.get(), c.get(), c.get(),
                                   &algorithm, &result) == CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize <= kWorkspaceBytes;
  }

  cudaError_t WorkspaceOf(cudaStream_t stream, void** workspace) {
    void*& own = workspaces_[stream];
    if (own == nullptr) {
      const cudaError_t error = cudaMalloc(&own, kWorkspaceBytes);
      if (error != cudaSuccess) return error;
    }
    *workspace = own;
    return cudaSuccess;
  }

  cublasLtHandle_t handle_;
  std::map<cudaStream_t, void*> workspaces_;
  std::map<Kind, cublasLtMatmulAlgo_t> algorithms_;
};

}  // namespace

std::unique_ptr<Library> Library::Create(std::string* error) {
  cublasLtHandle_t handle;
  const cublasStatus_t status = cublasLtCreate(&handle);
  if (status == CUBLAS_STATUS_SUCCESS) return std::make_unique<LtLibrary>(handle);
  *error = std::string("cuBLASLt can't be used: ") + cublasLtGetStatusString(status);
  return nullptr;
}

cudaError_t Multiply(const KernelContext* context, const Product& product) {
  return static_cast<Library*>(context->library)
      ->Run(static_cast<cudaStream_t>(context->stream), product);
}

}  // namespace omni::cuda
