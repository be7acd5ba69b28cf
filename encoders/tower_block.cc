#include "encoders/tower_block.h"

#include <vector>

namespace omni::encoders {

AddNormResult RunBlock(ExecContext& ctx, bool recompute, bool trains, const AddNormResult& x,
                       const RopeTable* rope, const BlockFn& fn) {
  if (!recompute) {
    const size_t mark = ctx.tape == nullptr ? 0 : ctx.tape->Mark();
    const AddNormResult y = fn(ctx, x, rope);
    if (ctx.tape != nullptr) ctx.tape->EndStretch(mark, {y.sum_TH, y.normed_TH});
    return y;
  }
  std::vector<Var> inputs = {x.sum_TH, x.normed_TH};
  if (rope != nullptr) {
    inputs.push_back({.value = rope->cos_TR});
    inputs.push_back({.value = rope->sin_TR});
  }
  const std::vector<Var> outputs =
      Recompute(ctx, inputs, trains, [fn](ExecContext& inner, absl::Span<const Var> in) {
        RopeTable table;
        if (in.size() > 2) table = {in[2].value, in[3].value};
        const AddNormResult y = fn(inner, {in[0], in[1]}, in.size() > 2 ? &table : nullptr);
        return std::vector<Var>{y.sum_TH, y.normed_TH};
      });
  return {outputs[0], outputs[1]};
}

Var RunPart(ExecContext& ctx, bool recompute, bool trains, const Var& x,
            const std::function<Var(ExecContext& ctx, const Var& x)>& fn) {
  if (!recompute) return fn(ctx, x);
  return Recompute(ctx, {&x, 1}, trains, [fn](ExecContext& inner, absl::Span<const Var> in) {
    return std::vector<Var>{fn(inner, in[0])};
  })[0];
}

}  // namespace omni::encoders
