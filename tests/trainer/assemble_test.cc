// What must hold of the assembled model whatever its numbers: packing changes nothing, gradients
// are those of the loss, frozen parts cost nothing, empty packs work.
#include "trainer/assemble.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/golden_thinker.h"

namespace omni {
namespace {

using testing::Distance;
using testing::GoldenCase;
using testing::kGoldenCases;
using testing::kThinkerYaml;
using testing::LoadGoldenCase;
using testing::ModelHarness;
using testing::Norm;

// The thinker with q/k norm, tied embeddings and no biases: the other half of the switches.
constexpr char kVariantYaml[] = R"(
init: {kind: fan_in, embedding_std: 0.5, projector_scale: 1.0}
decoder: {hidden: 24, layers: 2, heads: 4, kv_heads: 1, head_dim: 8, ffn: 40, vocab: 64,
          qkv_bias: false, qk_norm: true, tied_embeddings: true,
          rope: {theta: 10000, layout: interleaved, sections: [2, 1, 1]}}
encoders:
  vision: {kind: qwen_vision, hidden: 16, layers: 2, heads: 2, ffn: 20, patch: 4,
           temporal_patch: 2, merge: 2, window: 0, attention_bias: false, mlp_bias: false}
  audio: {kind: qwen_audio, mel_bands: 8, hidden: 16, layers: 1, heads: 4, ffn: 24,
          chunk_frames: 20}
)";

// Experts in the last two of three layers, a shared one behind a gate, and router losses that
// count.
constexpr char kMoeYaml[] = R"(
init: {kind: fan_in, embedding_std: 0.5, projector_scale: 1.0}
decoder: {hidden: 24, layers: 3, heads: 4, kv_heads: 1, head_dim: 8, ffn: 40, vocab: 64,
          rope: {theta: 10000, sections: [2, 1, 1]},
          moe: {experts: 5, top_k: 2, ffn: 12, shared_ffn: 8, shared_gate: true, dense_layers: [0],
                balance_loss: {coefficient: 0.5}, z_loss: 0.1}}
encoders:
  vision: {kind: qwen_vision, hidden: 16, layers: 2, heads: 2, ffn: 20, patch: 4,
           temporal_patch: 2, merge: 2, window: 16, full_attention_layers: [1]}
  audio: {kind: qwen_audio, mel_bands: 8, hidden: 16, layers: 1, heads: 2, ffn: 24,
          chunk_frames: 200}
)";

// DeepStack: three layers' features for the first three of the decoder, beside an encoder that
// gives none.
constexpr char kDeepstackYaml[] = R"(
init: {kind: fan_in, embedding_std: 0.5, projector_scale: 1.0}
decoder: {hidden: 24, layers: 4, heads: 4, kv_heads: 2, head_dim: 8, ffn: 40, vocab: 64,
          qkv_bias: false, qk_norm: true,
          rope: {theta: 10000, layout: interleaved, sections: [2, 1, 1]}}
encoders:
  vision: {kind: qwen3_vision, hidden: 16, layers: 3, heads: 2, ffn: 20, patch: 4,
           temporal_patch: 2, merge: 2, position_side: 4, deepstack_layers: [0, 1, 2]}
  audio: {kind: qwen_audio, mel_bands: 8, hidden: 16, layers: 1, heads: 4, ffn: 24,
          chunk_frames: 20}
)";

// Moves every parameter off its initial value, so that no gradient vanishes by symmetry.
void Perturb(ModelHarness& harness) {
  for (const auto& [path, weight] : harness.weights()) {
    std::vector<double> values = harness.Get(path);
    const CounterRng rng(11, StreamOf(path));
    for (size_t i = 0; i < values.size(); ++i) values[i] += 0.1 * rng.Normal(i);
    harness.Set(path, values);
  }
}

class AssembleTest : public ::testing::TestWithParam<const char*> {};

