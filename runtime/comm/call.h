// What ranks tell each other about a call before its data, so that calls which differ between
// ranks are found instead of being mixed up or hanging.
#pragma once

#include <cstdint>
#include <string>

#include "absl/types/span.h"
#include "runtime/comm/communicator.h"
#include "runtime/tensor/dtype.h"

namespace omni::comm {

enum class Verb : uint8_t {
  kAllReduce,
  kReduceScatter,
  kAllGather,
  kAllToAll,
  kBroadcast,
  kBarrier,
  kSplit,
  kMessage,  // a send and its receive
};

absl::string_view Name(Verb verb);

// Goes over the wire as it is: the ranks of a group run the same program on machines of one
// byte order.
struct CallHeader {
  uint32_t magic = 0x6c6c6163;  // "call"
  Verb verb = Verb::kBarrier;
  DType dtype = DType::kUInt8;
  ReduceOp op = ReduceOp::kSum;
  uint8_t reserved = 0;
  int64_t sequence = 0;  // of collectives in the group; of messages between the pair
  int64_t bytes = 0;     // of the whole, or from this sender to this receiver
  uint64_t digest = 0;   // of counts or rank lists that must agree
  int32_t root = -1;
  int32_t reserved2[7] = {};

  friend bool operator==(const CallHeader&, const CallHeader&) = default;
};
static_assert(sizeof(CallHeader) == 64);  // a multiple of 8

// "all_reduce sum fp32 4.0 MiB"
std::string Describe(const CallHeader& header);
std::string HumanBytes(int64_t bytes);  // "4.0 MiB"

// 64-bit FNV-1a over integers.
uint64_t Digest(absl::Span<const int64_t> values, uint64_t seed = 0xcbf29ce484222325u);

}  // namespace omni::comm
