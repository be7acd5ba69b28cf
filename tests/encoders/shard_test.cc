// Samples split over a sequence group: every tower's outputs and gradients are those of one rank.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "runtime/base/status.h"
#include "tests/encoders/tower_cases.h"
#include "tests/support/run_ranks.h"

namespace omni {
namespace {

using parallel::MediaItem;
using parallel::MediaPack;
using parallel::SampleShard;
using parallel::UnitRange;
using testing::kTowerOutput;
using testing::RandomPack;
using testing::TowerCase;
using testing::TowerHarness;
using Values = std::vector<double>;
using Shapes = std::vector<std::vector<int32_t>>;

// Four heads each; windows of 2 x 2 cells in two layers of three.
constexpr TowerCase kSplitTowers[] = {
    {"qwen_vision", "vision",
     "{kind: qwen_vision, hidden: 16, layers: 3, heads: 4, ffn: 12, patch: 4, merge: 2, "
     "temporal_patch: 2, window: 16, full_attention_layers: [1]}",
     false},
    {"qwen3_vision", "vision",
     "{kind: qwen3_vision, hidden: 16, layers: 3, heads: 4, ffn: 12, patch: 4, merge: 2, "
     "temporal_patch: 2, position_side: 5, deepstack_layers: [0, 1]}",
     false},
    {"seed_vision", "vision",
     "{kind: seed_vision, hidden: 16, layers: 2, heads: 4, ffn: 24, patch: 4, merge: 2}", false},
    {"qwen_audio", "audio",
     "{kind: qwen_audio, mel_bands: 8, hidden: 16, layers: 2, heads: 4, ffn: 12, chunk_frames: 8}",
     true},
    // Three steps a chunk: pooled pairs straddle chunks.
    {"qwen_audio", "audio",
     "{kind: qwen_audio, mel_bands: 8, hidden: 16, layers: 2, heads: 4, ffn: 12, chunk_frames: 6}",
     true},
    {"qwen2_audio", "audio",
     "{kind: qwen2_audio, mel_bands: 8, hidden: 16, layers: 2, heads: 4, ffn: 12, "
     "max_positions: 2400}",
     true},
    // The longest sound below fills the window.
    {"qwen2_audio", "audio",
     "{kind: qwen2_audio, mel_bands: 8, hidden: 16, layers: 2, heads: 4, ffn: 12, "
     "max_positions: 25}",
     true},
};

struct Group {
  int32_t size = 1;
  const char* engine = "shm";
  DeviceKind device = DeviceKind::kCpu;
  parallel::Recompute recompute = parallel::Recompute::kNone;
};

// One to three items whose sides are no multiples of a window, some of one unit only.
std::vector<Shapes> SplitShapes(bool is_audio) {
  if (is_audio) return {{{29, 29, 0}}, {{1, 1, 0}, {50, 50, 0}, {13, 13, 0}}, {{8, 8, 0}}};
  return {{{1, 6, 10}}, {{2, 6, 4}, {1, 2, 2}, {1, 10, 6}}, {{1, 2, 2}}};
}

Values Slice(const Values& values, const UnitRange& rows, int64_t first_row, int64_t width) {
  return {values.begin() + (first_row + rows.begin) * width,
          values.begin() + (first_row + rows.end) * width};
}

// A rank's rows of one output of the whole pack, items in order.
Values OwnRows(const Values& all, const MediaPack& pack, const parallel::SampleUnit& unit,
               int32_t shard, int32_t num_shards) {
  Values own;
  int64_t first = 0;
  for (const MediaItem& item : pack.items) {
    const Values part = Slice(all, unit.OutputRows(item, shard, num_shards), first, kTowerOutput);
    own.insert(own.end(), part.begin(), part.end());
    first += item.num_output_rows;
  }
  return own;
}

// The sequence group of `comm`: as many ulysses ranks as divide the heads, the rest a ring.
struct SequenceGroup {
  std::unique_ptr<Communicator> ulysses, ring;
  SampleShard shard;
};
absl::StatusOr<SequenceGroup> Split(Communicator& comm, int32_t heads) {
  const int32_t parts = std::gcd(comm.size(), heads), rings = comm.size() / parts;
  SequenceGroup group;
  for (int32_t ring = 0; ring < rings; ++ring) {
    std::vector<int32_t> ranks(parts);
    std::iota(ranks.begin(), ranks.end(), ring * parts);
    OMNI_ASSIGN_OR_RETURN(auto split, comm.Split(ranks, "ulysses"));
    if (split != nullptr) group.ulysses = std::move(split);
  }
  for (int32_t part = 0; part < parts; ++part) {
    std::vector<int32_t> ranks;
    for (int32_t ring = 0; ring < rings; ++ring) ranks.push_back(ring * parts + part);
    OMNI_ASSIGN_OR_RETURN(auto split, comm.Split(ranks, "ring"));
    if (split != nullptr) group.ring = std::move(split);
  }
  group.shard.ulysses.comm = group.ulysses.get();
  group.shard.ring.comm = group.ring.get();
  EXPECT_EQ(group.shard.index(), comm.rank());
  EXPECT_EQ(group.shard.num_shards(), comm.size());
  return group;
}

// How many calls a communicator has seen.
int64_t NumCalls(const Communicator* comm) {
  if (comm->RecentCalls().empty()) return 0;
  const std::string last = comm->RecentCalls().back();
  int64_t number = 0;
  EXPECT_TRUE(absl::SimpleAtoi(last.substr(1, last.find(' ') - 1), &number)) << last;
  return number;
}

void ExpectNear(const Values& found, const Values& expected, double tolerance,
                const std::string& what) {
  ASSERT_EQ(found.size(), expected.size()) << what;
  double size = 1.0, worst = 0.0;
  for (const double value : expected) size = std::max(size, std::abs(value));
  for (size_t i = 0; i < found.size(); ++i) {
    worst = std::max(worst, std::abs(found[i] - expected[i]));
  }
  EXPECT_LE(worst, tolerance * size) << what;
}

class ShardTest : public ::testing::TestWithParam<TowerCase> {
 protected:
  static TowerHarness Harness() {
    return TowerHarness(GetParam().yaml, DType::kFloat64, GetParam().name, kTowerOutput);
  }
  static MediaPack Pack(const TowerHarness& harness, Shapes shapes) {
    const encoders::InputGeometry geometry = harness.encoder().geometry();
    for (std::vector<int32_t>& shape : shapes) {
      if (geometry.mel_context == 0) break;
      shape[0] = std::min(shape[0], geometry.mel_window);
      shape[1] = std::min(shape[0] + geometry.mel_context, geometry.mel_window);
    }
    return RandomPack(harness.encoder(), GetParam().is_audio, shapes);
  }
  static std::vector<Values> OutputGrads(const TowerHarness::Outcome& outcome) {
    std::vector<Values> grads;
    for (const Values& output : outcome.outputs) {
      const CounterRng rng(17, grads.size());
      grads.emplace_back();
      for (size_t i = 0; i < output.size(); ++i) grads.back().push_back(rng.Normal(i));
    }
    return grads;
  }

