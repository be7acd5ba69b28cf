// Where encoded rows go: from the rank that made them to the one rank that holds their token.
//
// Tokens of a microbatch lie over the ranks of the first stage of its replica (sequence_shards.h);
// no token is held twice, so a row goes to exactly one rank, one message per (pair, encoder, group)
// in the order of (microbatch, local row). Features of intermediate layers (DeepStack) are rows
// alike. Gradients return along the same lists, the other way round.
//
// A rank's output of an (encoder, group) is [R, H]: the rows of items it encodes alone, then its
// shards of those that are split, items in the order of StepLayout::items.
//
// Messages may be cut into rounds, so that what is staged at once is bounded: round i of n carries
// rows [n_rows i / n, n_rows (i + 1) / n) of every message, the same on both sides. The number of
// rounds follows from the layout alone, so nobody has to be told.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/data_layout.h"
#include "parallel/encoder_shards.h"
#include "parallel/step_layout.h"

namespace omni::parallel {

// One message, as one of its two ends sees it.
struct RowMessage {
  int32_t rank = 0;  // of the job: the other end
  // Of each row, in the order they travel: its microbatch, and at the end that sends it its row of
  // the output, at the other its place among the tokens that this rank holds of the microbatch.
  std::vector<int32_t> microbatches;
  std::vector<int32_t> rows;
  bool operator==(const RowMessage&) const = default;

  int64_t num_rows() const { return static_cast<int64_t>(rows.size()); }
  // The rows of the message that belong to this microbatch.
  UnitRange RowsOf(int32_t microbatch) const;
};
using RowsToSend = RowMessage;
using RowsToReceive = RowMessage;

// Of one rank, encoder and group. Ranks ascend and messages are not empty. What a rank has for
// itself is a message from itself to itself.
struct ReshardGroup {
  std::vector<RowsToSend> send;
  std::vector<RowsToReceive> receive;  // on the first stage only
  int64_t output_rows = 0;             // of this rank
  // Most rows that a rank of the domain makes or receives: the same on all its ranks.
  int64_t rows_max = 0;
  bool operator==(const ReshardGroup&) const = default;

  // So many that no rank stages more than max_rows >= 1 rows at once, but for one more a message
  // (parts are whole rows).
  int32_t NumRounds(int64_t max_rows) const;
  // So many that of two successive rounds, which are staged at once, no rank has more than
  // max(whole_rows, fraction rows_max) rows, but for two more a message; one if whole_rows hold
  // all, or the fraction, in (0, 1], is 1.
  int32_t NumRounds(double fraction, int64_t whole_rows) const;
};

// Rows of a message that travel in this round: at most ceil(num_rows / num_rounds).
UnitRange RoundRows(int64_t num_rows, int32_t round, int32_t num_rounds);

struct ReshardPlan {
  std::vector<std::vector<ReshardGroup>> groups;  // [encoder][group]
};

// `layout` as dealt for `data`; it may name more encoders after those, which have no items.
ReshardPlan PlanReshard(const StepLayout& layout, const DataLayout& data, int32_t rank);

}  // namespace omni::parallel
