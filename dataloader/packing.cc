#include "dataloader/packing.h"

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>
#include <queue>
#include <tuple>
#include <utility>

#include "runtime/base/check.h"

namespace omni::dataloader {
namespace {

using Sequences = std::vector<std::vector<int32_t>>;

Sequences BestFit(absl::Span<const int64_t> tokens, absl::Span<const int32_t> order,
                  int64_t capacity) {
  Sequences sequences;
  std::multimap<int64_t, int32_t> room;  // free tokens -> sequence
  for (const int32_t sample : order) {
    int32_t sequence;
    int64_t free = capacity;
    if (const auto fit = room.lower_bound(tokens[sample]); fit != room.end()) {
      std::tie(free, sequence) = *fit;
      room.erase(fit);
    } else {
      sequence = static_cast<int32_t>(sequences.size());
      sequences.emplace_back();
    }
    sequences[sequence].push_back(sample);
    room.emplace(free - tokens[sample], sequence);
  }
  return sequences;
}

// Empty if some sample does not fit.
Sequences Spread(absl::Span<const int64_t> tokens, absl::Span<const int32_t> order,
                 int64_t capacity, size_t num_sequences) {
  Sequences sequences(num_sequences);
  using Load = std::pair<int64_t, int32_t>;  // tokens, sequence: ties go to the lower sequence
  std::priority_queue<Load, std::vector<Load>, std::greater<Load>> emptiest;
  for (size_t i = 0; i < num_sequences; ++i) emptiest.emplace(0, static_cast<int32_t>(i));
  for (const int32_t sample : order) {
    const auto [load, sequence] = emptiest.top();
    if (load + tokens[sample] > capacity) return {};
    emptiest.pop();
    sequences[sequence].push_back(sample);
    emptiest.emplace(load + tokens[sample], sequence);
  }
  return sequences;
}

}  // namespace

Sequences PackSequences(absl::Span<const int64_t> tokens, int64_t capacity) {
  std::vector<int32_t> order(tokens.size());
  std::iota(order.begin(), order.end(), 0);
  for (const int64_t n : tokens) OMNI_CHECK(n >= 1 && n <= capacity);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return tokens[a] > tokens[b]; });
  Sequences best = BestFit(tokens, order, capacity);
  Sequences spread = Spread(tokens, order, capacity, best.size());
  Sequences& result = spread.empty() ? best : spread;
  for (auto& sequence : result) std::sort(sequence.begin(), sequence.end());
  return std::move(result);
}

}  // namespace omni::dataloader
