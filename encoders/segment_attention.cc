#include "encoders/segment_attention.h"

#include <algorithm>
#include <utility>

#include "parallel/ops/ulysses.h"
#include "runtime/ops/ops.h"

namespace omni::encoders {

using parallel::HeadsToRows;
using parallel::RowsToHeads;
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

SegmentAttention::SegmentAttention(std::vector<int32_t> cu_seqlens)
    : plan_(std::make_shared<Plan>(Plan{.cu_seqlens = std::move(cu_seqlens)})) {}

SegmentAttention::SegmentAttention(const SplitRows& rows, std::vector<int32_t> cu_seqlens,
                                   absl::Span<const int32_t> order) {
  const parallel::SampleShard& shard = rows.shard;
  OMNI_CHECK(shard.ring.is_alone());
  Plan plan{.shard = shard};
  // What the exchange makes of the rows of a ring rank: rank after rank, each with its items'
  // ranges. Row -> the ring rank that holds it, and where it lies there.
  const int64_t num_rows = cu_seqlens.back();
  std::vector<int32_t> owner(num_rows), held(num_rows);
  for (int32_t ring = 0; ring < shard.ring.size(); ++ring) {
    int32_t next = 0;
    for (int32_t part = 0; part < shard.ulysses.size(); ++part) {
      const int32_t rank = ring * shard.ulysses.size() + part;
      if (ring == shard.ring.rank()) plan.row_counts.push_back(rows.NumRows(rank));
      for (const UnitRange& range : rows.of_rank[rank]) {
        for (int64_t row = range.begin; row < range.end; ++row) {
          owner[row] = ring;
          held[row] = next++;
        }
      }
    }
  }
  // Segments are the documents of the ring.
  parallel::SequenceShards& documents = plan.documents;
  documents.degrees.ring = shard.ring.size();
  documents.pieces.resize(shard.ring.size());
  documents.tokens.resize(shard.ring.size());
  for (int32_t document = 0; document + 1 < static_cast<int32_t>(cu_seqlens.size()); ++document) {
    const int32_t length = cu_seqlens[document + 1] - cu_seqlens[document];
    documents.document_lengths.push_back(length);
    for (int32_t position = 0; position < length; ++position) {
      const int32_t place = cu_seqlens[document] + position;
      const int32_t row = order.empty() ? place : order[place], ring = owner[row];
      std::vector<parallel::SequencePiece>& pieces = documents.pieces[ring];
      if (pieces.empty() || pieces.back().document != document) {
        pieces.push_back({document, position, position});
      }
      OMNI_CHECK_EQ(pieces.back().end, position);  // units are cut in order, so one piece each
      pieces.back().end = position + 1;
      documents.tokens[ring].push_back(place);
      if (ring == shard.ring.rank()) plan.order.push_back(held[row]);
    }
  }
  if (std::is_sorted(plan.order.begin(), plan.order.end())) {
    plan.order.clear();
  } else {
    plan.inverse.resize(plan.order.size());
    for (size_t place = 0; place < plan.order.size(); ++place) {
      plan.inverse[plan.order[place]] = static_cast<int32_t>(place);
    }
  }
  if (shard.ring.is_alone()) {
    plan.documents = {};
    plan.cu_seqlens = std::move(cu_seqlens);
  }
  plan_ = std::make_shared<Plan>(std::move(plan));
}

Var SegmentAttention::Mix(ExecContext& ctx, const Input& input) const {
  const Plan& plan = *plan_;
  const int64_t num_rows = input.q_PH.value.size(0), hidden = input.q_PH.value.size(1);
  const int64_t head_dim = hidden / input.num_heads;
  const auto reordered = [&](const Var& x_TND, const std::vector<int32_t>& rows) {
    if (rows.empty()) return x_TND;
    const int64_t count = x_TND.value.size(0), heads = x_TND.value.size(1);
    const Var x_TH = Reshape(ctx, x_TND, {count, heads * head_dim});
    const Var y_TH = GatherRows(ctx, x_TH, UploadNew<int32_t>(ctx, rows, {count}));
    return Reshape(ctx, y_TH, {count, heads, head_dim});
  };
  const auto gathered = [&](const Var& x_PH, bool rotates) {
    Var x_PND = Reshape(ctx, x_PH, {num_rows, input.num_heads, head_dim});
    if (rotates) x_PND = Rope(ctx, x_PND, input.rope->cos_TR, input.rope->sin_TR);
    return reordered(RowsToHeads(ctx, x_PND, plan.shard.ulysses, plan.row_counts), plan.order);
  };
  const bool has_rope = input.rope != nullptr;
  const Var q_TND = gathered(input.q_PH, has_rope), k_TND = gathered(input.k_PH, has_rope);
  const Var v_TND = gathered(input.v_PH, false);
  const Var mixed_TND = VarlenAttention(ctx, q_TND, k_TND, v_TND, plan.cu_seqlens, {});
  const Var mixed_PND =
      HeadsToRows(ctx, reordered(mixed_TND, plan.inverse), plan.shard.ulysses, plan.row_counts);
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
