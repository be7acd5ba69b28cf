#include "runtime/device/cuda/nccl.h"

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <cstring>

namespace omni::cuda {
namespace {

static_assert(kNcclIdBytes == NCCL_UNIQUE_ID_BYTES);

int32_t Code(ncclResult_t result) {
  return result == ncclInProgress ? 0 : -static_cast<int32_t>(result);
}
ncclComm_t Comm(void* comm) { return static_cast<ncclComm_t>(comm); }
cudaStream_t Stream(void* stream) { return static_cast<cudaStream_t>(stream); }
size_t Count(int64_t count) { return static_cast<size_t>(count); }

ncclDataType_t Type(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return ncclFloat64;
    case DType::kFloat32:
      return ncclFloat32;
    case DType::kBFloat16:
      return ncclBfloat16;
    case DType::kInt32:
      return ncclInt32;
    case DType::kInt64:
      return ncclInt64;
    case DType::kUInt8:
      return ncclUint8;
  }
  return ncclUint8;
}
ncclRedOp_t Op(NcclReduction op) {
  return op == NcclReduction::kSum ? ncclSum : op == NcclReduction::kMax ? ncclMax : ncclMin;
}

constexpr NcclApi Functions() {
  return {
      .describe =
          [](int32_t error) { return ncclGetErrorString(static_cast<ncclResult_t>(-error)); },
      .new_id =
          [](void* id) {
            ncclUniqueId made;
            const ncclResult_t result = ncclGetUniqueId(&made);
            std::memcpy(id, &made, sizeof(made));
            return Code(result);
          },
      .init =
          [](void** comm, int32_t size, const void* id, int32_t rank) {
            ncclUniqueId given;
            std::memcpy(&given, id, sizeof(given));
            ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
            config.blocking = 0;
            return Code(ncclCommInitRankConfig(reinterpret_cast<ncclComm_t*>(comm), size, given,
                                               rank, &config));
          },
      .state =
          [](void* comm) {
            ncclResult_t state;
            const ncclResult_t result = ncclCommGetAsyncError(Comm(comm), &state);
            if (result != ncclSuccess) return Code(result);
            return state == ncclInProgress ? int32_t{1} : Code(state);
          },
      .abort = [](void* comm) { (void)ncclCommAbort(Comm(comm)); },
      .destroy = [](void* comm) { (void)ncclCommDestroy(Comm(comm)); },
      .all_reduce =
          [](const void* in, void* out, int64_t count, DType dtype, NcclReduction op, void* comm,
             void* stream) {
            return Code(ncclAllReduce(in, out, Count(count), Type(dtype), Op(op), Comm(comm),
                                      Stream(stream)));
          },
      .reduce =
          [](const void* in, void* out, int64_t count, DType dtype, NcclReduction op, int32_t root,
             void* comm, void* stream) {
            return Code(ncclReduce(in, out, Count(count), Type(dtype), Op(op), root, Comm(comm),
                                   Stream(stream)));
          },
      .reduce_scatter =
          [](const void* in, void* out, int64_t count, DType dtype, NcclReduction op, void* comm,
             void* stream) {
            return Code(ncclReduceScatter(in, out, Count(count), Type(dtype), Op(op), Comm(comm),
                                          Stream(stream)));
          },
      .all_gather =
          [](const void* in, void* out, int64_t count, DType dtype, void* comm, void* stream) {
            return Code(
                ncclAllGather(in, out, Count(count), Type(dtype), Comm(comm), Stream(stream)));
          },
      .broadcast =
          [](const void* in, void* out, int64_t count, DType dtype, int32_t root, void* comm,
             void* stream) {
            return Code(ncclBroadcast(in, out, Count(count), Type(dtype), root, Comm(comm),
                                      Stream(stream)));
          },
      .send =
          [](const void* data, int64_t count, DType dtype, int32_t to, void* comm, void* stream) {
            return Code(ncclSend(data, Count(count), Type(dtype), to, Comm(comm), Stream(stream)));
          },
      .recv =
          [](void* data, int64_t count, DType dtype, int32_t from, void* comm, void* stream) {
            return Code(
                ncclRecv(data, Count(count), Type(dtype), from, Comm(comm), Stream(stream)));
          },
      .group_begin = [] { return Code(ncclGroupStart()); },
      .group_end = [] { return Code(ncclGroupEnd()); },
  };
}

}  // namespace

const NcclApi* Nccl() {
  static constexpr NcclApi api = Functions();
  return &api;
}

}  // namespace omni::cuda
