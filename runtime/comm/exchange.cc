#include "runtime/comm/exchange.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/comm/reduce.h"

namespace omni::comm {
namespace {

constexpr uint8_t kZeros[8] = {};
constexpr size_t kMaxPieces = 8;

int64_t PaddingOf(int64_t bytes) { return -bytes & 7; }

absl::Status Mismatch(int32_t rank, const CallHeader& mine, int32_t peer,
                      const CallHeader& theirs) {
  if (mine.magic != theirs.magic) {
    return absl::InternalError(absl::StrCat("what rank ", peer, " sends to rank ", rank,
                                            " is not a call, during ", Describe(mine), " #",
                                            mine.sequence));
  }
  std::string detail;
  if (Describe(mine) == Describe(theirs) && mine.sequence == theirs.sequence) {
    detail = mine.verb == Verb::kSplit ? " (other ranks or channel)" : " (other counts)";
  }
  return absl::InternalError(absl::StrCat(
      "calls differ between ranks: rank ", rank, " makes ", Describe(mine), " #", mine.sequence,
      ", rank ", peer, " makes ", Describe(theirs), " #", theirs.sequence, detail));
}

}  // namespace

Exchange::Exchange(Transport& transport, int32_t rank, int32_t size)
    : transport_(transport),
      rank_(rank),
      size_(size),
      sides_(size),
      missing_(size),
      lacking_(size) {}

void Exchange::Send(int32_t to, const void* data, int64_t bytes) {
  if (bytes == 0) return;
  auto& out = sides_[to].out;
  out.push_back({static_cast<const uint8_t*>(data), bytes});
  ++pending_sends_;
  if (const int64_t padding = PaddingOf(bytes); padding > 0) {
    out.push_back({kZeros, padding});
    ++pending_sends_;
  }
}

void Exchange::Receive(int32_t from, void* data, int64_t bytes) {
  if (bytes == 0) return;
  auto& in = sides_[from].in;
  in.push_back({.data = static_cast<uint8_t*>(data), .bytes = bytes});
  ++pending_receives_;
  if (const int64_t padding = PaddingOf(bytes); padding > 0) {
    in.push_back({.data = sink_, .bytes = padding});
    ++pending_receives_;
  }
}

void Exchange::SendHeader(int32_t to, const CallHeader& header) {
  headers_.push_back(header);
  Send(to, &headers_.back(), sizeof(CallHeader));
}

void Exchange::ExpectHeader(int32_t from, const CallHeader& header) {
  headers_.push_back(header);
  const CallHeader* expected = &headers_.back();
  headers_.emplace_back();
  sides_[from].in.push_back({.data = reinterpret_cast<uint8_t*>(&headers_.back()),
                             .bytes = sizeof(CallHeader),
                             .expected = expected});
  ++pending_receives_;
}

void Exchange::Reduce(DType dtype, ReduceOp op, const void* own, void* out, int64_t num_elements) {
  OMNI_CHECK_EQ(reduce_left_, 0);
  reduce_dtype_ = dtype;
  reduce_op_ = op;
  reduce_own_ = static_cast<const uint8_t*>(own);
  reduce_out_ = static_cast<uint8_t*>(out);
  reduce_left_ = num_elements;
  reduce_padding_ = PaddingOf(num_elements * SizeOf(dtype));
  sources_.resize(size_);
}

absl::StatusOr<bool> Exchange::Step() {
  transport_.BeginPass();
  bool progress = false;
  for (int32_t step = 1; step < size_; ++step) {
    // Each rank begins with its next neighbour, so that not all crowd around rank 0.
    const int32_t to = (rank_ + step) % size_;
    progress |= StepSends(to);
    const int32_t from = (rank_ + size_ - step) % size_;
    absl::StatusOr<bool> received = StepReceives(from);
    if (!received.ok()) {
      transport_.EndPass();
      return received;
    }
    progress |= *received;
  }
  while (StepReduce()) progress = true;
  transport_.EndPass();
  return progress;
}

bool Exchange::StepSends(int32_t peer) {
  auto& out = sides_[peer].out;
  bool progress = false;
  while (!out.empty()) {
    Piece pieces[kMaxPieces];
    const size_t count = std::min(out.size(), kMaxPieces);
    std::copy_n(out.begin(), count, pieces);
    int64_t sent = transport_.TrySend(peer, absl::MakeConstSpan(pieces, count));
    if (sent == 0) break;
    progress = true;
    bytes_moved_ += sent;
    while (sent > 0) {
      Piece& front = out.front();
      const int64_t part = std::min(sent, front.bytes);
      front.data += part;
      front.bytes -= part;
      sent -= part;
      if (front.bytes == 0) {
        out.pop_front();
        --pending_sends_;
      }
    }
  }
  return progress;
}

absl::StatusOr<bool> Exchange::StepReceives(int32_t peer) {
  auto& in = sides_[peer].in;
  bool progress = false;
  while (!in.empty()) {
    In& front = in.front();
    const int64_t got = transport_.TryReceive(peer, front.data, front.bytes);
    if (got == 0) break;
    progress = true;
    bytes_moved_ += got;
    front.data += got;
    front.bytes -= got;
    if (front.bytes > 0) continue;
    if (front.expected != nullptr) {
      const auto* theirs = reinterpret_cast<const CallHeader*>(front.data - sizeof(CallHeader));
      if (!(*theirs == *front.expected)) return Mismatch(rank_, *front.expected, peer, *theirs);
    }
    in.pop_front();
    --pending_receives_;
  }
  return progress;
}

bool Exchange::StepReduce() {
  if (reduce_left_ == 0) return false;
  const int64_t element_bytes = SizeOf(reduce_dtype_);
  int64_t count = reduce_left_;
  for (int32_t peer = 0; peer < size_; ++peer) {
    if (peer == rank_) {
      sources_[peer] = reduce_own_;
      continue;
    }
    int64_t available = 0;
    if (sides_[peer].in.empty()) {
      const absl::Span<const uint8_t> arrived = transport_.Peek(peer);
      available = static_cast<int64_t>(arrived.size()) / element_bytes;
      sources_[peer] = arrived.data();
    }
    lacking_[peer] = available == 0;
    count = std::min(count, available);
  }
  if (count == 0) return false;
  comm::Reduce(reduce_dtype_, reduce_op_, sources_, reduce_out_, count);
  const int64_t bytes = count * element_bytes;
  for (int32_t peer = 0; peer < size_; ++peer) {
    if (peer != rank_) transport_.Consume(peer, bytes);
  }
  bytes_moved_ += bytes;
  reduce_own_ += bytes;
  reduce_out_ += bytes;
  reduce_left_ -= count;
  if (reduce_left_ == 0 && reduce_padding_ > 0) {
    for (int32_t peer = 0; peer < size_; ++peer) {
      if (peer == rank_) continue;
      sides_[peer].in.push_back({.data = sink_, .bytes = reduce_padding_});
      ++pending_receives_;
    }
  }
  return true;
}

absl::Span<const Interest> Exchange::Missing() {
  for (int32_t peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    const bool reduce_waits = reduce_left_ > 0 && lacking_[peer];
    missing_[peer] = {.receive = !sides_[peer].in.empty() || reduce_waits,
                      .send = !sides_[peer].out.empty()};
  }
  return missing_;
}

}  // namespace omni::comm
