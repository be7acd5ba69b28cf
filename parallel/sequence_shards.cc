#include "parallel/sequence_shards.h"

#include <algorithm>
#include <numeric>

#include "runtime/base/check.h"

namespace omni::parallel {
namespace {

// What a token costs beside its attention (projections, MLP), in pairs of query and key: 24 H^2
// FLOPs for a layer of width H against 4 H for a pair, so 6 H, at H about 1,300. Only how short
// documents are dealt depends on it.
constexpr int64_t kPairsPerToken = 8192;

int64_t CostOf(int64_t num_tokens) {
  return num_tokens * (num_tokens + 1) / 2 + num_tokens * kPairsPerToken;
}

// Position where piece `index` of `num_pieces` begins.
int32_t Bound(int64_t length, int64_t index, int64_t num_pieces) {
  return static_cast<int32_t>(length * index / num_pieces);
}

// Whole documents over the ranks: the dearest first, each to the rank with the least so far.
// The zigzag documents cost all ranks the same, so they need not be counted.
std::vector<int32_t> Deal(const std::vector<int32_t>& lengths, const std::vector<int32_t>& whole,
                          int32_t num_ranks) {
  std::vector<int32_t> order = whole;
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return lengths[a] > lengths[b]; });
  std::vector<int64_t> load(num_ranks, 0);
  std::vector<int32_t> rank_of(lengths.size(), -1);
  for (const int32_t document : order) {
    const auto least = std::min_element(load.begin(), load.end());
    *least += CostOf(lengths[document]);
    rank_of[document] = static_cast<int32_t>(least - load.begin());
  }
  return rank_of;
}

void ListTokens(SequenceShards& shards, absl::Span<const int32_t> cu_seqlens) {
  shards.tokens.resize(shards.pieces.size());
  for (size_t rank = 0; rank < shards.pieces.size(); ++rank) {
    for (const SequencePiece& piece : shards.pieces[rank]) {
      const int32_t first = cu_seqlens[piece.document];
      for (int32_t i = piece.begin; i < piece.end; ++i) shards.tokens[rank].push_back(first + i);
    }
  }
}

void Append(std::vector<SequencePiece>& pieces, const SequencePiece& piece) {
  if (piece.begin == piece.end) return;
  if (!pieces.empty() && pieces.back().document == piece.document &&
      pieces.back().end == piece.begin) {
    pieces.back().end = piece.end;
  } else {
    pieces.push_back(piece);
  }
}

}  // namespace

SequenceShards ShardSequence(absl::Span<const int32_t> cu_seqlens, const SequenceDegrees& degrees,
                             int32_t ring_threshold) {
  OMNI_CHECK(!cu_seqlens.empty());
  OMNI_CHECK_EQ(cu_seqlens.front(), 0);
  OMNI_CHECK(degrees.ring >= 1 && degrees.ulysses >= 1 && degrees.tensor >= 1);
  OMNI_CHECK_GE(ring_threshold, 0);
  const int32_t ring = degrees.ring, num_pieces = 2 * ring;
  SequenceShards shards;
  shards.degrees = degrees;
  shards.pieces.resize(ring);
  std::vector<int32_t> whole;
  for (size_t s = 0; s + 1 < cu_seqlens.size(); ++s) {
    OMNI_CHECK_LE(cu_seqlens[s], cu_seqlens[s + 1]);
    shards.document_lengths.push_back(cu_seqlens[s + 1] - cu_seqlens[s]);
    if (shards.document_lengths.back() <= ring_threshold) whole.push_back(static_cast<int32_t>(s));
  }
  const std::vector<int32_t> rank_of = Deal(shards.document_lengths, whole, ring);
  for (size_t s = 0; s < shards.document_lengths.size(); ++s) {
    const int32_t document = static_cast<int32_t>(s), length = shards.document_lengths[s];
    if (rank_of[s] >= 0) {
      Append(shards.pieces[rank_of[s]], {document, 0, length});
      continue;
    }
    for (int32_t i = 0; i < num_pieces; ++i) {
      Append(shards.pieces[std::min(i, num_pieces - 1 - i)],
             {document, Bound(length, i, num_pieces), Bound(length, i + 1, num_pieces)});
    }
  }
  ListTokens(shards, cu_seqlens);
  return shards;
}

SequenceShards ShardsOfPieces(std::vector<int32_t> document_lengths,
                              std::vector<std::vector<SequencePiece>> pieces,
                              const SequenceDegrees& degrees) {
  OMNI_CHECK_EQ(static_cast<int32_t>(pieces.size()), degrees.ring);
  SequenceShards shards{.degrees = degrees,
                        .document_lengths = std::move(document_lengths),
                        .pieces = std::move(pieces),
                        .tokens = {}};
  std::vector<int32_t> cu_seqlens = {0};
  for (const int32_t length : shards.document_lengths) {
    OMNI_CHECK_GE(length, 0);
    cu_seqlens.push_back(cu_seqlens.back() + length);
  }
  std::vector<int32_t> times_held(cu_seqlens.back(), 0);
  for (const std::vector<SequencePiece>& held : shards.pieces) {
    for (const SequencePiece& piece : held) {
      OMNI_CHECK(piece.document >= 0 && piece.document < std::ssize(shards.document_lengths));
      OMNI_CHECK_LE(piece.end, shards.document_lengths[piece.document]);
      OMNI_CHECK(piece.begin >= 0 && piece.begin < piece.end);
    }
  }
  ListTokens(shards, cu_seqlens);
  for (const std::vector<int32_t>& tokens : shards.tokens) {
    OMNI_CHECK(std::is_sorted(tokens.begin(), tokens.end()));
    for (const int32_t token : tokens) ++times_held[token];
  }
  for (const int32_t times : times_held) OMNI_CHECK_EQ(times, 1);
  return shards;
}

SequenceShards::Rows SequenceShards::PartRows(int32_t ring, int32_t part) const {
  OMNI_CHECK(ring >= 0 && ring < degrees.ring);
  const int64_t num_parts = int64_t{degrees.ulysses} * degrees.tensor;
  OMNI_CHECK(part >= 0 && part < num_parts);
  const int64_t total = static_cast<int64_t>(tokens[ring].size());
  const int64_t first = total * part / num_parts;
  return {first, total * (part + 1) / num_parts - first};
}

absl::Span<const int32_t> SequenceShards::TokensOf(int32_t index) const {
  OMNI_CHECK(index >= 0 && index < degrees.num_ranks());
  const int32_t num_parts = degrees.ulysses * degrees.tensor;
  const Rows rows = PartRows(index / num_parts, index % num_parts);
  return absl::MakeConstSpan(tokens[index / num_parts]).subspan(rows.first, rows.count);
}

std::vector<int64_t> SequenceShards::TensorCounts(int32_t ring, int32_t ulysses) const {
  OMNI_CHECK(ulysses >= 0 && ulysses < degrees.ulysses);
  std::vector<int64_t> counts;
  for (int32_t t = 0; t < degrees.tensor; ++t) {
    counts.push_back(PartRows(ring, ulysses * degrees.tensor + t).count);
  }
  return counts;
}

std::vector<int64_t> SequenceShards::UlyssesCounts(int32_t ring) const {
  std::vector<int64_t> counts;
  for (int32_t u = 0; u < degrees.ulysses; ++u) {
    const std::vector<int64_t> group = TensorCounts(ring, u);
    counts.push_back(std::accumulate(group.begin(), group.end(), int64_t{0}));
  }
  return counts;
}

}  // namespace omni::parallel
