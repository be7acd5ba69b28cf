#include "parallel/step_layout.h"

#include <gtest/gtest.h>

#include <functional>

namespace omni::parallel {
namespace {

StepLayout Example() {
  return {
      .step = 3,
      .num_replicas = 2,
      .num_microbatches = 1,
      .encoders = {{"vision", {.input_rows = 4, .output_rows = 1}}, {"audio", {}}},
      .microbatches = {{.loss_tokens = 2, .documents = {3, 4}},
                       {.loss_tokens = 1, .documents = {5}}},
      .items =
          {{.encoder = 0, .encoder_rank = 1, .input_rows = 4, .output_rows = 1},
           {.encoder = 0, .encoder_rank = 1, .num_shards = 3, .input_rows = 20, .output_rows = 5}},
      .routes = {{.item = 0, .num_rows = 1, .position = 3},
                 {.item = 1, .num_rows = 5, .position = 0}}};
}

TEST(StepLayoutTest, SumsAndEmptiness) {
  const StepLayout layout = Example();
  EXPECT_EQ(layout.tokens(), 12);
  EXPECT_EQ(layout.loss_tokens(), 3);
  EXPECT_EQ(layout.microbatch(1, 0).tokens(), 5);
  EXPECT_EQ(layout.microbatch(0, 0).cu_seqlens(), (std::vector<int32_t>{0, 3, 7}));
  EXPECT_EQ(StepLayout::Microbatch{}.cu_seqlens(), (std::vector<int32_t>{0}));
  EXPECT_EQ(layout.input_rows(0, 1), 4 + 4);  // one whole, one unit of five
  EXPECT_EQ(layout.input_rows(0, 0), 0);
  EXPECT_FALSE(layout.is_empty(0));
  EXPECT_TRUE(layout.is_empty(1));
  EXPECT_EQ(StepLayout{}.loss_tokens(), 0);
}

TEST(StepLayoutTest, SplitItemsAreCutAtUnits) {
  const StepLayout layout = Example();
  const StepLayout::Item& whole = layout.items[0];
  const StepLayout::Item& split = layout.items[1];
  EXPECT_EQ(layout.InputRows(whole, 1), (UnitRange{0, 4}));
  EXPECT_EQ(layout.OutputRows(whole, 1), (UnitRange{0, 1}));
  for (const int32_t rank : {0, 4}) {
    EXPECT_FALSE(split.IsEncodedBy(rank));
    EXPECT_EQ(layout.InputRows(split, rank).size(), 0);
    EXPECT_EQ(layout.OutputRows(split, rank).size(), 0);
  }
  EXPECT_EQ(layout.OutputRows(split, 1), (UnitRange{0, 1}));
  EXPECT_EQ(layout.OutputRows(split, 2), (UnitRange{1, 3}));
  EXPECT_EQ(layout.OutputRows(split, 3), (UnitRange{3, 5}));
  EXPECT_EQ(layout.InputRows(split, 3), (UnitRange{12, 20}));
  EXPECT_EQ(layout.input_rows(0, 3), 8);
}

TEST(StepLayoutTest, DigestCoversEveryField) {
  const uint64_t digest = Example().Digest();
  EXPECT_EQ(Example().Digest(), digest);
  const std::vector<std::function<void(StepLayout&)>> changes = {
      [](StepLayout& l) { ++l.step; },
      [](StepLayout& l) { ++l.num_replicas; },
      [](StepLayout& l) { ++l.num_microbatches; },
      [](StepLayout& l) { ++l.group_size; },
      [](StepLayout& l) { l.encoders[1].name = "sound"; },
      [](StepLayout& l) { ++l.encoders[0].unit.input_rows; },
      [](StepLayout& l) { ++l.encoders[0].unit.output_rows; },
      [](StepLayout& l) { l.encoders.pop_back(); },
      [](StepLayout& l) { ++l.microbatches[1].documents[0]; },
      [](StepLayout& l) { l.microbatches[0].documents = {7}; },
      [](StepLayout& l) { ++l.microbatches[1].loss_tokens; },
      [](StepLayout& l) { l.microbatches.emplace_back(); },
      [](StepLayout& l) { ++l.items[0].encoder; },
      [](StepLayout& l) { ++l.items[0].group; },
      [](StepLayout& l) { ++l.items[0].replica; },
      [](StepLayout& l) { ++l.items[0].microbatch; },
      [](StepLayout& l) { ++l.items[0].lane; },
      [](StepLayout& l) { ++l.items[0].sample; },
      [](StepLayout& l) { ++l.items[0].encoder_rank; },
      [](StepLayout& l) { ++l.items[0].num_shards; },
      [](StepLayout& l) { ++l.items[0].input_rows; },
      [](StepLayout& l) { ++l.items[0].output_rows; },
      [](StepLayout& l) { l.items.emplace_back(); },
      [](StepLayout& l) { ++l.routes[0].item; },
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
