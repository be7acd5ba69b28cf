// Which keys of one ring rank the queries of another see, as ranges of rows. Pure.
//
// With a zigzag (parallel/sequence_shards.h) it is, for each document, one range of queries that
// sees one range of keys whole. Rank c has pieces c and 2r-1-c of a document. Of the keys of rank b
//
//   b == c   its queries see its own keys under the causal mask, as if they were the whole document
//   b < c    both pieces see piece b
//   b > c    piece 2r-1-c sees both pieces
//
// and the mask costs every rank half of the pairs at every step.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/sequence_shards.h"

namespace omni::parallel {

// Rows count from the rank's first: of SequenceShards::tokens[rank].
struct RingSegment {
  int32_t first_query = 0, num_queries = 0;
  int32_t first_key = 0, num_keys = 0;
  bool operator==(const RingSegment&) const = default;
};

// At most one of each document, none of them empty. A causal mask within the segments is needed
// only where query_rank == key_rank. Any pieces will do without a mask; with one, CHECK-fails where
// a document would need two segments (neither a zigzag nor contiguous parts).
std::vector<RingSegment> RingSegments(const SequenceShards& shards, int32_t query_rank,
                                      int32_t key_rank, bool causal);

// cu_seqlens of what a ring rank holds of each document, for where that is all of them.
std::vector<int32_t> HeldSeqlens(const SequenceShards& shards, int32_t ring_rank);

}  // namespace omni::parallel
