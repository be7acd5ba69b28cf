// Drawing and packing: what a rank pays for knowing the whole global batch. No file is read.
//
//   BM_DrawAndPack  lanes draw windows of four sources and pack them; no text
//   BM_PlanSteps    the same with tokenising and laying out each sample from metadata in memory
//   build/bin/lanes_bench --benchmark_repetitions=20 --benchmark_report_aggregates_only
#include <benchmark/benchmark.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "dataloader/batch.h"
#include "dataloader/lane.h"
#include "dataloader/packing.h"
#include "dataloader/step_planner.h"
#include "runtime/base/check.h"
#include "runtime/base/rng.h"
#include "tests/dataloader/test_tokenizer.h"

namespace omni::dataloader {
namespace {

constexpr int64_t kSequenceLength = 4096;

// Lengths as a mixture of captions, pictures and clips has them: 32 to 4096, most short.
int64_t TokensOf(const SampleKey& key) {
  const CounterRng rng(3, key.source);
  const double u = rng.Uniform(key.index);
  return 32 + static_cast<int64_t>((kSequenceLength - 32) * u * u * u);
}

void BM_DrawAndPack(benchmark::State& bench) {
  const auto num_lanes = static_cast<int32_t>(bench.range(0));
  const auto window = static_cast<int32_t>(bench.range(1));
  const std::vector<double> weights = {0.5, 0.3, 0.15, 0.05};
  std::vector<LaneOrder> lanes;
  std::vector<LaneState> states(num_lanes, {.cursors = {0, 0, 0, 0}});
  for (int32_t lane = 0; lane < num_lanes; ++lane) {
    lanes.emplace_back(LaneOrder::Options{.lane = lane,
                                          .num_lanes = num_lanes,
                                          .window = window,
                                          .source_streams = {1, 2, 3, 4},
                                          .source_sizes = {10'000'000, 1'000'000, 50'000, 900}});
  }
  int64_t samples = 0, tokens = 0, sequences = 0;
  for (auto _ : bench) {
    for (int32_t lane = 0; lane < num_lanes; ++lane) {
      LaneState& state = states[lane];
      std::vector<int64_t> after, lengths;
      for (const SampleKey& key : lanes[lane].Draw(state, weights, &after)) {
        lengths.push_back(TokensOf(key));
        tokens += lengths.back();
      }
      const auto packed = PackSequences(lengths, kSequenceLength);
      const auto order =
          lanes[lane].SequenceOrder(state.window, static_cast<int32_t>(packed.size()));
      benchmark::DoNotOptimize(order.data());
      state.cursors = after;
      ++state.window;
      samples += window;
      sequences += static_cast<int64_t>(packed.size());
    }
  }
  bench.SetItemsProcessed(samples);
  bench.counters["fill"] =
      static_cast<double>(tokens) / (static_cast<double>(sequences) * kSequenceLength);
}
BENCHMARK(BM_DrawAndPack)
    ->ArgNames({"lanes", "window"})
    ->Args({1, 64})
    ->Args({16, 64})
    ->Args({16, 1024})
    ->Args({1024, 64})
    ->Unit(benchmark::kMicrosecond);

// 1000 questions about pictures, in memory.
class MemoryStore : public SampleStore {
 public:
  int64_t num_samples() const override { return 1000; }
  std::string sample_id(int64_t index) const override { return absl::StrCat("memory:", index); }
  absl::StatusOr<SampleMetadata> Metadata(int64_t index) const override {
    return SampleMetadata{.media = {{.kind = MediaKind::kImage,
                                     .height = 224 + 28 * static_cast<int32_t>(index % 16),
                                     .width = 224}}};
  }
  absl::StatusOr<Conversation> LoadConversation(int64_t index) const override {
    Conversation conversation;
    conversation.sample_id = sample_id(index);
    conversation.messages = {
        {Role::kUser,
         {{.kind = PartKind::kImage, .media_index = 0},
          {.kind = PartKind::kText, .text = "What number is shown in this picture?"}}},
        {Role::kAssistant, {{.kind = PartKind::kText, .text = "It shows the number 47."}}}};
    return conversation;
  }
  absl::StatusOr<std::string> LoadMedia(int64_t, int32_t) const override { return ""; }
};

void BM_PlanSteps(benchmark::State& bench) {
  DataConfig config;
  config.lanes = static_cast<int32_t>(bench.range(0));
  config.sequence_length = kSequenceLength;
  config.sources = {{.name = "memory", .path = "memory"}};
  const SpecialTokenNames names;
  auto tokenizer =
      Tokenizer::FromModel(TrainTestModel({names.im_start, names.im_end, names.vision_start,
                                           names.vision_end, names.image_pad, names.video_pad,
                                           names.audio_start, names.audio_end, names.audio_pad}),
                           "bench");
  OMNI_CHECK_OK(tokenizer.status());
  const auto samples = std::make_shared<const SamplePlanner>(
      config, std::vector<OpenedSource>{{"memory", std::make_shared<MemoryStore>()}},
      *std::move(tokenizer));
  const parallel::DataLayout data = NameEncoders(parallel::DataLayout::DataParallel(8), config);
  auto planner = StepPlanner::Create(samples, {});
  OMNI_CHECK_OK(planner.status());
  int64_t num_samples = 0, tokens = 0;
  for (auto _ : bench) {
    auto plan = (*planner)->Next();
    OMNI_CHECK_OK(plan.status());
    const parallel::StepLayout layout = LayoutOf(*plan, config, data);
    OMNI_CHECK_EQ(layout.tokens(), plan->num_tokens());
    benchmark::DoNotOptimize(layout.Digest());
    for (const auto& lane : plan->lanes) num_samples += static_cast<int64_t>(lane.size());
    tokens += layout.tokens();
  }
  bench.SetItemsProcessed(num_samples);
  bench.counters["tokens/s"] =
      benchmark::Counter(static_cast<double>(tokens), benchmark::Counter::kIsRate);
}
BENCHMARK(BM_PlanSteps)->ArgName("lanes")->Arg(4)->Arg(256)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace omni::dataloader

BENCHMARK_MAIN();
