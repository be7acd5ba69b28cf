// The part of cuBLASLt that the plugin calls, on the CPU: descriptors as the real header has them,
// and the product as one piece of work on the stream.
//
// Stricter than the library: attributes it does not know, a workspace that is too small, C apart
// from D, an operand less aligned than the algorithm was chosen for, and an algorithm of another
// type end the program or are errors. The workspace is written over, as an algorithm would.
#include <cblas.h>
#include <cublasLt.h>
#include <cuda_bf16.h>

#include <cstring>
#include <vector>

#include "runtime/device/cuda_emulated/block.h"
#include "runtime/device/cuda_emulated/runtime.h"

struct cublasLtContext {
  int alive = 0x4c74;
};

namespace omni::emulated {
namespace {

struct Layout {
  cudaDataType_t type;
  uint64_t rows, cols;
  int64_t ld;
};
struct Description {
  cublasComputeType_t compute;
  int32_t trans_a = CUBLAS_OP_N, trans_b = CUBLAS_OP_N;
  uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  void* bias = nullptr;
};
struct Preference {
  uint64_t workspace = 0;
  uint32_t alignment[4] = {256, 256, 256, 256};  // of A, B, C, D
};
constexpr uint64_t kMagic = 0x6f6d6e69, kWorkspace = 1 << 16;
// What the opaque words of an algorithm say here.
struct Algorithm {
  uint64_t magic, types;
  uint32_t alignment[4];
};

// The library's opaque structs have room for ours.
template <typename Ours, typename Opaque>
Ours& As(Opaque* opaque) {
  static_assert(sizeof(Ours) <= sizeof(*opaque));
  return *reinterpret_cast<Ours*>(opaque);
}
template <typename Ours, typename Opaque>
const Ours& As(const Opaque* opaque) {
  static_assert(sizeof(Ours) <= sizeof(*opaque));
  return *reinterpret_cast<const Ours*>(opaque);
}

size_t BytesOf(cudaDataType_t type) { return type == CUDA_R_16BF ? 2 : type == CUDA_R_32F ? 4 : 8; }
uint64_t TypesOf(const Layout& a, const Layout& b, const Layout& d) {
  return static_cast<uint64_t>(a.type) << 32 | static_cast<uint64_t>(b.type) << 16 |
         static_cast<uint64_t>(d.type);
}

template <typename C>
C Read(const void* data, cudaDataType_t type, int64_t i) {
  if (type == CUDA_R_16BF)
    return static_cast<C>(__bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]));
  if (type == CUDA_R_32F) return static_cast<C>(static_cast<const float*>(data)[i]);
  return static_cast<C>(static_cast<const double*>(data)[i]);
}
template <typename C>
void Write(void* data, cudaDataType_t type, int64_t i, C x) {
  if (type == CUDA_R_16BF)
    static_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16_rn(static_cast<float>(x));
  else if (type == CUDA_R_32F)
    static_cast<float*>(data)[i] = static_cast<float>(x);
  else
    static_cast<double*>(data)[i] = static_cast<double>(x);
}
template <typename C>
std::vector<C> Dense(const void* data, const Layout& layout) {
  std::vector<C> dense(layout.rows * layout.cols);
  for (uint64_t c = 0; c < layout.cols; ++c)
    for (uint64_t r = 0; r < layout.rows; ++r)
      dense[c * layout.rows + r] =
          Read<C>(data, layout.type, static_cast<int64_t>(c) * layout.ld + static_cast<int64_t>(r));
  return dense;
}
void Touch(const void* data, const Layout& layout, bool writes) {
  for (uint64_t c = 0; c < layout.cols; ++c)
    AccessRange(static_cast<const char*>(data) +
                    c * static_cast<uint64_t>(layout.ld) * BytesOf(layout.type),
                layout.rows * BytesOf(layout.type), writes);
}

void Gemm(bool ta, bool tb, int m, int n, int k, float alpha, const float* a, int lda,
          const float* b, int ldb, float beta, float* c, int ldc) {
  cblas_sgemm(CblasColMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, m, n,
              k, alpha, a, lda, b, ldb, beta, c, ldc);
}
void Gemm(bool ta, bool tb, int m, int n, int k, double alpha, const double* a, int lda,
          const double* b, int ldb, double beta, double* c, int ldc) {
  cblas_dgemm(CblasColMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, m, n,
              k, alpha, a, lda, b, ldb, beta, c, ldc);
}

