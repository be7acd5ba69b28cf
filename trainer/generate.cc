#include "trainer/generate.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "runtime/base/rng.h"
#include "runtime/ops/copy.h"

namespace omni::trainer {
namespace {

std::vector<float> ReadLogits(ExecContext& ctx, const TensorView& logits_V) {
  const TensorView wide_V = ctx.New(DType::kFloat32, logits_V.shape());
  CopyTo(ctx, logits_V, wide_V);
  return HostRead<float>(ctx, wide_V);
}

}  // namespace

int32_t SampleToken(absl::Span<const float> logits, const SamplingOptions& options, int64_t draw) {
  const auto most_likely = std::max_element(logits.begin(), logits.end());
  if (options.temperature <= 0) return static_cast<int32_t>(most_likely - logits.begin());
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  if (options.top_k > 0 && options.top_k < static_cast<int32_t>(order.size())) {
    order.resize(options.top_k);
  }
  std::vector<double> weights;
  double total = 0;
  for (const int32_t token : order) {
    weights.push_back(std::exp((logits[token] - *most_likely) / options.temperature));
    total += weights.back();
  }
  double kept = 0;
  size_t num_kept = 0;
  while (num_kept < order.size() && (num_kept == 0 || kept < options.top_p * total)) {
    kept += weights[num_kept++];
  }
  double left = kept * CounterRng(options.seed, StreamOf("generate")).Uniform(draw);
  for (size_t i = 0; i + 1 < num_kept; ++i) {
    left -= weights[i];
    if (left < 0) return order[i];
  }
  return order[num_kept - 1];
}

std::vector<int32_t> Generate(Device& device, Stream& stream, const MultimodalModel& model,
                              const parallel::TokenPack& prompt, const MediaPacks& media,
                              const GenerateOptions& options) {
  OMNI_CHECK_GT(prompt.num_tokens(), 0);
  TensorArena memory(device);
  backbone::KvCache cache =
      model.decoder().NewCache(memory, prompt.num_tokens() + options.max_tokens);
  std::vector<int32_t> answer;
  parallel::TokenPack next = prompt;
  MediaPacks next_media = media;
  float position = prompt.positions[prompt.num_tokens() - 1];
  while (static_cast<int64_t>(answer.size()) < options.max_tokens) {
    TensorArena arena(device);  // of one token
    ExecContext ctx{.device = device, .stream = stream, .arena = &arena};
    const std::vector<float> logits =
        ReadLogits(ctx, model.NextLogits(ctx, next, next_media, &cache));
    const int32_t token =
        SampleToken(logits, options.sampling, static_cast<int64_t>(answer.size()));
    if (std::count(options.stop_tokens.begin(), options.stop_tokens.end(), token) > 0) break;
    answer.push_back(token);
    if (options.on_token) options.on_token(token);
    position += 1;
    next = {.token_ids = {token},
            .cu_seqlens = {0, 1},
            .positions = {position, position, position},
            .targets = {-1}};
    next_media.clear();
  }
  return answer;
}

}  // namespace omni::trainer