TEST_P(AssembleTest, GradientsAreThoseOfTheLoss) {
  ModelHarness harness(GetParam(), DType::kFloat64);
  Perturb(harness);
  const GoldenCase golden = LoadGoldenCase("mixed", harness.model());
  const parallel::LossScales scales{.loss_token = golden.scale, .token = 0.01, .lane = 0.7};
  const auto outcome = harness.Run(golden.tokens, golden.media, scales);
  const auto loss = [&] { return harness.Evaluate(golden.tokens, golden.media, scales).objective; };
  EXPECT_NEAR(outcome.objective, loss(), 1e-12);

  // One random direction in each module, and one through all of them.
  std::vector<std::string> modules = harness.model().Modules();
  modules.push_back("");
  for (const std::string& module : modules) {
    std::map<std::string, std::vector<double>> start;
    double slope = 0;
    const auto move = [&](double by) {
      for (const auto& [path, values] : start) {
        const CounterRng rng(13, StreamOf(module + path));
        std::vector<double> moved = values;
        for (size_t i = 0; i < moved.size(); ++i) moved[i] += by * rng.Normal(i);
        harness.Set(path, moved);
      }
    };
    for (const auto& [path, grad] : outcome.grads) {
      if (!module.empty() && harness.model().ModuleOf(path) != module) continue;
      start[path] = harness.Get(path);
      const CounterRng rng(13, StreamOf(module + path));
      for (size_t i = 0; i < grad.size(); ++i) slope += grad[i] * rng.Normal(i);
    }
    constexpr double kStep = 1e-5;
    move(kStep);
    const double above = loss();
    move(-kStep);
    const double below = loss();
    move(0);
    const double found = (above - below) / (2 * kStep);
    EXPECT_NEAR(found, slope, 1e-6 * std::max(1.0, std::abs(slope))) << "module " << module;
    EXPECT_GT(std::abs(slope), 1e-6) << "module " << module;
  }
}

TEST_P(AssembleTest, SamplesInOnePackAreAsEachAlone) {
  ModelHarness harness(GetParam(), DType::kFloat64);
  Perturb(harness);
  parallel::TokenPack tokens;
  trainer::MediaPacks media;
  std::vector<double> losses;
  ModelHarness::Values sums;
  constexpr double kScale = 0.01;
  for (const char* name : kGoldenCases) {
    const GoldenCase golden = LoadGoldenCase(name, harness.model());
    Append(golden, &tokens, &media);
    const auto alone = harness.Run(golden.tokens, golden.media, kScale);
    losses.insert(losses.end(), alone.losses.begin(), alone.losses.end());
    for (const auto& [path, grad] : alone.grads) {
      std::vector<double>& sum = sums[path];
      sum.resize(grad.size());
      for (size_t i = 0; i < grad.size(); ++i) sum[i] += grad[i];
    }
  }
  const auto packed = harness.Run(tokens, media, kScale);
  ASSERT_EQ(packed.losses.size(), losses.size());
  for (size_t i = 0; i < losses.size(); ++i) EXPECT_NEAR(packed.losses[i], losses[i], 1e-11);
  for (const auto& [path, grad] : packed.grads) {
    EXPECT_LE(Distance(grad, sums[path]), 1e-9 * (1e-6 + Norm(sums[path]))) << path;
  }
}

constexpr const char* kModelNames[] = {"Thinker", "Variant", "Moe", "Deepstack"};
INSTANTIATE_TEST_SUITE_P(Models, AssembleTest,
                         ::testing::Values(kThinkerYaml, kVariantYaml, kMoeYaml, kDeepstackYaml),
                         [](const auto& info) { return std::string(kModelNames[info.index]); });

TEST(AssembleFreezeTest, FrozenModulesGetNoGradientAndChangeNoOther) {
  ModelHarness harness(kThinkerYaml, DType::kFloat64);
  Perturb(harness);
  const GoldenCase golden = LoadGoldenCase("mixed", harness.model());
  const auto all = harness.Run(golden.tokens, golden.media, golden.scale);
  harness.Freeze({"vision", "audio", "decoder", "decoder.embedding"});
  const auto some = harness.Run(golden.tokens, golden.media, golden.scale);
  EXPECT_EQ(some.loss, all.loss);
  EXPECT_EQ(some.grads.count("vision.merger.fc1.weight"), 1u);
  EXPECT_EQ(some.grads.count("audio.projector.weight"), 1u);
  EXPECT_EQ(some.grads.count("decoder.head.weight"), 1u);
  for (const auto& [path, grad] : some.grads) EXPECT_EQ(grad, all.grads.at(path)) << path;
  for (const auto& [path, weight] : harness.weights()) {
    if (harness.IsTrainable(path)) continue;
    ExecContext ctx = harness.context();
    EXPECT_EQ(Norm(testing::ReadDoubles(ctx, weight.grad)), 0.0) << path;
  }
}

