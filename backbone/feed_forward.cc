#include "backbone/feed_forward.h"

#include "absl/strings/str_cat.h"
#include "backbone/decoder.h"
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

Var SwiGluMlp::Forward(ExecContext& ctx, const Var& normed_TH, RoutingRecord*) const {
  return Linear(ctx, SwiGlu(ctx, Linear(ctx, normed_TH, gate_up_)), down_);
}

void SwiGluMlp::CountFlops(int64_t num_tokens, FlopCounter* counter) const {
  counter->Linear(num_tokens, gate_up_);
  counter->Linear(num_tokens, down_);
}

}  // namespace omni::backbone
