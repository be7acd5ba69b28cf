#include "runtime/comm/collectives.h"

#include <cstring>
#include <deque>
#include <numeric>

#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/comm/reduce.h"

namespace omni::comm {
namespace {

// Up to here one exchange of everything is faster than two of slices.
constexpr int64_t kSmallBytes = 8 << 10;

// Begin of each rank's slice of n elements, and the end.
std::vector<int64_t> EvenSlices(int64_t num_elements, int32_t size) {
  std::vector<int64_t> begins(size + 1);
  for (int32_t r = 0; r <= size; ++r) begins[r] = num_elements * r / size;
  return begins;
}

std::vector<int64_t> BeginsOf(const std::vector<int64_t>& counts) {
  std::vector<int64_t> begins(counts.size() + 1, 0);
  std::partial_sum(counts.begin(), counts.end(), begins.begin() + 1);
  return begins;
}

uint8_t* At(const TensorView& view, int64_t element) {
  return static_cast<uint8_t*>(view.data) + element * SizeOf(view.dtype);
}

void CopyIfElsewhere(void* to, const void* from, int64_t bytes) {
  if (bytes > 0 && to != from) std::memmove(to, from, bytes);
}

absl::Status RunToEnd(Exchange& exchange, const Group& group) {
  return group.drive(exchange, [&] { return exchange.done(); });
}

void HeadersToAll(Exchange& exchange, const CallHeader& header, const Group& group) {
  for (int32_t peer = 0; peer < group.size; ++peer) {
    if (peer == group.rank) continue;
    exchange.SendHeader(peer, header);
    exchange.ExpectHeader(peer, header);
  }
}

// Everybody's whole data to everybody; the result is put together aside, because what a slow
// peer has yet to take must stay as it is.
absl::Status SmallAllReduce(const Call& call, const Group& group, Exchange& exchange) {
  const TensorView& data = call.output;
  std::vector<uint64_t> result((data.num_bytes() + 7) / 8);
  for (int32_t peer = 0; peer < group.size; ++peer) {
    if (peer != group.rank) exchange.Send(peer, data.data, data.num_bytes());
  }
  exchange.Reduce(data.dtype, call.op, data.data, result.data(), data.num_elements());
  OMNI_RETURN_IF_ERROR(RunToEnd(exchange, group));
  std::memcpy(data.data, result.data(), data.num_bytes());
  return absl::OkStatus();
}

// Every rank reduces one slice and hands it to all. A slice can arrive only after its rank has
// had this rank's part of it, so `data` may be overwritten as results come.
absl::Status AllReduce(const Call& call, const Group& group, Exchange& exchange) {
  const TensorView& data = call.output;
  if (data.num_elements() == 0) return RunToEnd(exchange, group);
  if (data.num_bytes() <= kSmallBytes) return SmallAllReduce(call, group, exchange);
  const int64_t element_bytes = SizeOf(data.dtype);
  const std::vector<int64_t> begins = EvenSlices(data.num_elements(), group.size);
  const auto slice_bytes = [&](int32_t r) { return (begins[r + 1] - begins[r]) * element_bytes; };
  uint8_t* own = At(data, begins[group.rank]);
  for (int32_t peer = 0; peer < group.size; ++peer) {
    if (peer != group.rank) exchange.Send(peer, At(data, begins[peer]), slice_bytes(peer));
  }
  exchange.Reduce(data.dtype, call.op, own, own, begins[group.rank + 1] - begins[group.rank]);
  OMNI_RETURN_IF_ERROR(group.drive(exchange, [&] { return exchange.receives_done(); }));
  for (int32_t peer = 0; peer < group.size; ++peer) {
    if (peer == group.rank) continue;
    exchange.Send(peer, own, slice_bytes(group.rank));
    exchange.Receive(peer, At(data, begins[peer]), slice_bytes(peer));
  }
  return RunToEnd(exchange, group);
}

absl::Status ReduceScatter(const Call& call, const Group& group, Exchange& exchange) {
  const std::vector<int64_t> begins = BeginsOf(call.counts);
  for (int32_t peer = 0; peer < group.size; ++peer) {
    if (peer == group.rank) continue;
    exchange.Send(peer, At(call.input, begins[peer]), call.counts[peer] * SizeOf(call.input.dtype));
  }
  exchange.Reduce(call.input.dtype, call.op, At(call.input, begins[group.rank]), call.output.data,
                  call.counts[group.rank]);
  return RunToEnd(exchange, group);
}

absl::Status AllGather(const Call& call, const Group& group, Exchange& exchange) {
  const std::vector<int64_t> begins = BeginsOf(call.counts);
  const int64_t element_bytes = SizeOf(call.output.dtype);
  const int64_t own_bytes = call.counts[group.rank] * element_bytes;
  CopyIfElsewhere(At(call.output, begins[group.rank]), call.input.data, own_bytes);
  for (int32_t peer = 0; peer < group.size; ++peer) {
    if (peer == group.rank) continue;
    exchange.Send(peer, At(call.output, begins[group.rank]), own_bytes);
    exchange.Receive(peer, At(call.output, begins[peer]), call.counts[peer] * element_bytes);
  }
  return RunToEnd(exchange, group);
}

absl::Status AllToAll(const Call& call, const Group& group, Exchange& exchange) {
  const std::vector<int64_t> from = BeginsOf(call.counts), to = BeginsOf(call.receive_counts);
  const int64_t element_bytes = SizeOf(call.output.dtype);
  CallHeader header = call.header();
  for (int32_t peer = 0; peer < group.size; ++peer) {
    const int64_t send_bytes = call.counts[peer] * element_bytes;
    const int64_t receive_bytes = call.receive_counts[peer] * element_bytes;
    if (peer == group.rank) {
      CopyIfElsewhere(At(call.output, to[peer]), At(call.input, from[peer]), send_bytes);
      continue;
    }
    header.bytes = send_bytes;
    exchange.SendHeader(peer, header);
    header.bytes = receive_bytes;
    exchange.ExpectHeader(peer, header);
    exchange.Send(peer, At(call.input, from[peer]), send_bytes);
    exchange.Receive(peer, At(call.output, to[peer]), receive_bytes);
  }
  return RunToEnd(exchange, group);
}

absl::Status Broadcast(const Call& call, const Group& group, Exchange& exchange) {
  const TensorView& data = call.output;
  if (group.rank != call.peer) {
    exchange.ExpectHeader(call.peer, call.header());
    exchange.Receive(call.peer, data.data, data.num_bytes());
    return RunToEnd(exchange, group);
  }
  for (int32_t peer = 0; peer < group.size; ++peer) {
    if (peer == group.rank) continue;
    exchange.SendHeader(peer, call.header());
    exchange.Send(peer, data.data, data.num_bytes());
  }
  return RunToEnd(exchange, group);
}

}  // namespace

CallHeader Call::header() const {
  CallHeader header;
  const TensorView& whole = verb == Verb::kReduceScatter ? input : output;
  header.verb = verb;
  header.dtype = whole.dtype;
  header.op = op;
  header.sequence = sequence;
  header.bytes = whole.num_dims == 0 && whole.empty() ? 0 : whole.num_bytes();
  header.digest = digest;
  if (verb == Verb::kReduceScatter || verb == Verb::kAllGather) header.digest = Digest(counts);
  if (verb == Verb::kBroadcast) header.root = peer;
  return header;
}

absl::Status RunCollective(const Call& call, const Group& group) {
  Exchange exchange(group.transport, group.rank, group.size);
  if (call.verb == Verb::kAllToAll) return AllToAll(call, group, exchange);
  if (call.verb == Verb::kBroadcast) return Broadcast(call, group, exchange);
  HeadersToAll(exchange, call.header(), group);
  switch (call.verb) {
    case Verb::kAllReduce:
      return AllReduce(call, group, exchange);
    case Verb::kReduceScatter:
      return ReduceScatter(call, group, exchange);
    case Verb::kAllGather:
      return AllGather(call, group, exchange);
    default:
      return RunToEnd(exchange, group);
  }
}

absl::Status RunMessages(absl::Span<const Call> messages, absl::Span<int64_t> sent,
                         absl::Span<int64_t> received, const Group& group) {
  Exchange exchange(group.transport, group.rank, group.size);
  std::deque<const Call*> to_self;
  for (const Call& message : messages) {
    if (message.peer == group.rank) {
      if (message.sends) to_self.push_back(&message);
      continue;
    }
    CallHeader header = message.header();
    if (message.sends) {
      header.sequence = ++sent[message.peer];
      exchange.SendHeader(message.peer, header);
      exchange.Send(message.peer, message.output.data, message.output.num_bytes());
    } else {
      header.sequence = ++received[message.peer];
      exchange.ExpectHeader(message.peer, header);
      exchange.Receive(message.peer, message.output.data, message.output.num_bytes());
    }
  }
  for (const Call& message : messages) {
    if (message.peer != group.rank || message.sends) continue;
    if (to_self.empty() || to_self.front()->output.num_bytes() != message.output.num_bytes()) {
      return absl::InternalError(absl::StrCat("rank ", group.rank, " receives ",
                                              HumanBytes(message.output.num_bytes()),
                                              " from itself that it does not send"));
    }
    CopyIfElsewhere(message.output.data, to_self.front()->output.data, message.output.num_bytes());
    to_self.pop_front();
  }
  return RunToEnd(exchange, group);
}

}  // namespace omni::comm
