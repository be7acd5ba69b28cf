#include "trainer/pipeline/row_exchange.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/base/status.h"
#include "runtime/device/page_pool.h"
#include "tests/support/run_ranks.h"
#include "tests/support/test_device.h"

namespace omni::trainer {
namespace {

using parallel::StepLayout;
using testing::TestDevice;

// Two stages of two ranks that share a ring; one encoder with a DeepStack feature.
constexpr int32_t kRanks = 4, kStageRanks = 2, kMicrobatches = 4, kFeatures = 2;
constexpr int64_t kHidden = 48, kRowBytes = kFeatures * kHidden * 8;

parallel::Layout TestLayout() {
  parallel::ParallelConfig config{.workers = kRanks, .pipeline = 2, .layers = {}};
  config.context = kStageRanks;
  config.encoders = {{"vision", {.sequence = 2}}};
  auto layout = parallel::Layout::Create(ConfigNode(), config,
                                         {.layers = 2, .heads = 2, .kv_heads = 2}, {"vision"});
  OMNI_CHECK_OK(layout.status());
  return *std::move(layout);
}

// Microbatches of unlike lengths, the last one without pictures; in each other one a picture that
// two ranks split.
StepLayout TestStep(const parallel::DataLayout& data) {
  StepLayout step{.num_replicas = 1,
                  .num_microbatches = kMicrobatches,
                  .group_size = data.group_size,
                  .encoders = {{"vision", data.encoders[0].unit}},
                  .microbatches = {},
                  .items = {},
                  .routes = {}};
  int32_t next_rank = 1;
  for (int32_t m = 0; m < kMicrobatches; ++m) {
    int32_t token = 3;
    for (int32_t i = 0; m + 1 < kMicrobatches && i < 4 + m; ++i) {
      const bool is_split = i == 1 && m % 2 == 0;
      const int64_t rows = 61 + 13 * i + 29 * m;
      const auto item = static_cast<int32_t>(step.items.size());
      step.items.push_back({.group = m / data.group_size,
                            .microbatch = m,
                            .sample = i,
                            .encoder_rank = is_split ? 2 : next_rank++ % kRanks,
                            .num_shards = is_split ? 2 : 1,
                            .input_rows = rows,
                            .output_rows = rows});
      // In two runs of tokens.
      step.routes.push_back({.item = item, .num_rows = 20, .position = token});
      step.routes.push_back(
          {.item = item, .first_row = 20, .num_rows = rows - 20, .position = token + 22});
      token += static_cast<int32_t>(rows) + 25;
    }
    step.microbatches.push_back({.documents = {token}});
  }
  return step;
}

// Of a rank's output row.
double ValueOf(int32_t rank, int64_t row, int64_t feature, int64_t column) {
  return static_cast<double>(rank) * 1e4 + static_cast<double>(row) +
         static_cast<double>(feature) / 4 + static_cast<double>(column) / 1024;
}
double GradOf(double value) { return 3 * value + 1; }

class OneRank {
 public:
  OneRank(DeviceKind kind, Communicator& comm, int32_t rank, double staging, double whole_mib)
      : rank_(rank),
        device_(kind, {.reserved_bytes = 64 << 20, .num_threads = 1}),
        layout_(TestLayout()),
        data_(parallel::DataLayout::Of(layout_, {{.input_rows = 1, .output_rows = 1}})),
        step_(TestStep(data_)),
        plan_(parallel::PlanReshard(step_, data_, rank)) {
    auto groups = RankGroups::Create(&comm, layout_, {2}, device_.stream());
    OMNI_CHECK_OK(groups.status());
    groups_ = *std::move(groups);
    rows_ = std::make_unique<RowExchange>(RowExchange::Options{.device = device_.device(),
                                                               .groups = *groups_,
                                                               .data = data_,
                                                               .rank = rank,
                                                               .hidden = kHidden,
                                                               .dtype = DType::kFloat64,
                                                               .num_deepstack = {kFeatures - 1},
                                                               .staging = staging,
                                                               .whole_mib = whole_mib,
                                                               .deadline = absl::Seconds(30)});
    rows_->Begin(plan_);
  }

  absl::Status Run() {
    for (int32_t group = 0; group < step_.num_groups(); ++group) {
      OMNI_RETURN_IF_ERROR(is_first() ? RunFirst(group) : RunSecond(group));
      rows_->Sweep();
    }
    return rows_->Drain();
  }

  bool is_first() const { return rank_ < kStageRanks; }
  const parallel::ReshardGroup& plan(int32_t group) const { return plan_.groups[0][group]; }
  std::string Describe() const {
    std::string text = absl::StrCat("rank ", rank_, " sends");
    for (const auto& group : plan_.groups[0]) {
      for (const auto& message : group.send) {
        absl::StrAppend(&text, " ", message.num_rows(), " to ", message.rank);
      }
    }
    return text;
  }
  int64_t staged_bytes_max() const { return rows_->staged_bytes_max(); }
  // On the second stage, by group: most that the pool had beyond encoded rows and, of gradients,
  // beyond where they end.
  std::vector<int64_t> rows_peak, grads_peak;

