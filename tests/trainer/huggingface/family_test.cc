// Every family against transformers: logits, losses and the gradient of every parameter, on models
// read from the folders that transformers wrote.
#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/support/family_case.h"

namespace omni {
namespace {

using testing::Distance;
using testing::FamilyCase;
using testing::ModelHarness;
using testing::Norm;

constexpr double kOutputTolerance = 1e-4;
constexpr double kGradientTolerance = 1e-3;  // of a parameter's gradient norm

struct Case {
  const char* family;
  const char* name;
};

// A mixture of experts balanced as the reference does it, in the cases that have that loss.
std::vector<std::string> BalanceOverrides(const Case& c, const ConfigNode& config) {
  const ConfigNode nested = config.Get("text_config");
  const ConfigNode coefficient = (nested.is_map() ? nested : config).Get("router_aux_loss_coef");
  if (coefficient.is_null()) return {};
  const bool balances = !absl::EndsWith(c.name, "no_aux");
  return {absl::StrCat("decoder.moe.balance_loss={mode: reference, coefficient: ",
                       balances ? coefficient.text() : "0", "}")};
}

class FamilyTest : public ::testing::TestWithParam<Case> {
 protected:
  FamilyTest()
      : pretrained_(testing::OpenFamily(GetParam().family)),
        harness_(testing::LoadFamily(*pretrained_,
                                     BalanceOverrides(GetParam(), pretrained_->folder().config()))),
        golden_(testing::LoadFamilyCase(GetParam().family, GetParam().name, harness_->model(),
                                        pretrained_->folder().config())) {}

  parallel::LossScales scales() const { return {.loss_token = golden_.scale, .lane = 1.0}; }

  void ExpectNear(const std::vector<double>& found, const std::vector<double>& expected,
                  const char* what) {
    ASSERT_EQ(found.size(), expected.size()) << what;
    for (size_t i = 0; i < found.size(); ++i) {
      ASSERT_NEAR(found[i], expected[i], kOutputTolerance) << what << " at " << i;
    }
  }

  std::unique_ptr<trainer::PretrainedModel> pretrained_;
  std::unique_ptr<ModelHarness> harness_;
  FamilyCase golden_;
};

TEST_P(FamilyTest, LogitsAndLossesAreTheSame) {
  ExecContext ctx = harness_->context();
  const TensorView all_TV = harness_->model().Logits(ctx, golden_.tokens, golden_.media);
  const TensorView expected = *golden_.file->Get("logits");
  std::vector<double> logits;
  for (int64_t t = 0; t < all_TV.size(0); ++t) {  // of a long case, those that predict alone
    if (expected.size(0) != all_TV.size(0) && golden_.tokens.targets[t] < 0) continue;
    const std::vector<double> row = testing::ReadDoubles(ctx, all_TV.Rows(t, 1));
    logits.insert(logits.end(), row.begin(), row.end());
  }
  ExpectNear(logits, golden_.Floats("logits"), "logits");
  const auto outcome = harness_->Evaluate(golden_.tokens, golden_.media, scales());
  EXPECT_NEAR(outcome.loss, golden_.Floats("loss")[0], kOutputTolerance);
  ExpectNear(outcome.losses, golden_.Floats("losses"), "losses");
  if (!golden_.Has("aux_loss")) return;
  EXPECT_NEAR(outcome.auxiliary.at("moe/balance_loss"), golden_.Floats("aux_loss")[0],
              kOutputTolerance);
  EXPECT_NEAR(outcome.objective, golden_.Floats("total_loss")[0], kOutputTolerance);
}

TEST_P(FamilyTest, EveryGradientIsTheSame) {
  const auto outcome = harness_->Run(golden_.tokens, golden_.media, scales());
  int num_compared = 0;
  for (const std::string& name : golden_.file->names()) num_compared += name.rfind("grad.", 0) == 0;
  if (num_compared == 0) return;  // the file holds outputs alone
  for (const auto& [name, grad] :
       testing::ByTheirNames(pretrained_->family().tensors, outcome.grads)) {
    if (!golden_.Has("grad." + name)) {
      EXPECT_EQ(Norm(grad), 0.0) << name << " is not reached by this case";
      continue;
    }
    const std::vector<double> expected = golden_.Floats("grad." + name);
    EXPECT_LE(Distance(grad, expected), kGradientTolerance * Norm(expected)) << name;
    --num_compared;
  }
  EXPECT_EQ(num_compared, 0) << "gradients in the file that no parameter of ours has";
}

INSTANTIATE_TEST_SUITE_P(
    Families, FamilyTest,
    ::testing::Values(
        Case{"qwen2", "text"}, Case{"qwen2", "packed"}, Case{"qwen2_tied", "text"},
        Case{"qwen2_tied", "packed"}, Case{"qwen3", "text"}, Case{"qwen3", "packed"},
        Case{"qwen3_moe", "text"}, Case{"qwen3_moe", "packed"}, Case{"qwen3_moe_raw", "text"},
        Case{"qwen3_moe_raw", "text_no_aux"}, Case{"qwen3_moe_raw", "packed"},
        Case{"llama", "text"}, Case{"llama", "packed"}, Case{"llama_tied", "text"},
        Case{"llama_tied", "packed"}, Case{"qwen2_5_vl", "text"}, Case{"qwen2_5_vl", "image"},
        Case{"qwen2_5_vl", "image_ragged"}, Case{"qwen2_5_vl", "images_two"},
        Case{"qwen2_5_vl", "video"}, Case{"qwen2_5_vl", "packed"}, Case{"qwen2_5_vl", "mixed"},
        Case{"qwen3_vl", "text"}, Case{"qwen3_vl", "image"}, Case{"qwen3_vl", "image_ragged"},
        Case{"qwen3_vl", "images_two"}, Case{"qwen3_vl", "video"}, Case{"qwen3_vl", "packed"},
        Case{"qwen3_vl", "mixed"}, Case{"qwen3_vl_moe", "text"},
        Case{"qwen3_vl_moe", "image_ragged"}, Case{"qwen3_vl_moe", "images_two"},
        Case{"qwen3_vl_moe", "video"}, Case{"qwen2_audio", "text"},
        Case{"qwen2_audio", "audio_099"}, Case{"qwen2_audio", "audio_201"},
        Case{"qwen2_audio", "audio_cut"}, Case{"qwen2_audio", "audio_two"},
        Case{"qwen2_audio", "packed"}, Case{"qwen2_5_omni", "text"},
        Case{"qwen2_5_omni", "image_ragged"}, Case{"qwen2_5_omni", "video"},
        Case{"qwen2_5_omni", "audio_099"}, Case{"qwen2_5_omni", "audio_201"},
        Case{"qwen2_5_omni", "audio_odd"}, Case{"qwen2_5_omni", "audio_31"},
        Case{"qwen2_5_omni", "audio_video"}, Case{"qwen2_5_omni", "audio_in_video"},
        Case{"qwen2_5_omni", "packed"}),
    [](const auto& info) {
      std::string name;
      bool upper = true;
      for (const char c : std::string(info.param.family) + "_" + info.param.name) {
        if (c != '_') name += upper ? static_cast<char>(std::toupper(c)) : c;
        upper = c == '_';
      }
      return name;
    });

}  // namespace
}  // namespace omni
