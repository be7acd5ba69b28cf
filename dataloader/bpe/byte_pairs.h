// Byte pair encoding of one word: of all neighbours that have a merge, the two with the earliest
// merge in the list (the leftmost of equals) become one, until none have.
//
// Words up to kShortWord bytes do that by scanning, longer ones with a heap over a linked list, in
// O(n log n). Text repeats its words, so results are kept in a table of fixed size; the words of
// one slot replace each other.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"

namespace omni::dataloader {

struct Merge {
  int32_t left = 0, right = 0, merged = 0;  // ids
};

struct BytePairOptions {
  std::vector<int32_t> byte_ids;  // [256]: the id of each byte by itself
  std::vector<Merge> merges;      // earliest first; of two with the same sides the later one holds
  // Words that are one id whatever the merges say ("ignore_merges").
  absl::flat_hash_map<std::string, int32_t> whole_words;
};

// Threads may share one.
class BytePairs {
 public:
  explicit BytePairs(BytePairOptions options);
  ~BytePairs();

  // Appends to `ids`. `word` is any bytes.
  void Append(absl::string_view word, std::vector<int32_t>* ids) const;
  // The same without the table of earlier results.
  void AppendUncached(absl::string_view word, std::vector<int32_t>* ids) const;

 private:
  struct Slot;
  struct Step {
    int32_t rank = 0, merged = 0;
  };

  // Null if the two have no merge.
  const Step* Find(int32_t left, int32_t right) const;
  void MergeByScanning(absl::string_view word, std::vector<int32_t>* ids) const;
  void MergeByHeap(absl::string_view word, std::vector<int32_t>* ids) const;

  std::vector<int32_t> byte_ids_;
  absl::flat_hash_map<uint64_t, Step> steps_;  // by both sides
  absl::flat_hash_map<std::string, int32_t> whole_words_;
  const std::unique_ptr<Slot[]> slots_;
};

}  // namespace omni::dataloader