  // What each rank of the group gets, with gradients of its own rows.
  static std::vector<TowerHarness::Outcome> RunSplit(
      const Group& group, const MediaPack& pack, const std::vector<Values>& output_grads,
      const std::function<bool(const std::string&)>& trains = nullptr,
      std::vector<int64_t>* calls = nullptr) {
    std::vector<TowerHarness::Outcome> outcomes(group.size);
    if (calls != nullptr) calls->assign(group.size, 0);
    const absl::Status status =
        test::RunRanks(group.size, group.engine, [&](Communicator& comm, int32_t rank) {
          TowerHarness harness = Harness();
          harness.Train(trains);
          const int32_t heads = harness.encoder().sequence_heads();
          OMNI_ASSIGN_OR_RETURN(const SequenceGroup split, Split(comm, heads));
          const parallel::SampleUnit unit = harness.encoder().geometry().unit;
          const MediaPack part = ShardPack(pack, unit, rank, group.size);
          std::vector<Values> own_grads;
          for (const Values& grads : output_grads) {
            own_grads.push_back(OwnRows(grads, pack, unit, rank, group.size));
          }
          outcomes[rank] =
              harness.Run(part, own_grads,
                          {.encode = {.shard = split.shard, .recompute = group.recompute},
                           .device = group.device});
          if (calls != nullptr) {
            (*calls)[rank] = NumCalls(split.ulysses.get()) + NumCalls(split.ring.get());
          }
          OMNI_RETURN_IF_ERROR(split.ulysses->status());
          return split.ring->status();
        });
    EXPECT_TRUE(status.ok()) << status;
    return outcomes;
  }

