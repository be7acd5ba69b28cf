// The loader lays out rows from metadata, the encoders make them: both must count alike, for the
// packs of one are the input of the other.
#include <gtest/gtest.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "dataloader/chat_template.h"
#include "encoders/encoder.h"

namespace omni {
namespace {

using dataloader::MediaInfo;
using dataloader::MediaKind;

std::unique_ptr<encoders::Encoder> Make(const std::string& yaml) {
  encoders::EncoderRegistry registry;
  encoders::RegisterEncoders(registry);
  const auto node = ConfigNode::Parse(yaml, "recipe.yaml");
  OMNI_CHECK_OK(node.status());
  auto encoder = registry.Create(*node, {.name = "tower", .output_hidden = 16, .init = {}});
  OMNI_CHECK_OK(encoder.status());
  return *std::move(encoder);
}

void ExpectAgreement(const encoders::Encoder& encoder, const MediaInfo& info,
                     const dataloader::DataConfig& config) {
  const auto shape = dataloader::MediaShapeOf(info, config);
  ASSERT_TRUE(shape.ok()) << shape.status();
  EXPECT_EQ(encoder.NumOutputRows(shape->item), shape->item.num_output_rows)
      << info.num_samples << " samples, " << info.height << " x " << info.width;
  // Shards are cut where the encoder's unit says; together they have all rows, each with those of
  // its neighbours that it sees, and makes as many of its own as the encoder would out of them.
  const parallel::MediaItem& item = shape->item;
  const parallel::SampleUnit unit = encoder.geometry().unit;
  if (unit.input_rows == 0) return;
  for (const int32_t shards : {1, 2, 3, 8}) {
    int64_t input_rows = 0, output_rows = 0;
    for (int32_t s = 0; s < shards; ++s) {
      const parallel::UnitRange units = unit.Units(item, s, shards);
      const parallel::UnitRange own = {std::min(units.begin * unit.input_rows, item.num_input_rows),
                                       std::min(units.end * unit.input_rows, item.num_input_rows)};
      const parallel::UnitRange in = unit.InputRows(item, s, shards);
      const parallel::UnitRange out = unit.OutputRows(item, s, shards);
      EXPECT_EQ(own.begin, input_rows);
      EXPECT_EQ(out.begin, output_rows);
      input_rows = own.end;
      output_rows = out.end;
      EXPECT_EQ(in.size() == 0, own.size() == 0);
      if (in.size() == 0) continue;
      EXPECT_TRUE(in.begin >= 0 && in.end <= item.num_input_rows);
      EXPECT_EQ(in.begin, own.begin - (own.begin > 0 ? unit.rows_before : 0));
      EXPECT_EQ(in.end, std::min(own.end + unit.rows_after, item.num_input_rows));
      if (info.kind != MediaKind::kAudio) continue;
      const int64_t frames = std::max<int64_t>(0, std::min<int64_t>(own.end, item.t) - own.begin);
      EXPECT_EQ(
          encoder.NumOutputRows({.t = static_cast<int32_t>(frames), .num_input_rows = frames}),
          out.size())
          << info.num_samples << " samples, shard " << s << " of " << shards;
    }
    EXPECT_EQ(input_rows, item.num_input_rows);
    EXPECT_EQ(output_rows, item.num_output_rows);
  }
}

TEST(LoaderAgreementTest, SoundsOfEveryLengthHaveTheSameRows) {
  const auto encoder = Make("kind: qwen_audio\nlayers: 1\nhidden: 16\nheads: 1\nffn: 16");
  const dataloader::DataConfig config;
  for (int64_t frames = 1; frames < 900; ++frames) {
    for (const int64_t samples : {frames * 160 - 1, frames * 160}) {
      ExpectAgreement(*encoder,
                      {.kind = MediaKind::kAudio,
                       .num_samples = samples,
                       .sample_rate = 16000,
                       .duration_s = static_cast<double>(samples) / 16000},
                      config);
    }
  }
}

class WindowAgreementTest : public ::testing::TestWithParam<const char*> {};

TEST_P(WindowAgreementTest, SoundsInAWindowHaveTheSameRows) {
  const auto encoder = Make(absl::StrCat("layers: 1\nhidden: 16\nheads: 1\nffn: 16\n", GetParam()));
  dataloader::DataConfig config;
  config.audio.window_frames = encoder->geometry().mel_window;
  config.audio.context_frames = encoder->geometry().mel_context;
  for (const int64_t samples : {700, 15999, 16000, 16001, 479680, 479700, 479999, 480000}) {
    const MediaInfo info{.kind = MediaKind::kAudio,
                         .num_samples = samples,
                         .sample_rate = 16000,
                         .duration_s = static_cast<double>(samples) / 16000};
    ExpectAgreement(*encoder, info, config);
    // Flops lays the item out, and stops the program if its rows are not as the tower wants them.
    parallel::MediaPack pack;
    pack.items = {dataloader::MediaShapeOf(info, config)->item};
    EXPECT_GE(encoder->Flops(pack.items).total(), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, WindowAgreementTest,
                         ::testing::Values("kind: qwen2_audio",
                                           "kind: qwen_audio\nwindow_frames: 30000"));

TEST(LoaderAgreementTest, PicturesAndClipsHaveTheSameRows) {
  const auto encoder = Make("kind: qwen_vision\nlayers: 1\nhidden: 16\nheads: 1\nffn: 16");
  const dataloader::DataConfig config;
  for (const int32_t height : {28, 61, 224, 777}) {
    for (const int32_t width : {28, 84, 500, 1001}) {
      ExpectAgreement(*encoder, {.kind = MediaKind::kImage, .height = height, .width = width},
                      config);
      for (const int64_t frames : {1, 8, 31}) {
        ExpectAgreement(*encoder,
                        {.kind = MediaKind::kVideo,
                         .height = height,
                         .width = width,
                         .num_frames = frames,
                         .fps = 4,
                         .duration_s = frames / 4.0},
                        config);
      }
    }
  }
}

}  // namespace
}  // namespace omni