TEST(AssembleFreezeTest, FrozenTowersKeepNoActivations) {
  ModelHarness harness(kThinkerYaml, DType::kFloat32);
  const GoldenCase golden = LoadGoldenCase("mixed", harness.model());
  const auto kept_bytes = [&](const std::string& name) {
    harness.tape().Reset();
    const int64_t before = harness.device().pool().stats().used_bytes;
    ExecContext ctx = harness.taped();
    const Var rows = harness.model().encoder(name)->Encode(ctx, golden.media.at(name)).rows_RH;
    harness.tape().EndForward({rows});
    const int64_t bytes = harness.device().pool().stats().used_bytes - before;
    EXPECT_EQ(rows.needs_grad(), harness.IsTrainable(name + ".x"));
    harness.tape().Reset();
    return bytes;
  };
  EXPECT_GT(kept_bytes("vision"), 20 * kPageBytes);
  EXPECT_GT(kept_bytes("audio"), 20 * kPageBytes);
  harness.Freeze({"vision", "vision.merger", "audio", "audio.projector"});
  // Only the rows themselves.
  EXPECT_LE(kept_bytes("vision"), 2 * kPageBytes);
  EXPECT_LE(kept_bytes("audio"), 4 * kPageBytes);
}

TEST(AssembleFreezeTest, EverythingFrozenIsJustAForward) {
  ModelHarness harness(kThinkerYaml, DType::kFloat32);
  const GoldenCase golden = LoadGoldenCase("mixed", harness.model());
  const auto before = harness.Evaluate(golden.tokens, golden.media, golden.scale);
  const auto modules = harness.model().Modules();
  harness.Freeze({modules.begin(), modules.end()});
  const auto outcome = harness.Run(golden.tokens, golden.media, golden.scale);
  EXPECT_EQ(outcome.loss, before.loss);
  EXPECT_TRUE(outcome.grads.empty());
}

TEST(AssembleDeepstackTest, FeaturesReachTheLossThroughTheDecodersLayers) {
  ModelHarness harness(kDeepstackYaml, DType::kFloat64);
  Perturb(harness);
  const GoldenCase golden = LoadGoldenCase("mixed", harness.model());
  const double with = harness.Evaluate(golden.tokens, golden.media, golden.scale).loss;
  std::vector<double> losses;
  for (const char* level : {"0", "1", "2"}) {
    for (const char* parameter : {"weight", "bias"}) {
      const std::string path = absl::StrCat("vision.merger.deepstack.", level, ".fc2.", parameter);
      harness.Set(path, std::vector<double>(harness.Get(path).size(), 0.0));
    }
    losses.push_back(harness.Evaluate(golden.tokens, golden.media, golden.scale).loss);
  }
  EXPECT_GT(std::abs(losses[0] - with), 1e-6);
  EXPECT_GT(std::abs(losses[1] - losses[0]), 1e-6);
  EXPECT_GT(std::abs(losses[2] - losses[1]), 1e-6);
  // Only the projector trained: its gradients need the way back through the frozen decoder.
  const auto all = harness.Run(golden.tokens, golden.media, golden.scale);
  harness.Freeze(
      {"vision", "audio", "audio.projector", "decoder", "decoder.embedding", "decoder.head"});
  const auto some = harness.Run(golden.tokens, golden.media, golden.scale);
  EXPECT_EQ(some.grads.size(), 4u * 6);
  for (const auto& [path, grad] : some.grads) EXPECT_EQ(grad, all.grads.at(path)) << path;
}

TEST(AssembleEmptyTest, PacksWithoutItemsOrTokensWork) {
  ModelHarness harness(kThinkerYaml, DType::kFloat32);
  const GoldenCase text = LoadGoldenCase("text", harness.model());
  const auto without = harness.Run(text.tokens, {}, text.scale);
  trainer::MediaPacks empty;
  empty["vision"] = {};
  empty["audio"] = {};
  const auto with = harness.Run(text.tokens, empty, text.scale);
  EXPECT_EQ(with.loss, without.loss);
  EXPECT_EQ(with.grads, without.grads);
  const auto nothing = harness.Run({.cu_seqlens = {0}}, {}, 1.0);
  EXPECT_EQ(nothing.loss, 0.0);
  for (const auto& [path, grad] : nothing.grads) EXPECT_EQ(Norm(grad), 0.0) << path;
}

