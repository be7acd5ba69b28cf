#include "runtime/comm/call.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace omni::comm {
namespace {

absl::string_view Name(ReduceOp op) {
  switch (op) {
    case ReduceOp::kSum:
      return "sum";
    case ReduceOp::kMax:
      return "max";
    case ReduceOp::kMin:
      return "min";
  }
  return "?";
}

}  // namespace

absl::string_view Name(Verb verb) {
  switch (verb) {
    case Verb::kAllReduce:
      return "all_reduce";
    case Verb::kReduceScatter:
      return "reduce_scatter";
    case Verb::kAllGather:
      return "all_gather";
    case Verb::kAllToAll:
      return "all_to_all";
    case Verb::kBroadcast:
      return "broadcast";
    case Verb::kBarrier:
      return "barrier";
    case Verb::kSplit:
      return "split";
    case Verb::kMessage:
      return "send/recv";
  }
  return "?";
}

std::string HumanBytes(int64_t bytes) {
  if (bytes < 1024) return absl::StrCat(bytes, " B");
  if (bytes < 1024 * 1024) return absl::StrFormat("%.1f KiB", bytes / 1024.0);
  if (bytes < int64_t{1024} * 1024 * 1024) return absl::StrFormat("%.1f MiB", bytes / 1048576.0);
  return absl::StrFormat("%.1f GiB", bytes / 1073741824.0);
}

std::string Describe(const CallHeader& header) {
  std::string text(Name(header.verb));
  if (header.verb == Verb::kBarrier || header.verb == Verb::kSplit) return text;
  if (header.verb == Verb::kAllReduce || header.verb == Verb::kReduceScatter) {
    absl::StrAppend(&text, " ", Name(header.op));
  }
  absl::StrAppend(&text, " ", omni::Name(header.dtype), " ", HumanBytes(header.bytes));
  if (header.root >= 0) absl::StrAppend(&text, " root ", header.root);
  return text;
}

uint64_t Digest(absl::Span<const int64_t> values, uint64_t seed) {
  uint64_t hash = seed;
  for (const int64_t value : values) {
    for (int shift = 0; shift < 64; shift += 8) {
      hash = (hash ^ (static_cast<uint64_t>(value) >> shift & 0xff)) * 0x100000001b3u;
    }
  }
  return hash;
}

}  // namespace omni::comm
