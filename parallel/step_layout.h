// What one step's data is, in integers: which rank encodes which item, where its rows go, how
// many tokens each microbatch has, who is empty.
//
// Pure: every rank builds it from the same metadata, and a digest agreed one step ahead proves
// it. Resharding (reshard.h) follows the routes; collectives that would be empty everywhere are
// skipped by what it says.
//
//   replica 0, microbatch 0: a document of 7 tokens, its image (item 0) encoded by rank 2
//   items  {encoder 0, replica 0, microbatch 0, rank 2, 4 input rows, 1 output row}
//   routes {item 0, first_row 0, 1 row -> position 3}
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/encoder_shards.h"

namespace omni::parallel {

struct StepLayout {
  struct Encoder {
    std::string name;
    SampleUnit unit = {};
    bool operator==(const Encoder&) const = default;
  };
  // One image, clip or sound; in the order of replica, microbatch, lane, sample.
  struct Item {
    int32_t encoder = 0;                  // index into `encoders`
    int32_t group = 0;                    // of microbatches, that it is encoded with
    int32_t replica = 0, microbatch = 0;  // which reads it
    int32_t lane = 0, sample = 0;         // the sample of the lane that it is of
    int32_t encoder_rank = 0;             // the rank of the job that encodes it
    int32_t num_shards = 1;  // > 1: split over the ranks encoder_rank, encoder_rank + 1, ...
    int64_t input_rows = 0;
    int64_t output_rows = 0;
    bool operator==(const Item&) const = default;

    bool IsEncodedBy(int32_t rank) const {
      return encoder_rank <= rank && rank < encoder_rank + num_shards;
    }
  };
  // Output rows [first_row, first_row + num_rows) of an item stand at consecutive positions.
  struct Route {
    int32_t item = 0;
    int64_t first_row = 0;
    int64_t num_rows = 0;
    int64_t position = 0;  // token of the item's microbatch
    bool operator==(const Route&) const = default;
  };
  struct Microbatch {
    int64_t loss_tokens = 0;
    std::vector<int32_t> documents = {};  // lengths in tokens; a sample is a document
    bool operator==(const Microbatch&) const = default;

    int64_t tokens() const;
    std::vector<int32_t> cu_seqlens() const;  // {0} without documents
  };

  int64_t step = 0;
  int32_t num_replicas = 0;
  int32_t num_microbatches = 0;  // of each replica; missing ones are empty
  int32_t group_size = 1;        // microbatches; the last group may be shorter
  std::vector<Encoder> encoders;
  std::vector<Microbatch> microbatches;  // [replica * num_microbatches + microbatch]
  std::vector<Item> items;
  std::vector<Route> routes;  // in the order of items, then of rows; all rows of every item

  const Microbatch& microbatch(int32_t replica, int32_t index) const {
    return microbatches[replica * num_microbatches + index];
  }
  int32_t num_groups() const { return (num_microbatches + group_size - 1) / group_size; }
  int64_t tokens() const;
  int64_t loss_tokens() const;  // the divisor of the loss
  // The part of an item that a rank encodes: empty on a rank that does not.
  UnitRange InputRows(const Item& item, int32_t rank) const;
  UnitRange OutputRows(const Item& item, int32_t rank) const;
  // Rows rank `rank` encodes; and whether nobody has any.
  int64_t input_rows(int32_t encoder, int32_t rank) const;
  bool is_empty(int32_t encoder) const;

  uint64_t Digest() const;  // XXH3 over every integer and name
  bool operator==(const StepLayout&) const = default;
};

}  // namespace omni::parallel
