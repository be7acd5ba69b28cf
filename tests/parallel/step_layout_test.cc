#include "parallel/step_layout.h"

#include <gtest/gtest.h>

#include <functional>

namespace omni::parallel {
namespace {

StepLayout Example() {
  return {.step = 3,
          .num_replicas = 2,
          .num_microbatches = 1,
          .encoders = {"vision", "audio"},
          .microbatches = {{.tokens = 7, .loss_tokens = 2}, {.tokens = 5, .loss_tokens = 1}},
          .items = {{.encoder = 0, .encoder_rank = 1, .input_rows = 4, .output_rows = 1}},
          .routes = {{.item = 0, .replica = 0, .num_rows = 1, .position = 3}}};
}

TEST(StepLayoutTest, SumsAndEmptiness) {
  const StepLayout layout = Example();
  EXPECT_EQ(layout.tokens(), 12);
  EXPECT_EQ(layout.loss_tokens(), 3);
  EXPECT_EQ(layout.microbatch(1, 0).tokens, 5);
  EXPECT_EQ(layout.input_rows(0, 1), 4);
  EXPECT_EQ(layout.input_rows(0, 0), 0);
  EXPECT_FALSE(layout.is_empty(0));
  EXPECT_TRUE(layout.is_empty(1));
  EXPECT_EQ(StepLayout{}.loss_tokens(), 0);
}

TEST(StepLayoutTest, DigestCoversEveryField) {
  const uint64_t digest = Example().Digest();
  EXPECT_EQ(Example().Digest(), digest);
  const std::vector<std::function<void(StepLayout&)>> changes = {
      [](StepLayout& l) { ++l.step; },
      [](StepLayout& l) { ++l.num_replicas; },
      [](StepLayout& l) { ++l.num_microbatches; },
      [](StepLayout& l) { l.encoders[1] = "sound"; },
      [](StepLayout& l) { l.encoders.pop_back(); },
      [](StepLayout& l) { ++l.microbatches[1].tokens; },
      [](StepLayout& l) { ++l.microbatches[1].loss_tokens; },
      [](StepLayout& l) { l.microbatches.emplace_back(); },
      [](StepLayout& l) { ++l.items[0].encoder; },
      [](StepLayout& l) { ++l.items[0].encoder_rank; },
      [](StepLayout& l) { ++l.items[0].shard; },
      [](StepLayout& l) { ++l.items[0].input_rows; },
      [](StepLayout& l) { ++l.items[0].output_rows; },
      [](StepLayout& l) { l.items.emplace_back(); },
      [](StepLayout& l) { ++l.routes[0].item; },
      [](StepLayout& l) { ++l.routes[0].replica; },
      [](StepLayout& l) { ++l.routes[0].microbatch; },
      [](StepLayout& l) { ++l.routes[0].first_row; },
      [](StepLayout& l) { ++l.routes[0].num_rows; },
      [](StepLayout& l) { ++l.routes[0].position; },
      [](StepLayout& l) { l.routes.clear(); },
  };
  for (size_t i = 0; i < changes.size(); ++i) {
    StepLayout layout = Example();
    changes[i](layout);
    EXPECT_NE(layout.Digest(), digest) << "change " << i;
    EXPECT_FALSE(layout == Example());
  }
}

}  // namespace
}  // namespace omni::parallel
