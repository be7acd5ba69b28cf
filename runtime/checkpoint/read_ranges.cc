#include "runtime/checkpoint/read_ranges.h"

#include <algorithm>
#include <atomic>
#include <thread>

namespace omni {
namespace {

constexpr int64_t kPieceElements = int64_t{1} << 20;
// More than cores: threads wait for the disk or the network as much as they convert.
constexpr unsigned kMinThreads = 4, kMaxThreads = 16;

std::vector<TensorRange> Cut(absl::Span<const TensorRange> ranges) {
  std::vector<TensorRange> pieces;
  for (const TensorRange& range : ranges) {
    const int64_t count = range.data.num_elements();
    for (int64_t done = 0; done < count; done += kPieceElements) {
      const int64_t now = std::min(kPieceElements, count - done);
      TensorRange piece = range;
      piece.begin += done;
      piece.data = range.data.Reshape({count}).Rows(done, now);
      pieces.push_back(std::move(piece));
    }
  }
  return pieces;
}

}  // namespace

absl::Status ReadRanges(const TensorSource& source, absl::Span<const TensorRange> ranges,
                        const std::function<void()>& tick) {
  const std::vector<TensorRange> pieces = Cut(ranges);
  std::vector<absl::Status> statuses(pieces.size());
  std::atomic<size_t> next{0};
  const auto read = [&] {
    for (size_t i = next.fetch_add(1); i < pieces.size(); i = next.fetch_add(1)) {
      statuses[i] = source.Read(pieces[i]);
      if (tick) tick();
    }
  };
  const unsigned num_threads =
      std::clamp(std::thread::hardware_concurrency(), kMinThreads, kMaxThreads);
  std::vector<std::thread> threads;
  for (unsigned i = 1; i < num_threads; ++i) threads.emplace_back(read);
  read();
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& status : statuses) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace omni
