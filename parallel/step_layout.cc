#include "parallel/step_layout.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <numeric>

namespace omni::parallel {
namespace {

MediaItem RowsOf(const StepLayout::Item& item) {
  return {.num_input_rows = item.input_rows, .num_output_rows = item.output_rows};
}

}  // namespace

int64_t StepLayout::Microbatch::tokens() const {
  return std::accumulate(documents.begin(), documents.end(), int64_t{0});
}

std::vector<int32_t> StepLayout::Microbatch::cu_seqlens() const {
  std::vector<int32_t> sums = {0};
  for (const int32_t length : documents) sums.push_back(sums.back() + length);
  return sums;
}

int64_t StepLayout::tokens() const {
  int64_t sum = 0;
  for (const Microbatch& microbatch : microbatches) sum += microbatch.tokens();
  return sum;
}

int64_t StepLayout::loss_tokens() const {
  int64_t sum = 0;
  for (const Microbatch& microbatch : microbatches) sum += microbatch.loss_tokens;
  return sum;
}

UnitRange StepLayout::InputRows(const Item& item, int32_t rank) const {
  if (!item.IsEncodedBy(rank)) return {};
  if (item.num_shards == 1) return {0, item.input_rows};
  return encoders[item.encoder].unit.InputRows(RowsOf(item), rank - item.encoder_rank,
                                               item.num_shards);
}

UnitRange StepLayout::OutputRows(const Item& item, int32_t rank) const {
  if (!item.IsEncodedBy(rank)) return {};
  if (item.num_shards == 1) return {0, item.output_rows};
  return encoders[item.encoder].unit.OutputRows(RowsOf(item), rank - item.encoder_rank,
                                                item.num_shards);
}

int64_t StepLayout::input_rows(int32_t encoder, int32_t rank) const {
  int64_t sum = 0;
  for (const Item& item : items) {
    if (item.encoder == encoder) sum += InputRows(item, rank).size();
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
  std::vector<int64_t> words = {step, num_replicas, num_microbatches, group_size,
                                static_cast<int64_t>(encoders.size())};
  for (const Encoder& encoder : encoders) {
    words.insert(words.end(),
                 {static_cast<int64_t>(XXH3_64bits(encoder.name.data(), encoder.name.size())),
                  encoder.unit.input_rows, encoder.unit.output_rows, encoder.unit.rows_before,
                  encoder.unit.rows_after});
  }
  words.push_back(static_cast<int64_t>(microbatches.size()));
  for (const Microbatch& m : microbatches) {
    words.insert(words.end(), {m.loss_tokens, static_cast<int64_t>(m.documents.size())});
    words.insert(words.end(), m.documents.begin(), m.documents.end());
  }
  words.push_back(static_cast<int64_t>(items.size()));
  for (const Item& i : items) {
    words.insert(words.end(), {i.encoder, i.group, i.replica, i.microbatch, i.lane, i.sample,
                               i.encoder_rank, i.num_shards, i.input_rows, i.output_rows});
  }
  words.push_back(static_cast<int64_t>(routes.size()));
  for (const Route& r : routes) {
    words.insert(words.end(), {r.item, r.first_row, r.num_rows, r.position});
  }
  return XXH3_64bits(words.data(), words.size() * sizeof(int64_t));
}

}  // namespace omni::parallel
