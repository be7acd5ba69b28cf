// How the tokens of one microbatch lie over the ranks of a pipeline stage that share it.
//
// Three axes share a sequence, from the outside in:
//
//   ring       (context parallelism, Liu et al. 2023, arXiv 2310.01889): a rank holds some tokens
//              of a document; keys and values travel around
//   ulysses    (Jacobs et al. 2023, arXiv 2309.14509): rows between attentions, heads inside
//   tensor     (Korthikanti et al. 2022, arXiv 2205.05198): rows between, columns of the weights
//              inside
//
// No token is held twice and nothing is padded: a rank may hold none. The ring's share of a
// document longer than `ring_threshold` is a zigzag: the document is cut into 2 x ring pieces and
// rank c has pieces c and 2 ring - 1 - c, so that under a causal mask all have the same work.
// Shorter documents lie whole on one ring rank each, dealt by attention cost, ties to the lower
// rank. A ring rank's tokens, documents in pack order, are cut evenly and in order over ulysses x
// tensor (tensor fastest).
//
//   2 documents of 8 and 3 tokens, ring 2, ulysses 1, tensor 2, threshold 4:
//     ring rank 0: 0 1 6 7          its tensor ranks: 0 1 | 6 7
//     ring rank 1: 2 3 4 5 8 9 10                     2 3 4 | 5 8 9 10
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace omni::parallel {

struct SequenceDegrees {
  int32_t ring = 1, ulysses = 1, tensor = 1;

  int32_t num_ranks() const { return ring * ulysses * tensor; }
  bool operator==(const SequenceDegrees&) const = default;
};

// Consecutive tokens of one document that a ring rank holds.
struct SequencePiece {
  int32_t document = 0;
  int32_t begin = 0, end = 0;  // positions within the document
  bool operator==(const SequencePiece&) const = default;
};

struct SequenceShards {
  SequenceDegrees degrees;
  std::vector<int32_t> document_lengths;           // of all documents of the pack
  std::vector<std::vector<SequencePiece>> pieces;  // [ring]: what each holds, in held order
  std::vector<std::vector<int32_t>> tokens;        // [ring]: the same as rows of the pack

  // Rows held by (ring, part), part = ulysses * degrees.tensor + tensor: tokens[ring] from first to
  // first + count.
  struct Rows {
    int64_t first = 0, count = 0;
  };
  Rows PartRows(int32_t ring, int32_t part) const;
  // Pack rows held by the rank with this index in the group ring x ulysses x tensor.
  absl::Span<const int32_t> TokensOf(int32_t index) const;
  // Row counts of the tensor group at (ring, ulysses), and of the ulysses group at ring (whole
  // tensor groups), as collectives want them.
  std::vector<int64_t> TensorCounts(int32_t ring, int32_t ulysses) const;
  std::vector<int64_t> UlyssesCounts(int32_t ring) const;
};

// cu_seqlens [S + 1] as in TokenPack; {0} for an empty pack. ring_threshold >= 0, in tokens.
SequenceShards ShardSequence(absl::Span<const int32_t> cu_seqlens, const SequenceDegrees& degrees,
                             int32_t ring_threshold);

// Shards of documents that were dealt otherwise, as the parts of long samples of an encoder:
// pieces [ring], each rank's in pack order. CHECK-fails unless every token is in one piece.
SequenceShards ShardsOfPieces(std::vector<int32_t> document_lengths,
                              std::vector<std::vector<SequencePiece>> pieces,
                              const SequenceDegrees& degrees);

}  // namespace omni::parallel
