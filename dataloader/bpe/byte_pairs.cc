#include "dataloader/bpe/byte_pairs.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <queue>

#include "runtime/base/check.h"

namespace omni::dataloader {
namespace {

constexpr size_t kShortWord = 48;
constexpr size_t kNumSlots = 1 << 14;  // 2 MiB

uint64_t KeyOf(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

// Two cache lines. `busy` is taken by whoever reads or writes; who finds it taken goes without.
struct alignas(128) BytePairs::Slot {
  static constexpr size_t kMaxBytes = 43, kMaxIds = 20;

  std::atomic<bool> busy = false;
  uint8_t num_bytes = 0, num_ids = 0;
  char bytes[kMaxBytes] = {};
  int32_t ids[kMaxIds] = {};
};

BytePairs::BytePairs(BytePairOptions options)
    : byte_ids_(std::move(options.byte_ids)),
      whole_words_(std::move(options.whole_words)),
      slots_(std::make_unique<Slot[]>(kNumSlots)) {
  static_assert(sizeof(Slot) == 128);
  OMNI_CHECK_EQ(byte_ids_.size(), 256u);
  steps_.reserve(options.merges.size());
  for (size_t i = 0; i < options.merges.size(); ++i) {
    const Merge& merge = options.merges[i];
    steps_[KeyOf(merge.left, merge.right)] = {static_cast<int32_t>(i), merge.merged};
  }
}

BytePairs::~BytePairs() = default;

void BytePairs::Append(absl::string_view word, std::vector<int32_t>* ids) const {
  if (word.size() <= 1) {
    if (!word.empty()) AppendUncached(word, ids);
    return;
  }
  if (word.size() > Slot::kMaxBytes) return AppendUncached(word, ids);
  Slot& slot = slots_[XXH3_64bits(word.data(), word.size()) % kNumSlots];
  if (slot.busy.exchange(true, std::memory_order_acquire)) return AppendUncached(word, ids);
  if (slot.num_bytes == word.size() && std::memcmp(slot.bytes, word.data(), word.size()) == 0) {
    ids->insert(ids->end(), slot.ids, slot.ids + slot.num_ids);
  } else {
    const size_t before = ids->size();
    AppendUncached(word, ids);
    const size_t count = ids->size() - before;
    if (count <= Slot::kMaxIds) {
      slot.num_bytes = static_cast<uint8_t>(word.size());
      slot.num_ids = static_cast<uint8_t>(count);
      std::memcpy(slot.bytes, word.data(), word.size());
      std::copy(ids->begin() + static_cast<int64_t>(before), ids->end(), slot.ids);
    }
  }
  slot.busy.store(false, std::memory_order_release);
}

void BytePairs::AppendUncached(absl::string_view word, std::vector<int32_t>* ids) const {
  if (!whole_words_.empty()) {
    if (const auto it = whole_words_.find(word); it != whole_words_.end()) {
      ids->push_back(it->second);
      return;
    }
  }
  if (word.size() <= kShortWord) {
    MergeByScanning(word, ids);
  } else {
    MergeByHeap(word, ids);
  }
}

const BytePairs::Step* BytePairs::Find(int32_t left, int32_t right) const {
  const auto it = steps_.find(KeyOf(left, right));
  return it == steps_.end() ? nullptr : &it->second;
}

void BytePairs::MergeByScanning(absl::string_view word, std::vector<int32_t>* ids) const {
  constexpr Step kNone{std::numeric_limits<int32_t>::max(), -1};
  int32_t id[kShortWord];
  Step step[kShortWord];  // of id[i] with id[i + 1]
  size_t count = word.size();
  const auto update = [&](size_t i) {
    const Step* found = i + 1 < count ? Find(id[i], id[i + 1]) : nullptr;
    step[i] = found == nullptr ? kNone : *found;
  };
  for (size_t i = 0; i < count; ++i) id[i] = byte_ids_[static_cast<unsigned char>(word[i])];
  for (size_t i = 0; i < count; ++i) update(i);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) {
      if (step[i].rank < step[best].rank) best = i;
    }
    if (step[best].merged < 0) break;
    id[best] = step[best].merged;
    std::copy(id + best + 2, id + count, id + best + 1);
    std::copy(step + best + 2, step + count, step + best + 1);
    --count;
    update(best);
    if (best > 0) update(best - 1);
  }
  ids->insert(ids->end(), id, id + count);
}

void BytePairs::MergeByHeap(absl::string_view word, std::vector<int32_t>* ids) const {
  struct Symbol {
    int32_t id;  // -1: merged into the one before
    int64_t previous, next;
  };
  struct Candidate {
    int32_t rank;
    int64_t at;
    int32_t left, right, merged;  // of symbols[at] and its next one when it was found
    // std::priority_queue has the greatest first.
    bool operator<(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : at > other.at;
    }
  };
  const auto count = static_cast<int64_t>(word.size());
  std::vector<Symbol> symbols(word.size());
  for (int64_t i = 0; i < count; ++i) {
    symbols[i] = {byte_ids_[static_cast<unsigned char>(word[i])], i - 1,
                  i + 1 < count ? i + 1 : -1};
  }
  std::priority_queue<Candidate> candidates;
  const auto consider = [&](int64_t at) {
    if (at < 0 || symbols[at].next < 0) return;
    const int32_t left = symbols[at].id, right = symbols[symbols[at].next].id;
    if (const Step* step = Find(left, right); step != nullptr) {
      candidates.push({step->rank, at, left, right, step->merged});
    }
  };
  for (int64_t i = 0; i < count; ++i) consider(i);
  while (!candidates.empty()) {
    const Candidate best = candidates.top();
    candidates.pop();
    Symbol& symbol = symbols[best.at];
    if (symbol.id != best.left || symbol.next < 0 || symbols[symbol.next].id != best.right) {
      continue;  // one of them has been merged since
    }
    symbol.id = best.merged;
    symbols[symbol.next].id = -1;
    symbol.next = symbols[symbol.next].next;
    if (symbol.next >= 0) symbols[symbol.next].previous = best.at;
    consider(best.at);
    consider(symbol.previous);
  }
  for (int64_t i = 0; i >= 0; i = symbols[i].next) ids->push_back(symbols[i].id);
}

}  // namespace omni::dataloader
