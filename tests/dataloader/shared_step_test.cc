// A step shared out over ranks in any layout is the step that one rank alone has.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "dataloader/loader.h"
#include "runtime/base/rng.h"
#include "tests/dataloader/support.h"

namespace omni::dataloader {
namespace {

using parallel::DataLayout;
using parallel::MediaItem;
using parallel::StepLayout;
using parallel::UnitRange;

// Remembers whose media were asked for.
class CountingStore : public FakeStore {
 public:
  using FakeStore::FakeStore;
  absl::StatusOr<std::string> LoadMedia(int64_t index, int32_t media_index) const override {
    const std::lock_guard lock(mutex_);
    ++loads_;
    return FakeStore::LoadMedia(index, media_index);
  }
  int64_t loads() const {
    const std::lock_guard lock(mutex_);
    return loads_;
  }

 private:
  mutable std::mutex mutex_;
  mutable int64_t loads_ = 0;
};

using Stores = std::map<std::string, std::shared_ptr<const SampleStore>>;

// Two pictures in one sample, or a picture and a sound.
FakeSample Both(FakeSample sample, FakeSample other) {
  sample.conversation.messages[0].parts.insert(sample.conversation.messages[0].parts.begin(),
                                               other.conversation.messages[0].parts[0]);
  sample.media.insert(sample.media.begin(), other.media[0]);
  sample.media_info.insert(sample.media_info.begin(), other.media_info[0]);
  return sample;
}

// `torn`: every third picture, and the second medium of every fourth pair, does not decode.
Stores Corpus(bool torn) {
  std::vector<FakeSample> pictures, sounds, pairs, texts;
  for (int i = 0; i < 26; ++i) pictures.push_back(Picture(28, 28 * (1 + i % 7), 5 * i + 3));
  for (int i = 0; i < 11; ++i) sounds.push_back(Sound(4000 + 2111 * i, 0.05f * (i + 1)));
  for (int i = 0; i < 12; ++i) {
    const FakeSample picture = Picture(56, 28 * (1 + i % 4), 7 * i + 2);
    pairs.push_back(i % 2 == 0 ? Both(picture, Picture(28, 56, 9 * i + 1))
                               : Both(picture, Sound(5000 + 900 * i, 0.1f)));
  }
  for (int i = 0; i < 17; ++i) texts.push_back(Question("fox", absl::StrCat(i)));
  if (torn) {
    for (int i = 0; i < 26; i += 3) pictures[i].media[0].resize(60);
    for (int i = 0; i < 12; i += 4) pairs[i].media[1].resize(60);
  }
  return {{"image", std::make_shared<CountingStore>(std::move(pictures), "image.tar")},
          {"audio", std::make_shared<CountingStore>(std::move(sounds), "audio.tar")},
          {"pair", std::make_shared<CountingStore>(std::move(pairs), "pair.tar")},
          {"text", std::make_shared<CountingStore>(std::move(texts), "text.tar")}};
}

int64_t Loads(const Stores& stores) {
  int64_t sum = 0;
  for (const auto& [name, store] : stores) {
    sum += static_cast<const CountingStore&>(*store).loads();
  }
  return sum;
}

DataConfig Config(int32_t lanes, int32_t sequences) {
  DataConfig config = TestConfig({{"image", 3}, {"audio", 2}, {"pair", 2}, {"text", 1}});
  config.lanes = lanes;
  config.micro_batch_sequences = sequences;
  config.audio_mask = {.frames = 5, .bands = 10};
  return config;
}

// Units as encoders have them: a cell of 2 x 2 patches; here 20 frames of sound for 5 rows.
constexpr parallel::SampleUnit kVisionUnit = {.input_rows = 4, .output_rows = 1};
constexpr parallel::SampleUnit kAudioUnit = {.input_rows = 20, .output_rows = 5};

std::vector<DataLayout> Layouts() {
  const auto encoders = [](int32_t vision, int64_t vision_threshold, int32_t audio,
                           int64_t audio_threshold) {
    return std::vector<DataLayout::Encoder>{
        {"audio", audio, audio_threshold, kAudioUnit},  // not in the loader's own order
        {"vision", vision, vision_threshold, kVisionUnit}};
  };
  using parallel::kThresholdAuto;
  using parallel::kThresholdNone;
  return {
      DataLayout::DataParallel(1),
      DataLayout::DataParallel(3),
      // Pipelines, groups of several microbatches.
      {.stages = 3, .group_size = 3, .encoders = encoders(1, kThresholdAuto, 1, kThresholdAuto)},
      {.stages = 2, .replicas = 2, .group_size = 4, .encoders = encoders(1, 0, 1, 0)},
      {.stages = 2,
       .replicas = 2,
       .group_size = 2,
       .joint = parallel::JointKind::kFirstStage,
       .encoders = encoders(1, 0, 1, 0)},
      // Several ranks a replica; everything is split, long ones are, nothing is.
      {.replicas = 1, .sequence = {.tensor = 2}, .encoders = encoders(2, 0, 2, 0)},
      {.stages = 2,
       .replicas = 2,
       .sequence = {.ring = 2, .tensor = 2},
       .group_size = 2,
       .encoders = encoders(2, 8, 4, 60)},
      {.replicas = 2,
       .sequence = {.ring = 2},
       .encoders = encoders(2, kThresholdAuto, 2, kThresholdNone)},
      // A sequence group spans replicas, which have three ranks each; more replicas than lanes.
      {.replicas = 2, .sequence = {.ulysses = 3}, .encoders = encoders(2, 0, 6, 40)},
      {.stages = 2, .replicas = 8, .group_size = 2, .encoders = encoders(4, 8, 8, 0)},
  };
}

std::unique_ptr<Loader> Start(const DataConfig& config, const Stores& stores,
                              const DataLayout& data, int32_t rank) {
  parallel::EncodeCosts costs{
      .item = [](int32_t, const MediaItem& item) { return item.num_input_rows * (item.h + 1); },
      .split = [](int32_t, const MediaItem&) { return int64_t{5}; }};
  auto loader = Loader::Create(MakePlanner(config, stores),
                               {.rank = rank, .data = data, .costs = costs, .start = {}});
  OMNI_CHECK_OK(loader.status());
  return *std::move(loader);
}

StepBatch NextBatch(Loader& loader) {
  auto batch = loader.Next(absl::Minutes(2));
  OMNI_CHECK_OK(batch.status());
  return *std::move(batch);
}

// One medium of one sample, put together from what ranks encode.
struct Medium {
  std::vector<uint8_t> payload;
  std::vector<int32_t> tokens;  // of the lane
  bool operator==(const Medium&) const = default;
};
struct SampleData {
  std::string id;
  std::vector<int32_t> token_ids, targets;
  std::vector<float> positions;
  int64_t loss_tokens = 0;
  bool is_blanked = false;
  bool operator==(const SampleData&) const = default;
};
// (lane, sample), and the number of the medium within it: a step, however it is laid out.
struct WholeStep {
  std::map<std::pair<int32_t, int32_t>, SampleData> samples;
  std::map<std::pair<std::pair<int32_t, int32_t>, int32_t>, Medium> media;
  std::multiset<std::string> faults;
};

void AddTokens(const StepBatch& batch, WholeStep* step) {
  for (const Microbatch& microbatch : batch.microbatches) {
    EXPECT_TRUE(microbatch.media.empty());
    const parallel::TokenPack& tokens = microbatch.tokens;
    const int64_t n = tokens.num_tokens();
    for (const SampleRef& sample : microbatch.samples) {
      SampleData data{.id = sample.sample_id,
                      .loss_tokens = sample.loss_tokens,
                      .is_blanked = sample.is_blanked};
      for (int64_t t = sample.token_begin; t < sample.token_end; ++t) {
        data.token_ids.push_back(tokens.token_ids[t]);
        data.targets.push_back(tokens.targets[t]);
        for (int axis = 0; axis < 3; ++axis)
          data.positions.push_back(tokens.positions[axis * n + t]);
      }
      const auto [at, is_new] = step->samples.emplace(std::pair(sample.lane, sample.sample), data);
      EXPECT_TRUE(is_new || at->second == data) << "ranks of a replica differ";
    }
  }
}

// The number of an item within its sample.
int32_t NumberOf(const StepLayout& layout, int32_t item) {
  int32_t number = 0;
  while (item - number > 0 && layout.items[item - number - 1].lane == layout.items[item].lane &&
         layout.items[item - number - 1].sample == layout.items[item].sample) {
    ++number;
  }
  return number;
}

// Parts must be added in the order of their shards: ranks ascending.
void AddMedia(const StepBatch& batch, const DataLayout& data, int32_t rank,
              const std::map<std::pair<int32_t, int32_t>, int64_t>& sample_begins,
              WholeStep* step) {
  for (size_t e = 0; e < batch.encodes.size(); ++e) {
    ASSERT_EQ(static_cast<int32_t>(batch.encodes[e].size()), batch.layout.num_groups());
    for (size_t g = 0; g < batch.encodes[e].size(); ++g) {
      const EncodeBatch& encode = batch.encodes[e][g];
      for (const bool is_split : {false, true}) {
        const parallel::MediaPack& pack = is_split ? encode.shard : encode.whole;
        const std::vector<int32_t>& items = is_split ? encode.shard_items : encode.whole_items;
        ASSERT_EQ(pack.items.size(), items.size());
        ASSERT_TRUE(std::is_sorted(items.begin(), items.end()));
        const int64_t row_bytes = pack.row_elements * SizeOf(pack.dtype);
        int64_t next_payload = 0, next_row = 0;
        for (size_t i = 0; i < items.size(); ++i) {
          const StepLayout::Item& item = batch.layout.items[items[i]];
          EXPECT_EQ(item.encoder, static_cast<int32_t>(e));
          EXPECT_EQ(item.group, static_cast<int32_t>(g));
          EXPECT_EQ(item.num_shards > 1, is_split);
          EXPECT_TRUE(item.IsEncodedBy(rank));
          EXPECT_EQ(pack.items[i].num_input_rows, item.input_rows);  // as it is, not its shard
          EXPECT_EQ(pack.items[i].num_output_rows, item.output_rows);
          EXPECT_EQ(pack.items[i].input_row * row_bytes, next_payload);
          // A shard's rows, counted here by the units.
          int64_t in = item.input_rows, out = item.output_rows;
          if (is_split) {
            const parallel::SampleUnit unit = data.encoders[e].unit;
            const int64_t units = (item.input_rows + unit.input_rows - 1) / unit.input_rows;
            const int64_t shard = rank - item.encoder_rank;
            const int64_t begin = units * shard / item.num_shards;
            const int64_t end = units * (shard + 1) / item.num_shards;
            in = std::min(in, end * unit.input_rows) - std::min(in, begin * unit.input_rows);
            out = std::min(out, end * unit.output_rows) - std::min(out, begin * unit.output_rows);
          }
          Medium& medium =
              step->media[{{item.lane, item.sample}, NumberOf(batch.layout, items[i])}];
          medium.payload.insert(medium.payload.end(), pack.payload.begin() + next_payload,
                                pack.payload.begin() + next_payload + in * row_bytes);
          next_payload += in * row_bytes;
          for (int64_t row = 0; row < out; ++row) {
            medium.tokens.push_back(static_cast<int32_t>(
                pack.token_rows[next_row + row] - sample_begins.at({item.lane, item.sample})));
          }
          next_row += out;
        }
        EXPECT_EQ(next_payload, static_cast<int64_t>(pack.payload.size()));
        EXPECT_EQ(next_row, static_cast<int64_t>(pack.token_rows.size()));
      }
    }
  }
}

// All ranks' batches of one step, their failures exchanged, as one.
WholeStep Together(std::vector<StepBatch> batches, const DataLayout& data) {
  WholeStep step;
  std::vector<std::vector<SampleFailure>> failed;
  std::set<uint64_t> digests;
  for (const StepBatch& batch : batches) {
    failed.push_back(batch.failed);
    digests.insert(batch.layout.Digest());
  }
  EXPECT_EQ(digests.size(), 1u) << "ranks disagree about the layout";
  std::map<std::pair<int32_t, int32_t>, int64_t> sample_begins;
  int64_t loss_tokens = 0, targets = 0;
  for (int32_t rank = 0; rank < static_cast<int32_t>(batches.size()); ++rank) {
    StepBatch& batch = batches[rank];
    EXPECT_GE(batch.layout.loss_tokens(), batch.global_loss_tokens);  // as planned
    ApplyFailures(failed, rank, &batch);
    for (const FaultEvent& fault : batch.faults) {
      step.faults.insert(
          absl::StrCat(Name(fault.fault), " ", fault.sample_id, ": ", fault.message));
    }
    int64_t own = 0;
    for (const Microbatch& microbatch : batch.microbatches) {
      own += microbatch.loss_tokens;
      for (const SampleRef& sample : microbatch.samples) {
        sample_begins[{sample.lane, sample.sample}] = sample.token_begin;
      }
    }
    EXPECT_EQ(own, batch.local_loss_tokens);
    if (data.RankAt(0, data.Replica(rank), 0) == rank) loss_tokens += own;
    AddTokens(batch, &step);
  }
  for (int32_t rank = 0; rank < static_cast<int32_t>(batches.size()); ++rank) {
    AddMedia(batches[rank], data, rank, sample_begins, &step);
  }
  for (const auto& [key, sample] : step.samples) targets += sample.loss_tokens;
  EXPECT_EQ(targets, loss_tokens);
  for (const StepBatch& batch : batches) {
    EXPECT_EQ(batch.global_loss_tokens, loss_tokens);  // what is blank has none
  }
  return step;
}

class SharedStepTest : public ::testing::TestWithParam<bool> {};

TEST_P(SharedStepTest, AnyLayoutTrainsOnExactlyTheSameSamples) {
  const bool torn = GetParam();
  int64_t split = 0, remote = 0, blanked = 0;
  for (const auto& [lanes, sequences] : {std::pair(4, 1), std::pair(7, 2)}) {
    DataConfig config = Config(lanes, sequences);
    config.loader.threads = sequences - 1;  // without and with threads
    std::vector<WholeStep> expected;
    const DataLayout one = NameEncoders(DataLayout::DataParallel(1), config);
    const auto alone = Start(config, Corpus(torn), one, 0);
    for (int i = 0; i < 3; ++i) expected.push_back(Together({NextBatch(*alone)}, one));
    for (const DataLayout& layout : Layouts()) {
      const DataLayout data = NameEncoders(layout, config);
      std::vector<Stores> stores;
      std::vector<std::unique_ptr<Loader>> loaders;
      for (int32_t rank = 0; rank < data.num_ranks(); ++rank) {
        stores.push_back(Corpus(torn));
        loaders.push_back(Start(config, stores.back(), layout, rank));
      }
      for (int i = 0; i < 3; ++i) {
        std::vector<StepBatch> batches;
        for (int32_t rank = 0; rank < data.num_ranks(); ++rank) {
          const int64_t before = Loads(stores[rank]);
          batches.push_back(NextBatch(*loaders[rank]));
          // Zero redundancy: a rank loads the media it has rows of, and no others.
          int64_t own = 0;
          for (const StepLayout::Item& item : batches.back().layout.items) {
            own += batches.back().layout.InputRows(item, rank).size() > 0;
          }
          if (config.loader.threads > 0) continue;  // they load ahead
          if (torn) {                               // a sample's other media may be left alone
            EXPECT_LE(Loads(stores[rank]) - before, own);
          } else {
            EXPECT_EQ(Loads(stores[rank]) - before, own);
          }
        }
        for (const StepLayout::Item& item : batches[0].layout.items) {
          split += item.num_shards > 1;
          remote += item.encoder_rank != data.RankAt(0, item.replica, 0);
        }
        const WholeStep step = Together(std::move(batches), data);
        EXPECT_TRUE(step.samples == expected[i].samples) << data.num_ranks() << " ranks";
        EXPECT_TRUE(step.media == expected[i].media) << data.num_ranks() << " ranks";
        EXPECT_EQ(step.faults, expected[i].faults) << data.num_ranks() << " ranks";
        for (const auto& [key, sample] : step.samples) blanked += sample.is_blanked;
      }
    }
  }
  EXPECT_GT(split, 100);
  EXPECT_GT(remote, 100);
  EXPECT_EQ(blanked > 0, torn);
}

INSTANTIATE_TEST_SUITE_P(Corpora, SharedStepTest, ::testing::Bool());

TEST(SharedStepTest, AFailureIsUnknownToOthersUntilItIsApplied) {
  const DataConfig config = Config(4, 1);
  const DataLayout data = NameEncoders({.stages = 2, .group_size = 2, .encoders = {}}, config);
  std::vector<StepBatch> batches;
  for (int32_t rank = 0; rank < 2; ++rank) {
    batches.push_back(NextBatch(*Start(config, Corpus(true), data, rank)));
  }
  ASSERT_FALSE(batches[0].failed.empty() && batches[1].failed.empty());
  const int32_t teller = batches[0].failed.empty() ? 1 : 0;
  StepBatch& other = batches[1 - teller];
  const int64_t loss_tokens = other.local_loss_tokens;
  const size_t faults = other.faults.size();
  ApplyFailures({batches[0].failed, batches[1].failed}, 1 - teller, &other);
  EXPECT_LT(other.local_loss_tokens, loss_tokens);
  // Both know what there is of the step, and which samples are not.
  ApplyFailures({batches[0].failed, batches[1].failed}, teller, &batches[teller]);
  EXPECT_EQ(other.global_loss_tokens, batches[teller].global_loss_tokens);
  EXPECT_EQ(other.global_loss_tokens, other.local_loss_tokens);  // one replica
  EXPECT_EQ(other.global, batches[teller].global);
  ASSERT_EQ(other.blanked.size(), batches[teller].blanked.size());
  EXPECT_EQ(other.blanked[0].sample_id, batches[teller].blanked[0].sample_id);
  EXPECT_NE(other.blanked[0].message, "");
  const int64_t once = other.local_loss_tokens;
  ApplyFailures({batches[0].failed, batches[1].failed}, 1 - teller, &other);  // changes nothing
  EXPECT_EQ(other.local_loss_tokens, once);
  EXPECT_EQ(other.faults.size(), faults);
}

TEST(SharedStepTest, ALongPictureLeavesEachRankItsShardOnly) {
  DataConfig config = TestConfig({{"image", 1}});
  config.lanes = 1;
  config.window = 1;
  config.sequence_length = 1000;
  const Stores stores = {
      {"image", std::make_shared<FakeStore>(std::vector<FakeSample>{Picture(560, 560, 9)})}};
  const DataLayout data{
      .sequence = {.ring = 4},
      .encoders = {{.name = "vision", .sequence = 4, .threshold = 100, .unit = kVisionUnit}}};
  int64_t bytes = 0;
  for (int32_t rank = 0; rank < 4; ++rank) {
    const auto loader = Start(config, stores, data, rank);
    const StepBatch batch = NextBatch(*loader);
    const parallel::MediaPack& pack = batch.encodes[0][0].shard;
    EXPECT_EQ(pack.items[0].num_input_rows, 1600);
    EXPECT_EQ(pack.num_rows(), 400);
    EXPECT_EQ(loader->buffered_bytes_max(), static_cast<int64_t>(pack.payload.size()));
    bytes += static_cast<int64_t>(pack.payload.size());
    EXPECT_TRUE(batch.encodes[0][0].whole.items.empty());
  }
  EXPECT_EQ(bytes, 1600 * config.image.geometry.row_elements());
}

TEST(SharedStepDeathTest, MediaThatOthersEncodeDoNotMoveIntoMicrobatches) {
  const DataConfig config = Config(4, 1);
  const DataLayout data = NameEncoders({.stages = 2, .group_size = 2, .encoders = {}}, config);
  StepBatch batch = NextBatch(*Start(config, Corpus(false), data, 0));
  EXPECT_DEATH(MoveMediaIntoMicrobatches(&batch), "group_size");
}

}  // namespace
}  // namespace omni::dataloader
