// Attention shared by ring x ulysses ranks against one rank over the whole pack: dealt as the
// decoder's tokens are, and as the parts of an encoder's samples.
#include "parallel/ops/shared_attention.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "parallel/encoder_shards.h"
#include "tests/parallel/ops/attention_problem.h"

namespace omni::parallel {
namespace {

using Problem = AttentionProblem;
using Tensors = AttentionTensors;

// The groups of a rank, of communicators split off as the trainer would.
struct SplitGroups {
  std::vector<std::unique_ptr<Communicator>> comms;
  SequenceGroups groups;
};
SplitGroups Split(const Group& world, int32_t ring, int32_t ulysses) {
  SplitGroups split;
  if (world.is_alone()) return split;
  const auto add = [&](const std::vector<int32_t>& ranks, const char* channel, Group& group) {
    auto comm = world.comm->Split(ranks, channel);
    OMNI_CHECK_OK(comm.status());
    if (*comm == nullptr) return;
    group.comm = comm->get();
    split.comms.push_back(*std::move(comm));
  };
  for (int32_t r = 0; r < ring; ++r) {
    std::vector<int32_t> ranks(ulysses);
    std::iota(ranks.begin(), ranks.end(), r * ulysses);
    add(ranks, "ulysses", split.groups.ulysses);
  }
  for (int32_t u = 0; u < ulysses; ++u) {
    std::vector<int32_t> ranks;
    for (int32_t r = 0; r < ring; ++r) ranks.push_back(r * ulysses + u);
    add(ranks, "ring", split.groups.ring);
  }
  return split;
}

// rows_of [rank]: the tokens of each before attention. Results in pack order.
Tensors OnGroups(const RankSetup& setup, int32_t ring, int32_t ulysses, const Problem& p,
                 const Tensors& inputs, const std::vector<std::vector<int32_t>>& rows_of,
                 const std::function<Var(OpRank&, const SequenceGroups&, const Var& q, const Var& k,
                                         const Var& v)>& attention,
                 bool strided) {
  const auto found = OnRanks<Tensors>(setup, [&](OpRank& rank) {
    const SplitGroups split = Split(rank.group, ring, ulysses);
    return RunOn(
        rank, p, inputs, rows_of[rank.group.rank()],
        [&](OpRank& r, const Var& q, const Var& k, const Var& v) {
          return attention(r, split.groups, q, k, v);
        },
        strided);
  });
  const int64_t wide = p.heads * p.head_dim, narrow = p.kv_heads * p.head_dim;
  Tensors all{.out = Values(p.num_tokens() * wide)};
  all.grad_q = all.out;
  all.grad_k = all.grad_v = Values(p.num_tokens() * narrow);
  for (int32_t rank = 0; rank < setup.size; ++rank) {
    Place(found[rank].out, rows_of[rank], wide, all.out);
    Place(found[rank].grad_q, rows_of[rank], wide, all.grad_q);
    Place(found[rank].grad_k, rows_of[rank], narrow, all.grad_k);
    Place(found[rank].grad_v, rows_of[rank], narrow, all.grad_v);
  }
  return all;
}

Tensors AsDecoder(RankSetup setup, const SequenceDegrees& degrees, const Problem& p,
                  const Tensors& inputs, int32_t threshold, bool strided = false) {
  const SequenceShards shards = ShardSequence(p.cu_seqlens(), degrees, threshold);
  setup.size = degrees.num_ranks();
  std::vector<std::vector<int32_t>> rows_of;
  for (int32_t rank = 0; rank < setup.size; ++rank) {
    const absl::Span<const int32_t> tokens = shards.TokensOf(rank);
    rows_of.emplace_back(tokens.begin(), tokens.end());
  }
  return OnGroups(
      setup, degrees.ring, degrees.ulysses, p, inputs, rows_of,
      [&](OpRank& rank, const SequenceGroups& groups, const Var& q, const Var& k, const Var& v) {
        return SharedAttention(rank.ctx, q, k, v, shards, groups, {.causal = p.causal});
      },
      strided);
}

TEST(SharedAttentionTest, TheDecodersTokensEqualOneRank) {
  for (const SequenceDegrees& degrees : {SequenceDegrees{},
                                         {.ulysses = 2},
                                         {.ulysses = 3},
                                         {.ring = 2},
                                         {.ring = 2, .ulysses = 2},
                                         {.ring = 2, .ulysses = 3},
                                         {.ring = 3, .ulysses = 2}}) {
    for (const int64_t kv_heads : {6, 2, 1}) {
      if (kv_heads % degrees.ulysses != 0 && degrees.ulysses % kv_heads != 0) continue;
      for (const std::vector<int32_t>& lengths :
           {std::vector<int32_t>{37, 2, 1, 14}, {1}, {}, {5, 5, 5}}) {
        const Problem p{lengths, 6, kv_heads, 5, true};
        SCOPED_TRACE(absl::StrCat("ring ", degrees.ring, " ulysses ", degrees.ulysses, ": ",
                                  ::testing::PrintToString(p)));
        const Tensors inputs = MakeInputs(p, DType::kFloat64);
        ExpectSame(AsDecoder({}, degrees, p, inputs, 4, kv_heads == 2),
                   OneRank(p, inputs, DType::kFloat64), 1e-12, 1e-12);
      }
    }
  }
}

TEST(SharedAttentionTest, LowerPrecisionTcpAndStreams) {
  const Problem p{{37, 2, 14}, 4, 2, 8, true};
  const SequenceDegrees degrees{.ring = 2, .ulysses = 2};
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    const Tensors inputs = MakeInputs(p, dtype);
    const Tensors plain = AsDecoder({.dtype = dtype}, degrees, p, inputs, 3);
    const double tolerance = dtype == DType::kFloat32 ? 1e-6 : 6e-3;
    ExpectSame(plain, OneRank(p, inputs, dtype), tolerance, tolerance);
    for (const RankSetup& setup : {RankSetup{.dtype = dtype, .engine = "tcp"},
                                   RankSetup{.dtype = dtype, .device = DeviceKind::kCpuAsync}}) {
      ExpectSame(AsDecoder(setup, degrees, p, inputs, 3), plain, 0.0, 0.0);
    }
  }
}

// --- samples of an encoder: every rank has a part of each ---------------------------------------

// Samples of `sizes` cells, each cut over the ranks in order. `label` says which segment each cell
// of the pack attends in: segments are the problem's documents, but their cells need not be
// consecutive.
struct Samples {
  std::vector<int32_t> sizes;
  std::vector<int32_t> label;

