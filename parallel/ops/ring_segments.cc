#include "parallel/ops/ring_segments.h"

#include "runtime/base/check.h"

namespace omni::parallel {
namespace {

// What a rank holds of one document: pieces [begin, end) of its list, rows from `first_row`.
struct HeldDocument {
  int32_t document = 0;
  size_t begin = 0, end = 0;
  int32_t first_row = 0, num_rows = 0;
};

std::vector<HeldDocument> DocumentsOf(const std::vector<SequencePiece>& pieces) {
  std::vector<HeldDocument> documents;
  int32_t row = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (documents.empty() || documents.back().document != pieces[i].document) {
      if (!documents.empty()) OMNI_CHECK_LT(documents.back().document, pieces[i].document);
      documents.push_back({pieces[i].document, i, i, row, 0});
    } else {
      OMNI_CHECK_LE(pieces[i - 1].end, pieces[i].begin);
    }
    const int32_t num_rows = pieces[i].end - pieces[i].begin;
    documents.back().end = i + 1;
    documents.back().num_rows += num_rows;
    row += num_rows;
  }
  return documents;
}

// The queries that see something of `keys`, another rank's part of the same document.
RingSegment CausalSegment(const std::vector<SequencePiece>& query_pieces,
                          const HeldDocument& queries, const std::vector<SequencePiece>& key_pieces,
                          const HeldDocument& keys) {
  RingSegment segment{queries.first_row, 0, keys.first_row, 0};
  int32_t row = queries.first_row, seen = 0;
  size_t next_key = keys.begin;
  for (size_t i = queries.begin; i < queries.end; ++i) {
    const SequencePiece& piece = query_pieces[i];
    for (; next_key < keys.end && key_pieces[next_key].end <= piece.begin; ++next_key) {
      seen += key_pieces[next_key].end - key_pieces[next_key].begin;
    }
    const int32_t num_rows = piece.end - piece.begin;
    if (seen > 0) {
      if (segment.num_queries == 0) segment = {row, 0, keys.first_row, seen};
      OMNI_CHECK_EQ(segment.num_keys, seen);  // one range of keys for all queries
      segment.num_queries += num_rows;
    }
    row += num_rows;
  }
  return segment;
}

}  // namespace

std::vector<RingSegment> RingSegments(const SequenceShards& shards, int32_t query_rank,
                                      int32_t key_rank, bool causal) {
  const std::vector<SequencePiece>& query_pieces = shards.pieces[query_rank];
  const std::vector<SequencePiece>& key_pieces = shards.pieces[key_rank];
  const std::vector<HeldDocument> queries = DocumentsOf(query_pieces);
  const std::vector<HeldDocument> keys = DocumentsOf(key_pieces);
  std::vector<RingSegment> segments;
  for (size_t q = 0, k = 0; q < queries.size() && k < keys.size();) {
    if (queries[q].document != keys[k].document) {
      queries[q].document < keys[k].document ? ++q : ++k;
      continue;
    }
    const RingSegment segment = causal && query_rank != key_rank
                                    ? CausalSegment(query_pieces, queries[q], key_pieces, keys[k])
                                    : RingSegment{queries[q].first_row, queries[q].num_rows,
                                                  keys[k].first_row, keys[k].num_rows};
    if (segment.num_queries > 0) segments.push_back(segment);
    ++q, ++k;
  }
  return segments;
}

std::vector<int32_t> HeldSeqlens(const SequenceShards& shards, int32_t ring_rank) {
  std::vector<int32_t> cu_seqlens = {0};
  for (const HeldDocument& document : DocumentsOf(shards.pieces[ring_rank])) {
    cu_seqlens.push_back(document.first_row + document.num_rows);
  }
  return cu_seqlens;
}

}  // namespace omni::parallel
