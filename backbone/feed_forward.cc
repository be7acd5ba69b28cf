#include "backbone/feed_forward.h"

#include "absl/strings/str_cat.h"
#include "backbone/decoder.h"
#include "parallel/ops/rows.h"
#include "runtime/ops/ops.h"

namespace omni::backbone {

SwiGluMlp::SwiGluMlp(const DecoderConfig& config, int64_t ffn, const std::string& prefix,
                     parallel::ParameterList* list) {
  const int64_t hidden = config.hidden;
  parallel::ParameterSpec gate_up = parallel::Matrix(absl::StrCat(prefix, "gate_up.weight"),
                                                     2 * ffn, hidden, config.init.Std(hidden));
  gate_up.num_stacked = 2;
  list->Add(parallel::Cut(std::move(gate_up), 0, {ffn, ffn}), &gate_up_);
  list->Add(parallel::Cut(parallel::Matrix(absl::StrCat(prefix, "down.weight"), hidden, ffn,
                                           config.init.ResidualStd(ffn, config.layers)),
                          1, {ffn}),
            &down_);
}

Var SwiGluMlp::Forward(ExecContext& ctx, const Var& normed_TH,
                       const parallel::SequenceContext& sequence, RoutingRecord*) const {
  const parallel::Group& tensor = sequence.groups().tensor;
  const Var gathered_TH = parallel::AllGatherRows(ctx, normed_TH, tensor, sequence.tensor_counts());
  const Var gate_up = Linear(ctx, gathered_TH, gate_up_);
  const auto rest = [this](ExecContext& inner, absl::Span<const Var> in) {
    return std::vector<Var>{Linear(inner, SwiGlu(inner, in[0]), down_)};
  };
  const Var partial_TH = sequence.recomputes_parts()
                             ? Recompute(ctx, {&gate_up, 1}, AnyTrains({&down_}), rest)[0]
                             : rest(ctx, {&gate_up, 1})[0];
  return parallel::ReduceScatterRows(ctx, partial_TH, tensor, sequence.tensor_counts());
}

void SwiGluMlp::CountFlops(const parallel::SequenceContext& sequence, FlopCounter* counter) const {
  const auto num_rows = static_cast<int64_t>(sequence.tensor_tokens().size());
  counter->Linear(num_rows, gate_up_);
  counter->Linear(num_rows, down_);
}

}  // namespace omni::backbone