  static void ExpectAsOnOneRank(const Group& group, const Shapes& shapes) {
    TowerHarness harness = Harness();
    const MediaPack pack = Pack(harness, shapes);
    const auto output_grads = OutputGrads(harness.Run(pack));
    const TowerHarness::Outcome whole = harness.Run(pack, output_grads);
    const auto parts = RunSplit(group, pack, output_grads);
    const std::string what =
        absl::StrCat(GetParam().kind, " over ", group.size, ", ", shapes.size(), " items");
    const parallel::SampleUnit unit = harness.encoder().geometry().unit;
    for (int32_t rank = 0; rank < group.size; ++rank) {
      ASSERT_EQ(parts[rank].outputs.size(), whole.outputs.size()) << what;
      for (size_t o = 0; o < whole.outputs.size(); ++o) {
        ExpectNear(parts[rank].outputs[o], OwnRows(whole.outputs[o], pack, unit, rank, group.size),
                   1e-12, absl::StrCat(what, ", output ", o, " of rank ", rank));
      }
    }
    for (const auto& [path, expected] : whole.grads) {
      Values sum(expected.size(), 0.0);
      for (const auto& part : parts) {
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += part.grads.at(path)[i];
      }
      ExpectNear(sum, expected, 1e-10, absl::StrCat(what, ", gradient of ", path));
    }
  }
};

TEST_P(ShardTest, OutputsAndGradientsAreThoseOfOneRank) {
  for (const int32_t size : {1, 2, 4}) {
    for (const Shapes& shapes : SplitShapes(GetParam().is_audio)) {
      ExpectAsOnOneRank({.size = size}, shapes);
    }
  }
}

// Four heads: all three ranks a ring, or a ring of three pairs.
TEST_P(ShardTest, WhereHeadsDoNotDivideTheRestIsARing) {
  for (const int32_t size : {3, 6}) {
    for (const Shapes& shapes : SplitShapes(GetParam().is_audio)) {
      ExpectAsOnOneRank({.size = size}, shapes);
    }
  }
}

TEST_P(ShardTest, AlsoOverTcpAndOnStreams) {
  const Shapes shapes = SplitShapes(GetParam().is_audio)[1];
  ExpectAsOnOneRank({.size = 2, .engine = "tcp"}, shapes);
  ExpectAsOnOneRank({.size = 4, .device = DeviceKind::kCpuAsync}, shapes);
  ExpectAsOnOneRank({.size = 6, .device = DeviceKind::kCpuAsync}, shapes);
}

TEST_P(ShardTest, RecomputingChangesNoBitAndKeepsLess) {
  TowerHarness harness = Harness();
  const MediaPack pack = Pack(harness, SplitShapes(GetParam().is_audio)[1]);
  const auto output_grads = OutputGrads(harness.Run(pack));
  for (const int32_t size : {1, 2, 6}) {
    const auto kept = RunSplit({.size = size}, pack, output_grads);
    for (const auto recompute : {parallel::Recompute::kSelective, parallel::Recompute::kFull}) {
      const auto again = RunSplit({.size = size, .recompute = recompute}, pack, output_grads);
      for (int32_t rank = 0; rank < size; ++rank) {
        EXPECT_EQ(again[rank].outputs, kept[rank].outputs);
        EXPECT_EQ(again[rank].grads, kept[rank].grads);
        // A rank may have no rows of any sound, and then keeps nothing anyway.
        EXPECT_TRUE(again[rank].kept_bytes < kept[rank].kept_bytes || kept[rank].kept_bytes == 0);
      }
    }
  }
}

// What one rank cannot hold, several can.
TEST_P(ShardTest, MemoryIsShared) {
  TowerHarness harness = Harness();
  const int32_t window = harness.encoder().geometry().mel_window;
  if (window > 0 && window < 4800) GTEST_SKIP() << "its sounds fit a few pages";
  const int32_t frames = window > 0 ? window : 2400;
  const MediaPack pack =
      Pack(harness, GetParam().is_audio ? Shapes{{frames, frames, 0}} : Shapes{{1, 40, 48}});
  const auto output_grads = OutputGrads(harness.Run(pack));
  const TowerHarness::Outcome whole = harness.Run(pack, output_grads);
  for (const int32_t size : {2, 6}) {
    for (const auto& part : RunSplit({.size = size}, pack, output_grads)) {
      const auto share = [size](int64_t bytes) { return static_cast<double>(bytes) / size; };
      // Tensors are whole pages, and indices of all rows are held as well.
      EXPECT_LT(part.kept_bytes, 1.25 * share(whole.kept_bytes)) << size;
      // While it records, a tape also holds what the exchanges were given.
      EXPECT_LT(part.high_water_bytes, 1.35 * share(whole.high_water_bytes)) << size;
    }
  }
}

// Frozen parts: a property of the plan, so whether a backward runs is the same on all ranks.
TEST_P(ShardTest, FrozenPartsKeepNothingAndExchangeNothingBack) {
  TowerHarness harness = Harness();
  const MediaPack pack = Pack(harness, SplitShapes(GetParam().is_audio)[1]);
  const auto output_grads = OutputGrads(harness.Run(pack));
  std::vector<int64_t> all_calls, projector_calls, frozen_calls;
  const auto all = RunSplit({.size = 2}, pack, output_grads, nullptr, &all_calls);
  const auto is_projector = [](const std::string& path) {
    return absl::StrContains(path, ".merger.") || absl::StrContains(path, ".projector.");
  };
  const auto projector = RunSplit({.size = 2}, pack, output_grads, is_projector, &projector_calls);
  const auto none = [](const std::string&) { return false; };
  const auto frozen = RunSplit({.size = 2}, pack, output_grads, none, &frozen_calls);
  for (int32_t rank = 0; rank < 2; ++rank) {
    EXPECT_EQ(frozen[rank].outputs, all[rank].outputs);
    EXPECT_TRUE(frozen[rank].grads.empty());
    for (const auto& [path, grad] : projector[rank].grads) {
      EXPECT_EQ(grad, all[rank].grads.at(path)) << path;
    }
    // The outputs, a few pages each, and nothing else.
    int64_t output_bytes = 0;
    for (const Values& output : frozen[rank].outputs) {
      const int64_t bytes = static_cast<int64_t>(output.size() * sizeof(double));
      output_bytes += std::max<int64_t>(1, (bytes + kPageBytes - 1) / kPageBytes) * kPageBytes;
    }
    EXPECT_LE(frozen[rank].kept_bytes, output_bytes);
    EXPECT_EQ(projector_calls[rank], frozen_calls[rank]);
    if (std::string(GetParam().kind) == "qwen_audio") {
      EXPECT_EQ(all_calls[rank], 0);  // chunks attend by themselves
    } else {
      EXPECT_GT(frozen_calls[rank], 0);
      EXPECT_EQ(all_calls[rank], 2 * frozen_calls[rank]);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Towers, ShardTest, ::testing::ValuesIn(kSplitTowers),
                         [](const ::testing::TestParamInfo<TowerCase>& info) {
                           return absl::StrCat(testing::TowerName(info), info.index);
                         });

}  // namespace
}  // namespace omni