TEST(AssembleEmptyTest, TokensWithoutTargetsHaveZeroLossAndGradients) {
  ModelHarness harness(kThinkerYaml, DType::kFloat32);
  GoldenCase golden = LoadGoldenCase("mixed", harness.model());
  for (int32_t& target : golden.tokens.targets) target = -1;
  const auto outcome = harness.Run(golden.tokens, golden.media, 1.0);
  EXPECT_EQ(outcome.loss, 0.0);
  for (const auto& [path, grad] : outcome.grads) EXPECT_EQ(Norm(grad), 0.0) << path;
}

TEST(AssembleBf16Test, StaysNearFp32) {
  ModelHarness exact(kThinkerYaml, DType::kFloat32);
  ModelHarness rounded(kThinkerYaml, DType::kBFloat16);
  const auto weights = testing::OpenGolden("weights");
  exact.Load(*weights);
  rounded.Load(*weights);
  const GoldenCase golden = LoadGoldenCase("mixed", exact.model());
  const auto a = exact.Run(golden.tokens, golden.media, golden.scale);
  const auto b = rounded.Run(golden.tokens, golden.media, golden.scale);
  EXPECT_NEAR(b.loss, a.loss, 0.02 * a.loss);
  for (const auto& [path, grad] : a.grads) {
    EXPECT_LE(Distance(grad, b.grads.at(path)), 0.1 * Norm(grad)) << path;
  }
}

TEST(AssembleStreamTest, ResultsDoNotDependOnWhenKernelsRun) {
  ModelHarness now(kThinkerYaml, DType::kFloat32);
  ModelHarness later(kThinkerYaml, DType::kFloat32, 7, DeviceKind::kCpuAsync);
  const GoldenCase golden = LoadGoldenCase("mixed", now.model());
  const auto a = now.Run(golden.tokens, golden.media, golden.scale);
  for (int repeat = 0; repeat < 3; ++repeat) {
    const auto b = later.Run(golden.tokens, golden.media, golden.scale);
    EXPECT_EQ(a.losses, b.losses);
    EXPECT_EQ(a.argmax, b.argmax);
    EXPECT_EQ(a.grads, b.grads);
  }
}

TEST(AssembleFlopsTest, CountsAreThoseOfTheShapes) {
  ModelHarness harness(kThinkerYaml, DType::kFloat32);
  const GoldenCase text = LoadGoldenCase("text", harness.model());
  const int64_t tokens = text.tokens.num_tokens(), targets = std::lround(1.0 / text.scale);
  // Per token and layer: qkv 24 x 64, output 32 x 24, gate_up 24 x 80, down 40 x 24.
  const int64_t linear = 2 * tokens * 2 * (24 * 64 + 32 * 24 + 24 * 80 + 40 * 24);
  const int64_t attention = 2 * 4 * (tokens * (tokens + 1) / 2) * 32;
  const int64_t head = 2 * targets * 24 * 64;
  const auto flops = harness.model().Flops(text.tokens, text.media);
  EXPECT_EQ(flops.encoders.total(), 0);
  EXPECT_EQ(flops.decoder.forward, linear + attention + head);
  // The embedding is trained, so every input gradient is computed.
  EXPECT_EQ(flops.decoder.backward, 2 * flops.decoder.forward);

  const GoldenCase image = LoadGoldenCase("image_divisible", harness.model());
  // 32 patches, 8 cells; one layer in windows of 16 patches, one in a frame of 32.
  const int64_t stem = 2 * 32 * 96 * 16;
  const int64_t blocks = 2 * 2 * 32 * (16 * 48 + 16 * 16 + 16 * 40 + 20 * 16);
  const int64_t mixing = 4 * (2 * 16 * 16 + 32 * 32) * 16;
  const int64_t merger = 2 * 8 * (64 * 64 + 64 * 24);
  const auto seen = harness.model().Flops(image.tokens, image.media).encoders;
  EXPECT_EQ(seen.forward, stem + blocks + mixing + merger);
  EXPECT_EQ(seen.backward, stem + 2 * (blocks + mixing + merger));

  harness.Freeze({"vision"});
  const auto frozen = harness.model().Flops(image.tokens, image.media).encoders;
  EXPECT_EQ(frozen.forward, seen.forward);
  // The merger's norm is trained, so the gradient goes as far as fc1's input.
  EXPECT_EQ(frozen.backward, 2 * merger);
}