 private:
  std::vector<std::vector<TensorView>> Encoded(int32_t group) {
    int64_t whole = 0;
    for (const StepLayout::Item& item : step_.items) {
      if (item.group == group && item.num_shards == 1 && item.encoder_rank == rank_) {
        whole += item.output_rows;
      }
    }
    std::vector<std::vector<TensorView>> features;
    for (int64_t feature = 0; feature < kFeatures; ++feature) {
      features.emplace_back();
      for (const auto& [begin, end] :
           {std::pair(int64_t{0}, whole), std::pair(whole, plan(group).output_rows)}) {
        std::vector<double> values;
        for (int64_t row = begin; row < end; ++row) {
          for (int64_t c = 0; c < kHidden; ++c) values.push_back(ValueOf(rank_, row, feature, c));
        }
        features.back().push_back(begin == end ? TensorView()
                                               : device_.Upload(values, {end - begin, kHidden}));
      }
    }
    return features;
  }

  absl::Status RunFirst(int32_t group) {
    ExecContext ctx = device_.ctx();
    TransferBatch batch;
    rows_->ReceiveRows(0, group, /*stage=*/1, &batch);
    batch.Post();
    rows_->SetEncoded(0, group, Encoded(group));
    OMNI_RETURN_IF_ERROR(rows_->ExchangeRows(ctx, 0, group));
    for (int32_t m = group * 2; m < group * 2 + 2; ++m) OMNI_RETURN_IF_ERROR(Use(group, m));
    TransferBatch grads;
    rows_->SendGrads(0, group, /*stage=*/1, &grads);
    grads.Post();
    OMNI_RETURN_IF_ERROR(rows_->ExchangeGrads(ctx, 0, group));
    return CheckGrads(group);
  }

  // What has come for a microbatch, against what its senders' own plans say they send.
  absl::Status Use(int32_t group, int32_t microbatch) {
    std::vector<TensorView> features;
    OMNI_RETURN_IF_ERROR(rows_->TakeRows(0, group, microbatch, &features));
    std::vector<std::vector<double>> expected(kFeatures);
    for (const parallel::RowMessage& message : plan(group).receive) {
      const parallel::ReshardPlan other = parallel::PlanReshard(step_, data_, message.rank);
      const auto& sent = other.groups[0][group].send;
      const auto to_here = std::find_if(sent.begin(), sent.end(),
                                        [&](const auto& send) { return send.rank == rank_; });
      for (int64_t i = 0; i < message.num_rows(); ++i) {
        if (message.microbatches[i] != microbatch) continue;
        for (int64_t feature = 0; feature < kFeatures; ++feature) {
          for (int64_t c = 0; c < kHidden; ++c) {
            expected[feature].push_back(ValueOf(message.rank, to_here->rows[i], feature, c));
          }
        }
      }
    }
    EXPECT_EQ(features.empty(), microbatch + 1 == kMicrobatches);
    std::vector<TensorView> grads;
    for (size_t i = 0; i < features.size(); ++i) {
      EXPECT_EQ(device_.Read<double>(features[i]), expected[i]) << "microbatch " << microbatch;
      for (double& value : expected[i]) value = GradOf(value);
      grads.push_back(device_.Upload(expected[i], {features[i].size(0), kHidden}));
    }
    ExecContext ctx = device_.ctx();
    if (!grads.empty()) rows_->GiveGrads(ctx, 0, group, microbatch, grads);
    return absl::OkStatus();
  }

  absl::Status RunSecond(int32_t group) {
    ExecContext ctx = device_.ctx();
    PagePool& pool = device_.device().pool();
    rows_->SetEncoded(0, group, Encoded(group));
    const int64_t used = pool.stats().used_bytes;
    pool.ResetHighWater();
    TransferBatch batch;
    OMNI_RETURN_IF_ERROR(rows_->SendRows(ctx, 0, group, &batch));
    batch.Post();
    rows_peak.push_back(pool.stats().high_water_bytes - used);
    while (pool.stats().used_bytes > used && groups_->status().ok()) {  // until they have left
      rows_->Sweep();
      absl::SleepFor(absl::Milliseconds(1));
    }
    pool.ResetHighWater();
    TransferBatch grads;
    OMNI_RETURN_IF_ERROR(rows_->ReceiveGrads(ctx, 0, group, &grads));
    grads.Post();
    absl::Status status = CheckGrads(group);
    grads_peak.push_back(pool.stats().high_water_bytes - used -
                         plan(group).output_rows * kRowBytes);
    return status;
  }

