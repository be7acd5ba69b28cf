// A whole mixture-of-experts decoder against Hugging Face's Qwen3-MoE (tests/golden/families):
// choices of the routers, logits, losses, the load-balance loss, and the gradient of every
// parameter.
#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "runtime/ops/linear.h"
#include "tests/support/model_harness.h"

namespace omni {
namespace {

using testing::Distance;
using testing::ModelHarness;
using testing::Norm;
using Values = std::vector<double>;

constexpr double kTolerance = 1e-4;          // logits, losses
constexpr double kGradientTolerance = 1e-3;  // of a parameter's gradient norm

struct Case {
  const char* name;
  const char* folder;
  std::vector<const char*> weights;
  const char* file;
  const char* model;
  double balance_coefficient;  // of the gradients in the file
};

constexpr char kNormalised[] = R"(
decoder: {hidden: 32, layers: 2, heads: 4, kv_heads: 2, head_dim: 16, ffn: 48, vocab: 128,
          norm_eps: 1e-6, qkv_bias: false, qk_norm: true, rope: {theta: 1e6},
          moe: {experts: 8, top_k: 2, ffn: 16, dense_layers: [0],
                balance_loss: {mode: reference, coefficient: %s}}}
)";
constexpr char kRaw[] = R"(
decoder: {hidden: 32, layers: 4, heads: 4, kv_heads: 2, head_dim: 16, ffn: 48, vocab: 128,
          norm_eps: 1e-6, qkv_bias: false, qk_norm: true, rope: {theta: 1e6},
          moe: {experts: 6, top_k: 3, ffn: 12, normalize_top_k: false, sparse_step: 2,
                balance_loss: {mode: reference, coefficient: %s}}}
)";

std::unique_ptr<SafetensorsFile> Open(const std::string& folder, const std::string& name) {
  auto file = SafetensorsFile::Open(
      absl::StrCat(OMNI_SOURCE_DIR, "/tests/golden/families/", folder, "/", name, ".safetensors"));
  OMNI_CHECK_OK(file.status());
  return *std::move(file);
}

template <typename T>
std::vector<T> Read(const SafetensorsFile& file, const std::string& name) {
  const auto view = file.Get(name);
  OMNI_CHECK_OK(view.status());
  const T* data = view->ptr<const T>();
  return {data, data + view->num_elements()};
}

