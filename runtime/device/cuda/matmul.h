// Matrix products by cuBLASLt, and what it wants to keep between them.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>

#include "runtime/device/kernel_table.h"
#include "runtime/tensor/dtype.h"

namespace omni::cuda {

// C = alpha op(A) op(B) + beta C, row-major: op(A) is [m, k], op(B) [k, n], C [m, n]. A and B are
// of one type; C of the same, or fp32 for bf16. Sums are in fp32, in fp64 for fp64.
struct Product {
  int64_t m = 0, n = 0, k = 0;
  DType dtype = DType::kFloat32, c_dtype = DType::kFloat32;
  const void* a = nullptr;
  int64_t lda = 0;            // elements from a row to the next, as stored
  bool a_transposed = false;  // stored [k, m]
  const void* b = nullptr;
  int64_t ldb = 0;
  bool b_transposed = false;  // stored [n, k]
  void* c = nullptr;
  int64_t ldc = 0;
  const void* bias = nullptr;  // [n], added to each row of C: of C's type, which is A's, not fp64
  double alpha = 1.0, beta = 0.0;
};

// On the stream of the context, whose library must be one of these. A status of cuBLASLt's comes
// back as kLibraryError + status.
inline constexpr int kLibraryError = 10000;
cudaError_t Multiply(const KernelContext* context, const Product& product);

// Of scratch: what a piece takes so that the next one is aligned.
inline int64_t PieceBytes(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// The handle, a workspace for each stream, and the algorithm taken for each kind of product: the
// first product of a kind chooses, so that later ones have the same bits. Belongs to one issuing
// thread. Freed once the device is idle.
class Library {
 public:
  // Null, with the reason, where cuBLASLt can't be had.
  static std::unique_ptr<Library> Create(std::string* error);
  virtual ~Library() = default;
  virtual cudaError_t Run(cudaStream_t stream, const Product& product) = 0;
};

}  // namespace omni::cuda