  absl::Status CheckGrads(int32_t group) {
    std::vector<TensorView> features;
    ExecContext ctx = device_.ctx();
    OMNI_RETURN_IF_ERROR(rows_->TakeGrads(ctx, 0, group, &features));
    for (size_t feature = 0; feature < features.size(); ++feature) {
      std::vector<double> expected;
      for (int64_t row = 0; row < plan(group).output_rows; ++row) {
        for (int64_t c = 0; c < kHidden; ++c) {
          expected.push_back(GradOf(ValueOf(rank_, row, static_cast<int64_t>(feature), c)));
        }
      }
      EXPECT_EQ(device_.Read<double>(features[feature]), expected) << "group " << group;
    }
    EXPECT_EQ(features.size(), plan(group).output_rows == 0 ? 0u : size_t{kFeatures});
    return absl::OkStatus();
  }

  const int32_t rank_;
  TestDevice device_;
  const parallel::Layout layout_;
  const parallel::DataLayout data_;
  const StepLayout step_;
  const parallel::ReshardPlan plan_;
  std::unique_ptr<RankGroups> groups_;
  std::unique_ptr<RowExchange> rows_;
};

struct Way {
  std::string name;
  DeviceKind device;
  std::string engine;
};

class RowExchangeTest : public ::testing::TestWithParam<Way> {
 protected:
  void Run(double staging, double whole_mib, const std::function<void(const OneRank&)>& check) {
    const absl::Status status = test::RunRanks(
        kRanks, GetParam().engine, [&](Communicator& comm, int32_t rank) -> absl::Status {
          OneRank one(GetParam().device, comm, rank, staging, whole_mib);
          OMNI_RETURN_IF_ERROR(one.Run());
          check(one);
          return absl::OkStatus();
        });
    EXPECT_TRUE(status.ok()) << status;
  }
};

INSTANTIATE_TEST_SUITE_P(Ways, RowExchangeTest,
                         ::testing::Values(Way{"Shm", DeviceKind::kCpu, "shm"},
                                           Way{"Tcp", DeviceKind::kCpu, "tcp"},
                                           Way{"Async", DeviceKind::kCpuAsync, "shm"}),
                         [](const auto& info) { return info.param.name; });

// Pages of buffers are whole ones; at most three are alive.
constexpr int64_t kSlack = 3 * kPageBytes;

int64_t RowsToOthers(const OneRank& one, int32_t group) {
  int64_t rows = 0;
  for (const parallel::RowMessage& message : one.plan(group).send) rows += message.num_rows();
  return rows;  // the second stage has none for itself
}

TEST_P(RowExchangeTest, AllAtOnceStagesTheWhole) {
  for (const auto& [staging, whole_mib] : {std::pair(1.0, 0.0), std::pair(0.1, 64.0)}) {
    Run(staging, whole_mib, [](const OneRank& one) {
      for (size_t group = 0; group < one.rows_peak.size(); ++group) {
        const int64_t whole = RowsToOthers(one, static_cast<int32_t>(group)) * kRowBytes;
        EXPECT_GE(one.rows_peak[group], whole);
        EXPECT_LE(one.rows_peak[group], whole + kSlack);
      }
    });
  }
}

TEST_P(RowExchangeTest, RoundsStageTheStatedFraction) {
  for (const double staging : {0.5, 0.25, 0.1}) {
    Run(staging, /*whole_mib=*/0, [&](const OneRank& one) {
      int64_t bound_max = 0;
      for (int32_t group = 0; group < 2; ++group) {
        const parallel::ReshardGroup& plan = one.plan(group);
        EXPECT_GT(plan.rows_max, 300);
        const int64_t bound =
            static_cast<int64_t>(staging * static_cast<double>(plan.rows_max * kRowBytes)) +
            2 * static_cast<int64_t>(plan.send.size()) * kRowBytes;
        bound_max = std::max(bound_max, bound);
        if (one.is_first()) continue;
        // Of all that the pool hands out, not only of what RowExchange counts.
        EXPECT_GT(RowsToOthers(one, group), 0);
        EXPECT_GT(one.rows_peak[group], 0);
        EXPECT_LE(one.rows_peak[group], bound + kSlack) << staging;
        EXPECT_LE(one.grads_peak[group], bound + kSlack) << staging;
      }
      EXPECT_GT(one.staged_bytes_max(), 0) << one.Describe();
      EXPECT_LE(one.staged_bytes_max(), bound_max);
    });
  }
}

TEST_P(RowExchangeTest, RoundsOfARow) {
  Run(/*staging=*/1e-6, /*whole_mib=*/0, [](const OneRank& one) {
    for (int32_t group = 0; group < 2 && !one.is_first(); ++group) {
      EXPECT_LE(one.rows_peak[group],
                2 * static_cast<int64_t>(one.plan(group).send.size()) * kRowBytes + kSlack);
    }
  });
}

}  // namespace
}  // namespace omni::trainer
