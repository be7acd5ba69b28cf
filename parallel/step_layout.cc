#include "parallel/step_layout.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace omni::parallel {

int64_t StepLayout::tokens() const {
  int64_t sum = 0;
  for (const Microbatch& microbatch : microbatches) sum += microbatch.tokens;
  return sum;
}

int64_t StepLayout::loss_tokens() const {
  int64_t sum = 0;
  for (const Microbatch& microbatch : microbatches) sum += microbatch.loss_tokens;
  return sum;
}

int64_t StepLayout::input_rows(int32_t encoder, int32_t rank) const {
  int64_t sum = 0;
  for (const Item& item : items) {
    if (item.encoder == encoder && item.encoder_rank == rank) sum += item.input_rows;
  }
  return sum;
}

bool StepLayout::is_empty(int32_t encoder) const {
  for (const Item& item : items) {
    if (item.encoder == encoder && item.input_rows > 0) return false;
  }
  return true;
}

uint64_t StepLayout::Digest() const {
  // One flat run of integers; every list is preceded by its length.
  std::vector<int64_t> words = {step, num_replicas, num_microbatches,
                                static_cast<int64_t>(encoders.size())};
  for (const std::string& name : encoders) {
    words.push_back(static_cast<int64_t>(XXH3_64bits(name.data(), name.size())));
  }
  words.push_back(static_cast<int64_t>(microbatches.size()));
  for (const Microbatch& m : microbatches) words.insert(words.end(), {m.tokens, m.loss_tokens});
  words.push_back(static_cast<int64_t>(items.size()));
  for (const Item& i : items) {
    words.insert(words.end(), {i.encoder, i.encoder_rank, i.shard, i.input_rows, i.output_rows});
  }
  words.push_back(static_cast<int64_t>(routes.size()));
  for (const Route& r : routes) {
    words.insert(words.end(),
                 {r.item, r.replica, r.microbatch, r.first_row, r.num_rows, r.position});
  }
  return XXH3_64bits(words.data(), words.size() * sizeof(int64_t));
}

}  // namespace omni::parallel