template <typename C>
struct ProductWork {
  Description description;
  Layout a_layout, b_layout, d_layout;
  const void *a, *b;
  void *d, *workspace;
  C alpha, beta;

  void Run() const {
    Touch(a, a_layout, false);
    Touch(b, b_layout, false);
    if (beta != C{0}) Touch(d, d_layout, false);
    Touch(d, d_layout, true);
    AccessRange(workspace, kWorkspace, true);
    std::memset(workspace, 0xa5, kWorkspace);
    const bool ta = description.trans_a == CUBLAS_OP_T, tb = description.trans_b == CUBLAS_OP_T;
    const auto m = static_cast<int>(d_layout.rows), n = static_cast<int>(d_layout.cols);
    const auto k = static_cast<int>(ta ? a_layout.rows : a_layout.cols);
    const std::vector<C> left = Dense<C>(a, a_layout), right = Dense<C>(b, b_layout);
    std::vector<C> result(static_cast<size_t>(m) * n);
    if (beta != C{0}) result = Dense<C>(d, d_layout);
    Gemm(ta, tb, m, n, k, alpha, left.data(), static_cast<int>(a_layout.rows), right.data(),
         static_cast<int>(b_layout.rows), beta, result.data(), m);
    const bool has_bias = (description.epilogue & CUBLASLT_EPILOGUE_BIAS) != 0;
    for (int column = 0; column < n; ++column)
      for (int row = 0; row < m; ++row) {
        C x = result[static_cast<size_t>(column) * m + row];
        if (has_bias) x += Read<C>(description.bias, d_layout.type, row);
        Write(d, d_layout.type, column * d_layout.ld + row, x);
      }
  }
};

bool IsAligned(const void* data, const Layout& layout, uint32_t alignment) {
  return (reinterpret_cast<uintptr_t>(data) |
          static_cast<uint64_t>(layout.ld) * BytesOf(layout.type)) %
             alignment ==
         0;
}

template <typename T>
cublasStatus_t Set(T* member, const void* from, size_t bytes) {
  if (bytes != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(member, from, bytes);
  return CUBLAS_STATUS_SUCCESS;
}

// The shapes that belong together.
bool Fits(const Description& description, const Layout& a, const Layout& b, const Layout& d) {
  const bool ta = description.trans_a == CUBLAS_OP_T, tb = description.trans_b == CUBLAS_OP_T;
  return d.rows == (ta ? a.cols : a.rows) && d.cols == (tb ? b.rows : b.cols) &&
         (ta ? a.rows : a.cols) == (tb ? b.cols : b.rows);
}

}  // namespace
}  // namespace omni::emulated

