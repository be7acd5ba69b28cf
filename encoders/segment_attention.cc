#include "encoders/segment_attention.h"

#include <algorithm>
#include <utility>

#include "parallel/ops/shared_attention.h"
#include "runtime/ops/ops.h"

namespace omni::encoders {

using parallel::SequencePiece;
using parallel::UnitRange;

int64_t SplitRows::NumRows(int32_t rank) const {
  int64_t rows = 0;
  for (const UnitRange& range : of_rank[rank]) rows += range.size();
  return rows;
}

SplitRows SplitItems(absl::Span<const parallel::MediaItem> items, const parallel::SampleUnit& unit,
                     const parallel::SampleShard& shard) {
  SplitRows rows{.shard = shard, .of_rank = {}};
  for (int32_t rank = 0; rank < shard.num_shards(); ++rank) {
    std::vector<UnitRange>& ranges = rows.of_rank.emplace_back();
    int64_t first = 0;
    for (const parallel::MediaItem& item : items) {
      const UnitRange own = unit.InputRows(item, rank, shard.num_shards());
      ranges.push_back({first + own.begin, first + own.end});
      first += item.num_input_rows;
    }
  }
  return rows;
}

namespace {

// Where rows lie once they are heads: a row's ring rank, and its place among that rank's rows,
// which come ulysses rank after ulysses rank, each with its items' ranges.
struct HeldRows {
  std::vector<int32_t> ring, place;
};

HeldRows FindRows(const SplitRows& rows, int64_t num_rows) {
  const parallel::SampleShard& shard = rows.shard;
  HeldRows held{std::vector<int32_t>(num_rows), std::vector<int32_t>(num_rows)};
  for (int32_t ring = 0; ring < shard.ring.size(); ++ring) {
    int32_t place = 0;
    for (int32_t part = 0; part < shard.ulysses.size(); ++part) {
      for (const UnitRange& range : rows.of_rank[ring * shard.ulysses.size() + part]) {
        for (int64_t row = range.begin; row < range.end; ++row) {
          held.ring[row] = ring;
          held.place[row] = place++;
        }
      }
    }
  }
  return held;
}

}  // namespace

SegmentAttention::SegmentAttention(absl::Span<const int32_t> cu_seqlens)
    : plan_(std::make_shared<Plan>(Plan{.shard = {},
                                        .segments = parallel::ShardSequence(cu_seqlens, {}, 0),
                                        .row_counts = {cu_seqlens.back()}})) {}

SegmentAttention::SegmentAttention(const SplitRows& rows, absl::Span<const int32_t> cu_seqlens,
                                   absl::Span<const int32_t> order) {
  const parallel::SampleShard& shard = rows.shard;
  const int32_t num_parts = shard.ulysses.size();
  Plan plan{.shard = shard};
  for (int32_t part = 0; part < num_parts; ++part) {
    plan.row_counts.push_back(rows.NumRows(shard.ring.rank() * num_parts + part));
  }
  const HeldRows held = FindRows(rows, cu_seqlens.back());
  std::vector<int32_t> lengths;
  std::vector<std::vector<SequencePiece>> pieces(shard.ring.size());
  for (int32_t segment = 0; segment + 1 < static_cast<int32_t>(cu_seqlens.size()); ++segment) {
    lengths.push_back(cu_seqlens[segment + 1] - cu_seqlens[segment]);
    for (int32_t position = 0; position < lengths.back(); ++position) {
      const int32_t place = cu_seqlens[segment] + position;
      const int32_t row = order.empty() ? place : order[place], ring = held.ring[row];
      std::vector<SequencePiece>& own = pieces[ring];
      if (own.empty() || own.back().document != segment || own.back().end != position) {
        own.push_back({segment, position, position});
      }
      own.back().end = position + 1;
      if (ring == shard.ring.rank()) plan.order.push_back(held.place[row]);
    }
  }
  plan.segments = ShardsOfPieces(std::move(lengths), std::move(pieces),
                                 {.ring = shard.ring.size(), .ulysses = num_parts, .tensor = 1});
  if (std::is_sorted(plan.order.begin(), plan.order.end())) plan.order.clear();
  plan.inverse.resize(plan.order.size());
  for (size_t place = 0; place < plan.order.size(); ++place) {
    plan.inverse[plan.order[place]] = static_cast<int32_t>(place);
  }
  plan_ = std::make_shared<Plan>(std::move(plan));
}

Var SegmentAttention::Mix(ExecContext& ctx, const Input& input) const {
  const Plan& plan = *plan_;
  const int64_t num_rows = input.q_PH.value.size(0), hidden = input.q_PH.value.size(1);
  const auto heads = [&](const Var& x_PH, bool rotates) {
    const Var x_PND = Reshape(ctx, x_PH, {num_rows, input.num_heads, hidden / input.num_heads});
    return rotates ? Rope(ctx, x_PND, input.rope->cos_TR, input.rope->sin_TR) : x_PND;
  };
  const auto upload = [&](const std::vector<int32_t>& places) {
    const auto count = static_cast<int64_t>(places.size());
    return count == 0 ? TensorView{} : UploadNew<int32_t>(ctx, places, {count});
  };
  const bool has_rope = input.rope != nullptr;
  const Var q_PND = heads(input.q_PH, has_rope), k_PND = heads(input.k_PH, has_rope);
  const Var mixed_PND = SharedAttention(
      ctx, q_PND, k_PND, heads(input.v_PH, false), plan.segments,
      {.ring = plan.shard.ring, .ulysses = plan.shard.ulysses},
      {.counts = plan.row_counts, .order = upload(plan.order), .inverse = upload(plan.inverse)},
      {});
  return Reshape(ctx, mixed_PND, {num_rows, hidden});
}

Var SegmentAttention::Attend(ExecContext& ctx, const Input& input, bool recompute) const {
  if (!recompute) return Mix(ctx, input);
  const auto table = [](const TensorView* view) {
    return Var{.value = view == nullptr ? TensorView{} : *view};
  };
  const bool has_rope = input.rope != nullptr;
  const Var inputs[] = {input.q_PH, input.k_PH, input.v_PH,
                        table(has_rope ? &input.rope->cos_TR : nullptr),
                        table(has_rope ? &input.rope->sin_TR : nullptr)};
  const auto mix = [attention = *this, has_rope, num_heads = input.num_heads](
                       ExecContext& inner, absl::Span<const Var> in) {
    const RopeTable rope{in[3].value, in[4].value};
    return std::vector<Var>{attention.Mix(inner, {.q_PH = in[0],
                                                  .k_PH = in[1],
                                                  .v_PH = in[2],
                                                  .num_heads = num_heads,
                                                  .rope = has_rope ? &rope : nullptr})};
  };
  return Recompute(ctx, inputs, /*trains_weights=*/false, mix)[0];
}

}  // namespace omni::encoders