// The tensors of theirs, under `prefix`, that lie one after the other in ours.
std::vector<std::string> TheirNames(const parallel::ParameterSpec& spec) {
  const std::string base =
      absl::StrReplaceAll(spec.path, {{"decoder.embedding.", "model.embed_tokens."},
                                      {"decoder.head.", "lm_head."},
                                      {"decoder.norm.", "model.norm."},
                                      {"decoder.layers.", "model.layers."},
                                      {"input_norm", "input_layernorm"},
                                      {"mlp_norm", "post_attention_layernorm"},
                                      {"attention.q_norm", "self_attn.q_norm"},
                                      {"attention.k_norm", "self_attn.k_norm"},
                                      {"attention.output", "self_attn.o_proj"},
                                      {"moe.router", "mlp.gate"},
                                      {"mlp.down", "mlp.down_proj"}});
  const auto replaced = [&](const char* from, std::vector<std::string> parts) {
    for (std::string& part : parts) part = absl::StrReplaceAll(base, {{from, part}});
    return parts;
  };
  if (absl::StrContains(base, "attention.qkv"))
    return replaced("attention.qkv", {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"});
  if (absl::StrContains(base, "mlp.gate_up"))
    return replaced("mlp.gate_up", {"mlp.gate_proj", "mlp.up_proj"});
  const bool is_down = absl::StrContains(base, "moe.down");
  if (!is_down && !absl::StrContains(base, "moe.gate_up")) return {base};
  std::vector<std::string> parts;
  for (int64_t e = 0; e < spec.shape[0]; ++e) {
    const std::string expert = absl::StrCat("mlp.experts.", e);
    if (is_down) {
      parts.push_back(expert + ".down_proj");
    } else {
      parts.insert(parts.end(), {expert + ".gate_proj", expert + ".up_proj"});
    }
  }
  return replaced(is_down ? "moe.down" : "moe.gate_up", parts);
}

class GoldenMoeTest : public ::testing::TestWithParam<Case> {
 protected:
  GoldenMoeTest()
      : harness_(absl::StrReplaceAll(GetParam().model,
                                     {{"%s", absl::StrCat(GetParam().balance_coefficient)}}),
                 DType::kFloat32),
        file_(Open(GetParam().folder, GetParam().file)) {
    std::vector<std::unique_ptr<SafetensorsFile>> shards;
    for (const char* shard : GetParam().weights) shards.push_back(Open(GetParam().folder, shard));
    for (const parallel::ParameterSpec& spec : harness_.model().Parameters()) {
      Values values;
      for (const std::string& name : TheirNames(spec))
        for (const auto& shard : shards) {
          if (!shard->Has(name)) continue;
          const std::vector<float> part = Read<float>(*shard, name);
          values.insert(values.end(), part.begin(), part.end());
        }
      harness_.Set(spec.path, values);  // stops if any is missing
    }
    tokens_.token_ids = Read<int32_t>(*file_, "input_ids");
    tokens_.targets = Read<int32_t>(*file_, "targets");
    tokens_.cu_seqlens = Read<int32_t>(*file_, "cu_seqlens");
    for (int axis = 0; axis < 3; ++axis)
      for (const int32_t position : Read<int32_t>(*file_, "position_ids"))
        tokens_.positions.push_back(static_cast<float>(position));
    int64_t targets = 0;
    for (const int32_t target : tokens_.targets) targets += target >= 0;
    scales_ = {.loss_token = 1.0 / static_cast<double>(targets), .lane = 1.0};
  }

  Values Doubles(const std::string& name) const {
    const std::vector<float> values = Read<float>(*file_, name);
    return {values.begin(), values.end()};
  }
  void ExpectNear(const Values& found, const Values& expected, const char* what) {
    ASSERT_EQ(found.size(), expected.size()) << what;
    for (size_t i = 0; i < found.size(); ++i)
      ASSERT_NEAR(found[i], expected[i], kTolerance) << what << " at " << i;
  }

  ModelHarness harness_;
  std::unique_ptr<SafetensorsFile> file_;
  parallel::TokenPack tokens_;
  parallel::LossScales scales_;
};

TEST_P(GoldenMoeTest, RoutersChooseTheSameAndLogitsAgree) {
  ExecContext ctx = harness_.context();
  const backbone::Decoder& decoder = harness_.model().decoder();
  backbone::RoutingRecord record;
  const auto hidden =
      decoder.Forward(ctx, {.hidden_TH = decoder.Embed(ctx, tokens_.token_ids)}, tokens_, &record);
  std::vector<int32_t> experts;
  for (const Routing& layer : record.routings) {
    const std::vector<int32_t> of_layer = HostRead<int32_t>(ctx, layer.experts_TK);
    experts.insert(experts.end(), of_layer.begin(), of_layer.end());
  }
  if (file_->Has("router_experts")) {
    EXPECT_EQ(experts, Read<int32_t>(*file_, "router_experts"));
  }
  const Weight head{.value = harness_.weights().at("decoder.head.weight").value, .grad = {}};
  const Var logits = Linear(ctx, hidden.hidden_TH, head);
  ExpectNear(testing::ReadDoubles(ctx, logits.value), Doubles("logits"), "logits");
}

TEST_P(GoldenMoeTest, LossesAndGradientsAreTheSame) {
  const auto outcome = harness_.Run(tokens_, {}, scales_);
  EXPECT_NEAR(outcome.loss, Doubles("loss")[0], kTolerance);
  ExpectNear(outcome.losses, Doubles("losses"), "losses");
  if (file_->Has("aux_loss")) {
    const double balance = Doubles("aux_loss")[0];
    EXPECT_NEAR(outcome.auxiliary.at("moe/balance_loss"), balance, 1e-5 * balance);
  }
  for (const parallel::ParameterSpec& spec : harness_.model().Parameters()) {
    if (!file_->Has("grad.lm_head.weight")) break;  // a case without gradients
    Values expected;
    bool reached = false;
    for (const std::string& name : TheirNames(spec)) {
      const bool has = file_->Has("grad." + name);
      reached |= has;
      Values part(spec.num_elements() / static_cast<int64_t>(TheirNames(spec).size()));
      if (has) part = Doubles("grad." + name);  // else an expert no token went to
      expected.insert(expected.end(), part.begin(), part.end());
    }
    ASSERT_EQ(expected.size(), outcome.grads.at(spec.path).size()) << spec.path;
    EXPECT_TRUE(reached) << spec.path;
    EXPECT_LE(Distance(outcome.grads.at(spec.path), expected), kGradientTolerance * Norm(expected))
        << spec.path;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cases, GoldenMoeTest,
    ::testing::Values(Case{"Text", "qwen3_moe", {"model"}, "case_text", kNormalised, 0.02},
                      Case{"Packed", "qwen3_moe", {"model"}, "case_packed", kNormalised, 0.02},
                      Case{"RawText",
                           "qwen3_moe_raw",
                           {"model-00001-of-00002", "model-00002-of-00002"},
                           "case_text",
                           kRaw,
                           0.02},
                      Case{"RawPacked",
                           "qwen3_moe_raw",
                           {"model-00001-of-00002", "model-00002-of-00002"},
                           "case_packed",
                           kRaw,
                           0.02},
                      Case{"RawTextNoAux",
                           "qwen3_moe_raw",
                           {"model-00001-of-00002", "model-00002-of-00002"},
                           "case_text_no_aux",
                           kRaw,
                           0.0}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace omni