  std::vector<std::vector<int32_t>> RowsOf(int32_t num_ranks) const {
    std::vector<std::vector<int32_t>> rows(num_ranks);
    int32_t first = 0;
    for (const int32_t size : sizes) {
      for (int32_t rank = 0; rank < num_ranks; ++rank) {
        const UnitRange part = ShardUnits(size, rank, num_ranks);
        for (int64_t i = part.begin; i < part.end; ++i) {
          rows[rank].push_back(first + static_cast<int32_t>(i));
        }
      }
      first += size;
    }
    return rows;
  }
};

// What ShardsOfPieces, `order` and `inverse` are for these samples: rows of a ring rank sorted by
// segment. Positions within a segment are those among its cells in pack order.
struct TowerPlan {
  SequenceShards shards;
  std::vector<std::vector<int32_t>> orders;  // [ring]
};
TowerPlan PlanTower(const Samples& samples, const std::vector<std::vector<int32_t>>& rows_of,
                    int32_t ring, int32_t ulysses) {
  std::vector<int32_t> lengths, position;
  for (const int32_t label : samples.label) {
    if (label >= std::ssize(lengths)) lengths.resize(label + 1, 0);
    position.push_back(lengths[label]++);
  }
  TowerPlan plan;
  std::vector<std::vector<SequencePiece>> pieces(ring);
  for (int32_t r = 0; r < ring; ++r) {
    std::vector<int32_t> cells;
    for (int32_t u = 0; u < ulysses; ++u) {
      const std::vector<int32_t>& rows = rows_of[r * ulysses + u];
      cells.insert(cells.end(), rows.begin(), rows.end());
    }
    std::vector<int32_t> order(cells.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return std::pair(samples.label[cells[a]], cells[a]) <
             std::pair(samples.label[cells[b]], cells[b]);
    });
    for (const int32_t i : order) {
      const int32_t label = samples.label[cells[i]], at = position[cells[i]];
      std::vector<SequencePiece>& held = pieces[r];
      if (!held.empty() && held.back().document == label && held.back().end == at)
        ++held.back().end;
      else
        held.push_back({label, at, at + 1});
    }
    plan.orders.push_back(order);
  }
  plan.shards = ShardsOfPieces(lengths, pieces, {.ring = ring, .ulysses = ulysses});
  return plan;
}