TEST(AssembleFlopsTest, ExpertsCountByTheTokensTheyGet) {
  ModelHarness harness(kMoeYaml, DType::kFloat32);
  const GoldenCase text = LoadGoldenCase("text", harness.model());
  const int64_t tokens = text.tokens.num_tokens(), targets = std::lround(1.0 / text.scale);
  // Per token and layer: qkv 24 x 48, output 32 x 24; the MLP 24 x 80, 40 x 24; or the router 24 x
  // 5, two experts 24 x 24, 12 x 24, the shared one 24 x 16, 8 x 24, its gate 24.
  const int64_t mixing = 3 * (24 * 48 + 32 * 24), dense = 24 * 80 + 40 * 24;
  const int64_t experts = 2 * (24 * 5 + 2 * (24 * 24 + 12 * 24) + 24 * 16 + 8 * 24 + 24);
  const int64_t attention = 3 * 4 * (tokens * (tokens + 1) / 2) * 32;
  const auto flops = harness.model().Flops(text.tokens, text.media);
  EXPECT_EQ(flops.decoder.forward,
            2 * tokens * (mixing + dense + experts) + attention + 2 * targets * 24 * 64);
  EXPECT_EQ(flops.decoder.backward, 2 * flops.decoder.forward);
}

// With every sequence of a lane marked, one microbatch of two is as two of one.
TEST(AssembleMoeTest, RouterLossesAddUpOverMicrobatches) {
  ModelHarness harness(kMoeYaml, DType::kFloat64);
  Perturb(harness);
  const parallel::LossScales scales{.loss_token = 0.01, .token = 0.02, .lane = 0.25};
  parallel::TokenPack tokens;
  trainer::MediaPacks media;
  std::map<std::string, double> auxiliary;
  ModelHarness::Values sums;
  tokens.cu_lanes = {0};
  for (const char* name : {"image_ragged", "audio_201"}) {
    const GoldenCase golden = LoadGoldenCase(name, harness.model());
    Append(golden, &tokens, &media);
    tokens.cu_lanes.push_back(static_cast<int32_t>(tokens.num_tokens()));
    const auto alone = harness.Run(golden.tokens, golden.media, scales);
    for (const auto& [metric, value] : alone.auxiliary) auxiliary[metric] += value;
    for (const auto& [path, grad] : alone.grads) {
      std::vector<double>& sum = sums[path];
      sum.resize(grad.size());
      for (size_t i = 0; i < grad.size(); ++i) sum[i] += grad[i];
    }
  }
  const auto together = harness.Run(tokens, media, scales);
  ASSERT_EQ(together.auxiliary.size(), 2u);
  for (const auto& [metric, value] : together.auxiliary) {
    EXPECT_NEAR(value, auxiliary.at(metric), 1e-12 * value) << metric;
    EXPECT_GT(value, 0) << metric;
  }
  for (const auto& [path, grad] : together.grads) {
    EXPECT_LE(Distance(grad, sums[path]), 1e-9 * (1e-6 + Norm(sums[path]))) << path;
  }
  tokens.cu_lanes.clear();  // as one sequence the balance is another
  EXPECT_GT(std::abs(harness.Run(tokens, media, scales).auxiliary.at("moe/balance_loss") -
                     auxiliary.at("moe/balance_loss")),
            1e-3);
}

TEST(AssembleParametersTest, EveryPathIsInAModuleAndUnique) {
  ModelHarness harness(kMoeYaml, DType::kFloat32);
  std::set<std::string> paths;
  for (const auto& spec : harness.model().Parameters()) {
    EXPECT_TRUE(paths.insert(spec.path).second) << spec.path;
    int64_t rows = 0;
    for (const int64_t part : spec.StackRows()) rows += part;
    EXPECT_EQ(rows, spec.num_rows()) << spec.path;
  }
  EXPECT_EQ(harness.model().ModuleOf("vision.merger.fc1.weight"), "vision.merger");
  EXPECT_EQ(harness.model().ModuleOf("vision.blocks.0.mlp_norm.weight"), "vision");
  EXPECT_EQ(harness.model().ModuleOf("decoder.head.weight"), "decoder.head");
  EXPECT_EQ(harness.model().ModuleOf("decoder.norm.weight"), "decoder");
}

