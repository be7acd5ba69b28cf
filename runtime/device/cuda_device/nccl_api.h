// NCCL as a CUDA plugin exports it: C functions and plain data, beside CudaApi. Communicators are
// non-blocking: a call is on its stream once `state` says 0.
#pragma once

#include <cstdint>

#include "runtime/tensor/dtype.h"

namespace omni {

inline constexpr int64_t kNcclIdBytes = 128;
enum class NcclReduction : int32_t { kSum, kMax, kMin };

// Functions that return an int32_t return 0, or below 0 what `describe` has words for.
struct NcclApi {
  const char* (*describe)(int32_t error);
  int32_t (*new_id)(void* id);  // kNcclIdBytes
  // All ranks of the group, with the id that one of them made.
  int32_t (*init)(void** comm, int32_t size, const void* id, int32_t rank);
  int32_t (*state)(void* comm);  // 0: fine; 1: something is under way; below 0: it has failed
  void (*abort)(void* comm);    // ends what is under way, and frees; from any thread, one at a time
  void (*destroy)(void* comm);  // of which nothing is under way

  int32_t (*all_reduce)(const void* in, void* out, int64_t count, DType dtype, NcclReduction op,
                        void* comm, void* stream);
  int32_t (*reduce)(const void* in, void* out, int64_t count, DType dtype, NcclReduction op,
                    int32_t root, void* comm, void* stream);
  int32_t (*reduce_scatter)(const void* in, void* out, int64_t count_each, DType dtype,
                            NcclReduction op, void* comm, void* stream);
  int32_t (*all_gather)(const void* in, void* out, int64_t count_each, DType dtype, void* comm,
                        void* stream);
  int32_t (*broadcast)(const void* in, void* out, int64_t count, DType dtype, int32_t root,
                       void* comm, void* stream);
  int32_t (*send)(const void* data, int64_t count, DType dtype, int32_t to, void* comm,
                  void* stream);
  int32_t (*recv)(void* data, int64_t count, DType dtype, int32_t from, void* comm, void* stream);
  int32_t (*group_begin)();
  int32_t (*group_end)();
};

}  // namespace omni
