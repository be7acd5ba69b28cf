// Twenty steps of fine-tuning from published weights give the losses that transformers and
// PyTorch's AdamW give, from the same data: loading, gradients, clipping and update as one.
#include <gtest/gtest.h>

#include <numeric>

#include "tests/support/family_case.h"
#include "trainer/optimizer/sharded_optimizer.h"

namespace omni::trainer {
namespace {

using parallel::Bucket;
using testing::FamilyCase;

class Train20Test : public ::testing::TestWithParam<const char*> {};

TEST_P(Train20Test, LossesAndWeightsAreTheSame) {
  const auto pretrained = testing::OpenFamily(GetParam());
  const auto harness = testing::LoadFamily(*pretrained);
  MultimodalModel& model = harness->model();
  const FamilyCase golden =
      testing::LoadFamilyCase(GetParam(), "train20", model, pretrained->folder().config());
  const std::vector<int32_t> step_samples = golden.Ints("step_samples");
  const std::vector<double> losses = golden.Floats("losses");
  const std::vector<double> grad_norms = golden.Floats("grad_norms");

  TensorArena arena(harness->device());
  ExecContext ctx = harness->context();
  ctx.arena = &arena;
  const OptimizerConfig config{.kind = OptimizerConfig::Kind::kAdamW,
                               .lr = 1e-3,
                               .beta1 = 0.9,
                               .beta2 = 0.95,
                               .eps = 1e-8,
                               .weight_decay = 0.1,
                               .clip = 1.0};
  const auto storage = parallel::FlatStorage::Create(
      ctx, model.Parameters(),
      {.module_of = [&](const std::string& path) { return model.ModuleOf(path); },
       .rule_of = [&](const parallel::ParameterSpec& spec) { return config.RuleOf(spec); },
       .ever_trained = [](const std::string&) { return true; }});
  ShardedOptimizer optimizer(ctx, *storage, parallel::PlacementGroups(), config, absl::Seconds(30));
  const auto all = [](const std::string&) { return true; };
  ASSERT_TRUE(optimizer.LoadValues(ctx, *pretrained, all).ok());
  model.Bind(storage->Store(all));

  for (size_t step = 0; step < losses.size(); ++step) {
    const testing::Packs packs =
        testing::Select(golden, absl::MakeConstSpan(step_samples).subspan(2 * step, 2));
    double targets = 0;
    for (const int32_t target : packs.tokens.targets) targets += target >= 0;
    ExecContext recording = harness->taped();
    const MicrobatchResult result =
        model.ForwardBackward(recording, packs.tokens, packs.media, {.loss_token = 1.0 / targets});
    EXPECT_NEAR(testing::ReadDoubles(ctx, result.loss.value)[0], losses[step], 1e-3)
        << "step " << step;
    // A module without data gets no update in training; the reference's optimizer decays its
    // weights all the same.
    ASSERT_TRUE(optimizer.ReduceGradients(ctx, [](const std::string&) { return true; }).ok());
    const GradientSummary summary = *optimizer.Agree(ctx);
    EXPECT_NEAR(summary.norm, grad_norms[step], 1e-3 * grad_norms[step]) << "step " << step;
    ASSERT_TRUE(optimizer.Update(ctx, summary, [&](const std::string&) { return config.lr; }).ok());
    optimizer.ZeroGradients(ctx);
  }

  std::map<std::string, std::vector<double>> by_path;
  const parallel::ParameterStore store = storage->Store(all);
  for (const parallel::ParameterSpec& spec : model.Parameters()) {
    by_path[spec.path] = testing::ReadDoubles(ctx, store.Get(spec.path).value);
  }
  int num_compared = 0;
  for (const auto& [name, values] : testing::ByTheirNames(pretrained->family().tensors, by_path)) {
    if (!golden.Has("final." + name)) continue;  // only the small ones are there
    const std::vector<double> expected = golden.Floats("final." + name);
    EXPECT_LE(testing::Distance(values, expected), 1e-3 * testing::Norm(expected)) << name;
    ++num_compared;
  }
  EXPECT_GT(num_compared, 10);
}

INSTANTIATE_TEST_SUITE_P(Families, Train20Test, ::testing::Values("qwen2", "qwen2_5_vl"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::erase(name, '_');
                           return name;
                         });

}  // namespace
}  // namespace omni::trainer