using namespace omni::emulated;

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  *handle = new cublasLtContext;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}
const char* cublasLtGetStatusString(cublasStatus_t) { return "emulated status"; }

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* result, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  const bool is_double = compute == CUBLAS_COMPUTE_64F && scale == CUDA_R_64F;
  if (!is_double && (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F))
    return CUBLAS_STATUS_NOT_SUPPORTED;
  *result = new cublasLtMatmulDescOpaque_t{};
  As<Description>(*result) = {.compute = compute};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t description) {
  delete description;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t opaque,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void* from, size_t bytes) {
  auto& description = As<Description>(opaque);
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return Set(&description.trans_a, from, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return Set(&description.trans_b, from, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return Set(&description.epilogue, from, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return Set(&description.bias, from, bytes);
    default:
      Fault("an attribute of a product that is not emulated");
  }
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* result, cudaDataType type,
                                          uint64_t rows, uint64_t cols, int64_t ld) {
  if (type != CUDA_R_16BF && type != CUDA_R_32F && type != CUDA_R_64F)
    return CUBLAS_STATUS_NOT_SUPPORTED;
  if (rows == 0 || cols == 0 || ld < static_cast<int64_t>(rows)) return CUBLAS_STATUS_INVALID_VALUE;
  *result = new cublasLtMatrixLayoutOpaque_t{};
  As<Layout>(*result) = {type, rows, cols, ld};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* result) {
  *result = new cublasLtMatmulPreferenceOpaque_t{};
  As<Preference>(*result) = {};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t opaque,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* from, size_t bytes) {
  auto& preference = As<Preference>(opaque);
  switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      return Set(&preference.workspace, from, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      return Set(&preference.alignment[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES],
                 from, bytes);
    default:
      Fault("a preference that is not emulated");
  }
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t description,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int requested,
                                              cublasLtMatmulHeuristicResult_t results[],
                                              int* found) {
  const auto &la = As<Layout>(a), &lb = As<Layout>(b), &lc = As<Layout>(c), &ld = As<Layout>(d);
  *found = 0;
  if (requested < 1 || !Fits(As<Description>(description), la, lb, ld))
    return CUBLAS_STATUS_INVALID_VALUE;
  const bool widens = la.type == CUDA_R_16BF && ld.type == CUDA_R_32F;
  if (la.type != lb.type || lc.type != ld.type || (la.type != ld.type && !widens))
    return CUBLAS_STATUS_NOT_SUPPORTED;
  const auto& wanted = As<Preference>(preference);
  if (wanted.workspace < kWorkspace) return CUBLAS_STATUS_NOT_SUPPORTED;
  results[0] = {};
  auto& algorithm = As<Algorithm>(&results[0].algo);
  algorithm = {.magic = kMagic, .types = TypesOf(la, lb, ld), .alignment = {}};
  std::memcpy(algorithm.alignment, wanted.alignment, sizeof(wanted.alignment));
  results[0].workspaceSize = kWorkspace;
  results[0].state = CUBLAS_STATUS_SUCCESS;
  *found = 1;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t description,
                                       cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                       cublasLtMatrixLayout_t, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t* algo,
                                       cublasLtMatmulHeuristicResult_t* result) {
  const auto &la = As<Layout>(a), &lb = As<Layout>(b), &ld = As<Layout>(d);
  const auto& algorithm = As<Algorithm>(algo);
  if (algorithm.magic != kMagic || algorithm.types != TypesOf(la, lb, ld) ||
      !Fits(As<Description>(description), la, lb, ld))
    return CUBLAS_STATUS_NOT_SUPPORTED;
  *result = {};
  result->workspaceSize = kWorkspace;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t description,
                              const void* alpha, const void* a, cublasLtMatrixLayout_t a_layout,
                              const void* b, cublasLtMatrixLayout_t b_layout, const void* beta,
                              const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algo,
                              void* workspace, size_t workspace_bytes, cudaStream_t stream) {
  if (handle == nullptr || algo == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  cublasLtMatmulHeuristicResult_t result;
  const cublasStatus_t status = cublasLtMatmulAlgoCheck(handle, description, a_layout, b_layout,
                                                        c_layout, d_layout, algo, &result);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  if (workspace == nullptr || workspace_bytes < kWorkspace) return CUBLAS_STATUS_INVALID_VALUE;
  if (c != d) Fault("a product whose C is not its D");
  const auto &la = As<Layout>(a_layout), &lb = As<Layout>(b_layout), &ld = As<Layout>(d_layout);
  const uint32_t* const alignment = As<Algorithm>(algo).alignment;
  if (!IsAligned(a, la, alignment[0]) || !IsAligned(b, lb, alignment[1]) ||
      !IsAligned(d, ld, alignment[3]))
    Fault("an operand less aligned than the algorithm of its product was chosen for");
  const auto& own = As<Description>(description);
  if (own.compute == CUBLAS_COMPUTE_64F) {
    const ProductWork<double> work{own,
                                   la,
                                   lb,
                                   ld,
                                   a,
                                   b,
                                   d,
                                   workspace,
                                   *static_cast<const double*>(alpha),
                                   *static_cast<const double*>(beta)};
    EnqueueWork(stream, "cublasLtMatmul", [work] { work.Run(); });
  } else {
    const ProductWork<float> work{own,
                                  la,
                                  lb,
                                  ld,
                                  a,
                                  b,
                                  d,
                                  workspace,
                                  *static_cast<const float*>(alpha),
                                  *static_cast<const float*>(beta)};
    EnqueueWork(stream, "cublasLtMatmul", [work] { work.Run(); });
  }
  return CUBLAS_STATUS_SUCCESS;
}

}  // extern "C"