absl::Status CreateStatus(const std::string& yaml) {
  encoders::EncoderRegistry registry;
  encoders::RegisterEncoders(registry);
  const auto node = ConfigNode::Parse(yaml, "recipe.yaml");
  OMNI_CHECK_OK(node.status());
  return trainer::MultimodalModel::Create(*node, registry).status();
}

TEST(AssembleConfigTest, BadSectionsAreNamed) {
  const std::string decoder = "decoder: {hidden: 16, layers: 1, heads: 2, ffn: 8, vocab: 9}\n";
  const std::pair<std::string, const char*> cases[] = {
      {"encoders: {}", "decoder"},
      {decoder + "encoder: {}", "encoders"},
      {decoder + "encoders: [vision]", "recipe.yaml:2"},
      {decoder + "encoders: {vision: {kind: qwen_audi}}", "did you mean qwen_audio"},
      {decoder + "encoders: {decoder: {kind: qwen_audio}}", "can't be an encoder's"},
      {decoder + "encoders: {a.b: {kind: qwen_audio}}", "can't be an encoder's"},
      {decoder + "encoders: {a/b: {kind: qwen_audio}}", "can't be an encoder's"},
      {decoder + "encoders: {lora: {kind: qwen_audio}}", "can't be an encoder's"},
      {decoder + "init: {kind: fanin}", "fan_in"},
      {decoder + "encoders: {v: {kind: qwen3_vision, deepstack_layers: [0, 1]}}",
       "deepstack features for 2 decoder layers, model.decoder has 1"},
  };
  for (const auto& [yaml, message] : cases) {
    const absl::Status status = CreateStatus(yaml);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << yaml;
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr(message)) << yaml;
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("recipe.yaml:")) << yaml;
  }
  EXPECT_TRUE(CreateStatus(decoder).ok());
  EXPECT_TRUE(CreateStatus(decoder + "encoders: {}").ok());
}

TEST(AssembleParametersTest, InitialStdsAreThoseThatLearned) {
  ModelHarness harness(kThinkerYaml, DType::kFloat32);
  std::map<std::string, parallel::ParameterSpec> specs;
  for (const auto& spec : harness.model().Parameters()) specs[spec.path] = spec;
  const auto expect = [&](const char* path, double std) {
    ASSERT_EQ(specs.count(path), 1u) << path;
    EXPECT_DOUBLE_EQ(specs[path].init_std, std) << path;
  };
  const double residual = 1 / std::sqrt(2.0 * 2);  // two layers
  expect("decoder.embedding.weight", 0.1);
  expect("decoder.head.weight", 0.5 / std::sqrt(24.0));
  expect("decoder.layers.0.attention.qkv.weight", 1 / std::sqrt(24.0));
  expect("decoder.layers.1.attention.output.weight", residual / std::sqrt(32.0));
  expect("decoder.layers.1.mlp.down.weight", residual / std::sqrt(40.0));
  expect("vision.patch_embed.weight", 1 / std::sqrt(96.0));
  expect("vision.blocks.1.mlp.down.weight", residual / std::sqrt(20.0));
  expect("vision.merger.fc2.weight", 0.2 / std::sqrt(64.0));
  expect("audio.conv1.weight", 1 / std::sqrt(24.0));
  expect("audio.projector.weight", 0.2 / std::sqrt(16.0));
  EXPECT_EQ(specs["vision.merger.fc1.weight"].optimizer, parallel::OptimizerClass::kEmbedding);
  EXPECT_EQ(specs["audio.conv2.weight"].optimizer, parallel::OptimizerClass::kMatrix);
  EXPECT_EQ(specs["decoder.norm.weight"].init, parallel::InitKind::kOnes);
  EXPECT_EQ(specs["decoder.layers.0.attention.qkv.bias"].optimizer,
            parallel::OptimizerClass::kVector);
}

}  // namespace
}  // namespace omni