void ExpectTowerEqualsOneRank(const Samples& samples, int32_t ring, int32_t ulysses) {
  const int32_t num_ranks = ring * ulysses;
  const auto rows_of = samples.RowsOf(num_ranks);
  const TowerPlan plan = PlanTower(samples, rows_of, ring, ulysses);
  const Problem p{plan.shards.document_lengths, 6, 6, 4, false};
  const Tensors inputs = MakeInputs(p, DType::kFloat64);
  const Tensors found = OnGroups(
      {.size = num_ranks}, ring, ulysses, p, inputs, rows_of,
      [&](OpRank& rank, const SequenceGroups& groups, const Var& q, const Var& k, const Var& v) {
        const std::vector<int32_t>& order = plan.orders[groups.ring.rank()];
        std::vector<int32_t> inverse(order.size());
        for (size_t i = 0; i < order.size(); ++i) inverse[order[i]] = static_cast<int32_t>(i);
        UlyssesRows rows;
        for (int32_t u = 0; u < ulysses; ++u) {
          rows.counts.push_back(std::ssize(rows_of[groups.ring.rank() * ulysses + u]));
        }
        const int64_t count = std::ssize(order);
        rows.order = UploadNew<int32_t>(rank.ctx, order, {count});
        rows.inverse = UploadNew<int32_t>(rank.ctx, inverse, {count});
        return SharedAttention(rank.ctx, q, k, v, plan.shards, groups, rows, {});
      },
      false);
  // One rank has the cells sorted by segment; `cell_at` says which stand where.
  std::vector<int32_t> cell_at(samples.label.size());
  std::iota(cell_at.begin(), cell_at.end(), 0);
  std::stable_sort(cell_at.begin(), cell_at.end(),
                   [&](int32_t a, int32_t b) { return samples.label[a] < samples.label[b]; });
  const int64_t width = p.heads * p.head_dim;
  const auto sorted = [&](const Values& all) { return Take(all, cell_at, width); };
  const Tensors one = OneRank(p,
                              {.q = sorted(inputs.q),
                               .k = sorted(inputs.k),
                               .v = sorted(inputs.v),
                               .grad_out = sorted(inputs.grad_out)},
                              DType::kFloat64);
  ExpectSame({.out = sorted(found.out),
              .grad_q = sorted(found.grad_q),
              .grad_k = sorted(found.grad_k),
              .grad_v = sorted(found.grad_v)},
             one, 1e-12, 1e-12);
}

TEST(SharedAttentionTest, PartsOfSamplesAndWindowsEqualOneRank) {
  // A picture of 5 x 6 cells and one of 2 x 1, whole, and in windows of 2 x 2 cells.
  Samples whole{{30, 2}, std::vector<int32_t>(32, 0)}, windows = whole;
  whole.label[30] = whole.label[31] = 1;
  for (int32_t i = 0; i < 30; ++i) windows.label[i] = i / 6 / 2 * 3 + i % 6 / 2;
  windows.label[30] = windows.label[31] = 9;
  for (const auto& [ring, ulysses] :
       {std::pair{1, 1}, {1, 2}, {1, 3}, {2, 1}, {5, 1}, {2, 2}, {2, 3}}) {
    SCOPED_TRACE(absl::StrCat("ring ", ring, " ulysses ", ulysses));
    ExpectTowerEqualsOneRank(whole, ring, ulysses);
    ExpectTowerEqualsOneRank(windows, ring, ulysses);
  }
}

}  // namespace
}  // namespace omni::parallel
