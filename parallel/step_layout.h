// What one step's data is, in integers: which rank encodes which item, where its rows go, how
// many tokens each microbatch has, who is empty.
//
// Pure: every rank builds it from the same metadata, and a digest agreed one step ahead proves
// it. Resharding follows the routes; collectives that would be empty everywhere are skipped by
// what it says.
//
//   replica 0, microbatch 0: 7 tokens, its image (item 0) encoded where it is used
//   items  {encoder 0, rank 0, shard 0, 4 input rows, 1 output row}
//   routes {item 0, first_row 0, 1 row -> replica 0, microbatch 0, position 3}
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace omni::parallel {

struct StepLayout {
  struct Item {
    int32_t encoder = 0;       // index into `encoders`
    int32_t encoder_rank = 0;  // the rank that encodes it (the first of its sequence group)
    int32_t shard = 0;         // which part of the item, where it is split over a group
    int64_t input_rows = 0;
    int64_t output_rows = 0;
    bool operator==(const Item&) const = default;
  };
  // Output rows [first_row, first_row + num_rows) of an item stand at consecutive positions.
  struct Route {
    int32_t item = 0;
    int32_t replica = 0;
    int32_t microbatch = 0;
    int64_t first_row = 0;
    int64_t num_rows = 0;
    int64_t position = 0;  // token of the microbatch
    bool operator==(const Route&) const = default;
  };
  struct Microbatch {
    int64_t tokens = 0;
    int64_t loss_tokens = 0;
    bool operator==(const Microbatch&) const = default;
  };

  int64_t step = 0;
  int32_t num_replicas = 0;
  int32_t num_microbatches = 0;          // of each replica; missing ones are empty
  std::vector<std::string> encoders;     // names
  std::vector<Microbatch> microbatches;  // [replica * num_microbatches + microbatch]
  std::vector<Item> items;
  std::vector<Route> routes;

  const Microbatch& microbatch(int32_t replica, int32_t index) const {
    return microbatches[replica * num_microbatches + index];
  }
  int64_t tokens() const;
  int64_t loss_tokens() const;  // the divisor of the loss
  // Rows rank `rank` encodes; and whether nobody has any.
  int64_t input_rows(int32_t encoder, int32_t rank) const;
  bool is_empty(int32_t encoder) const;

  uint64_t Digest() const;  // XXH3 over every integer and name
  bool operator==(const StepLayout&) const = default;
};

}  // namespace omni::parallel
