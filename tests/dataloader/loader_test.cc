#include "dataloader/loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <map>
#include <mutex>
#include <set>

#include "absl/strings/match.h"
#include "dataloader/eval_loader.h"
#include "dataloader/formats/tar_writer.h"
#include "runtime/base/file.h"
#include "tests/dataloader/faulty_storage.h"
#include "tests/dataloader/formats/store_fixture.h"
#include "tests/dataloader/support.h"

namespace omni::dataloader {
namespace {

using ::testing::HasSubstr;

std::map<std::string, std::shared_ptr<const SampleStore>> SmallCorpus() {
  std::vector<FakeSample> pictures, sounds, texts;
  for (int i = 0; i < 26; ++i) pictures.push_back(Picture(28, 28 * (1 + i % 3), 5 * i + 3));
  for (int i = 0; i < 11; ++i) sounds.push_back(Sound(4000 + 1111 * i, 0.05f * (i + 1)));
  for (int i = 0; i < 17; ++i) texts.push_back(Question("fox", absl::StrCat(i)));
  return {{"image", std::make_shared<FakeStore>(std::move(pictures), "image.tar")},
          {"audio", std::make_shared<FakeStore>(std::move(sounds), "audio.tar")},
          {"text", std::make_shared<FakeStore>(std::move(texts), "text.tar")}};
}

DataConfig MixedConfig() { return TestConfig({{"image", 3}, {"audio", 2}, {"text", 1}}); }

std::unique_ptr<Loader> Start(const DataConfig& config,
                              const std::map<std::string, std::shared_ptr<const SampleStore>>& data,
                              int32_t rank = 0, int32_t world = 1, LoaderState start = {}) {
  auto loader =
      Loader::Create(MakePlanner(config, data), {.rank = rank,
                                                 .data = parallel::DataLayout::DataParallel(world),
                                                 .costs = {},
                                                 .start = std::move(start)});
  OMNI_CHECK_OK(loader.status());
  return *std::move(loader);
}

StepBatch NextBatch(Loader& loader) {
  auto batch = loader.Next(absl::Minutes(2));
  OMNI_CHECK_OK(batch.status());
  MoveMediaIntoMicrobatches(&*batch);
  return *std::move(batch);
}

// Everything a microbatch holds, as bytes.
std::string Bytes(const Microbatch& microbatch) {
  std::string bytes;
  const auto add = [&](const auto& values) {
    bytes.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(values[0]));
    bytes += '|';
  };
  add(microbatch.tokens.token_ids);
  add(microbatch.tokens.cu_seqlens);
  add(microbatch.tokens.cu_lanes);
  add(microbatch.tokens.positions);
  add(microbatch.tokens.targets);
  for (const auto& [name, pack] : microbatch.media) {
    bytes += name;
    add(pack.payload);
    add(pack.token_rows);
    for (const auto& item : pack.items) {
      bytes += absl::StrCat(item.t, ",", item.h, ",", item.w, ",", item.input_row, ";");
    }
  }
  for (const SampleRef& sample : microbatch.samples) bytes += sample.sample_id;
  return bytes;
}

std::string Bytes(const StepBatch& batch) {
  std::string bytes;
  for (const Microbatch& microbatch : batch.microbatches) bytes += Bytes(microbatch);
  return bytes + batch.state_after.ToJson();
}

void ExpectConsistent(const StepBatch& batch, const DataConfig& config) {
  int64_t loss_tokens = 0;
  for (const Microbatch& microbatch : batch.microbatches) {
    const parallel::TokenPack& tokens = microbatch.tokens;
    const int64_t n = tokens.num_tokens();
    EXPECT_LE(n, config.sequence_length * config.micro_batch_sequences);
    ASSERT_EQ(tokens.cu_seqlens.size(), microbatch.samples.size() + 1);
    EXPECT_EQ(tokens.cu_seqlens.back(), n);
    std::map<int32_t, int64_t> lane_ends;  // lanes come one after another
    for (const SampleRef& sample : microbatch.samples) lane_ends[sample.lane] = sample.token_end;
    ASSERT_EQ(tokens.cu_lanes.size(), lane_ends.size() + 1);
    size_t lane = 1;
    for (const auto& [index, end] : lane_ends) EXPECT_EQ(tokens.cu_lanes[lane++], end);
    EXPECT_EQ(static_cast<int64_t>(tokens.positions.size()), 3 * n);
    EXPECT_EQ(static_cast<int64_t>(tokens.targets.size()), n);
    loss_tokens += std::count_if(tokens.targets.begin(), tokens.targets.end(),
                                 [](int32_t target) { return target >= 0; });
    ASSERT_EQ(microbatch.media.size(), 2u);
    for (const auto& [name, pack] : microbatch.media) {
      int64_t rows = 0, outputs = 0;
      for (const parallel::MediaItem& item : pack.items) {
        EXPECT_EQ(item.input_row, rows);
        rows += item.num_input_rows;
        outputs += item.num_output_rows;
      }
      EXPECT_EQ(pack.num_rows(), rows);
      EXPECT_EQ(static_cast<int64_t>(pack.token_rows.size()), outputs);
      const auto tokenizer = TestTokenizer();
      for (const int32_t row : pack.token_rows) {
        const int32_t id = tokens.token_ids[row];
        EXPECT_TRUE(name == "audio" ? id == tokenizer->special().audio_pad
                                    : id == tokenizer->special().image_pad ||
                                          id == tokenizer->special().video_pad);
      }
    }
    for (const SampleRef& sample : microbatch.samples) {
      EXPECT_EQ(tokens.positions[sample.token_begin], 0);
    }
  }
  EXPECT_EQ(loss_tokens, batch.local_loss_tokens);
  int64_t blanked = 0;  // planned, and not there
  for (const PlacedMedia& placed : batch.placed_media) {
    if (placed.is_blanked) blanked += placed.counts.loss_tokens;
  }
  EXPECT_EQ(batch.layout.loss_tokens(), batch.global_loss_tokens + blanked);
  EXPECT_EQ(batch.global.loss_tokens, batch.global_loss_tokens);
}

TEST(LoaderTest, BatchesAgreeWithThemselvesAndWithTheirLayout) {
  const DataConfig config = MixedConfig();
  const auto loader = Start(config, SmallCorpus());
  SampleCounts sum;
  for (int i = 0; i < 12; ++i) {
    const StepBatch batch = NextBatch(*loader);
    EXPECT_EQ(batch.step, i);
    EXPECT_EQ(batch.microbatches.size(), 4u);
    ExpectConsistent(batch, config);
    EXPECT_EQ(batch.local_loss_tokens, batch.global_loss_tokens);
    EXPECT_EQ(batch.local, batch.global);
    for (size_t m = 0; m < 4; ++m) {
      EXPECT_EQ(batch.layout.microbatch(0, m).tokens(), batch.microbatches[m].tokens.num_tokens());
      EXPECT_EQ(batch.layout.microbatch(0, m).loss_tokens, batch.microbatches[m].loss_tokens);
    }
    sum += batch.global;
  }
  EXPECT_GT(sum.image, 0);
  EXPECT_GT(sum.audio, 0);
  EXPECT_GT(sum.text, 0);
  EXPECT_EQ(sum.samples, sum.image + sum.audio + sum.text);
  EXPECT_NEAR(static_cast<double>(sum.image) / sum.samples, 0.5, 0.1);
}

TEST(LoaderTest, PixelsAreThoseOfTheSample) {
  const auto loader = Start(MixedConfig(), SmallCorpus());
  int checked = 0;
  for (int i = 0; i < 5; ++i) {
    for (const Microbatch& microbatch : NextBatch(*loader).microbatches) {
      const parallel::MediaPack& pack = microbatch.media.at("vision");
      size_t item = 0;
      for (const SampleRef& sample : microbatch.samples) {
        if (sample.source != 0) continue;
        const auto shade = static_cast<uint8_t>(5 * sample.index + 3);
        const parallel::MediaItem& media = pack.items[item++];
        EXPECT_EQ(media.w, 2 * (1 + sample.index % 3));
        for (int64_t b = 0; b < media.num_input_rows * pack.row_elements; ++b) {
          ASSERT_EQ(pack.payload[media.input_row * pack.row_elements + b], shade);
        }
        ++checked;
      }
      EXPECT_EQ(item, pack.items.size());
    }
  }
  EXPECT_GT(checked, 10);
}

TEST(LoaderTest, TheSameWhateverTheThreads) {
  const auto data = SmallCorpus();
  DataConfig config = MixedConfig();
  config.audio_mask = {.frames = 5, .bands = 10};
  std::vector<std::string> expected;
  const auto inline_loader = Start(config, data);
  for (int i = 0; i < 10; ++i) expected.push_back(Bytes(NextBatch(*inline_loader)));
  for (const int32_t threads : {1, 2, 5}) {
    config.loader.threads = threads;
    config.loader.prefetch_steps = threads;
    const auto loader = Start(config, data);
    for (int i = 0; i < 10; ++i) {
      ASSERT_EQ(Bytes(NextBatch(*loader)), expected[i]) << threads << " threads, step " << i;
    }
  }
}

TEST(LoaderTest, ResumesBitwiseAtAnyStep) {
  const auto data = SmallCorpus();
  DataConfig config = MixedConfig();
  config.loader.threads = 2;
  std::vector<std::string> expected;
  std::vector<LoaderState> states(1);
  const auto unbroken = Start(config, data);
  for (int i = 0; i < 10; ++i) {
    const StepBatch batch = NextBatch(*unbroken);
    expected.push_back(Bytes(batch));
    states.push_back(batch.state_after);
  }
  for (int stop = 0; stop < 10; ++stop) {
    const auto resumed = Start(config, data, 0, 1, states[stop]);
    for (int i = stop; i < 10; ++i) {
      ASSERT_EQ(Bytes(NextBatch(*resumed)), expected[i]) << "stop " << stop << " step " << i;
    }
  }
}

// What all ranks together train on in one step: lane -> its samples.
std::map<int32_t, std::vector<std::string>> Together(
    const std::vector<std::unique_ptr<Loader>>& loaders, LoaderState* after, int64_t* loss_tokens) {
  std::map<int32_t, std::vector<std::string>> lanes;
  *loss_tokens = 0;
  std::set<uint64_t> digests;
  std::set<size_t> counts;
  for (const auto& loader : loaders) {
    const StepBatch batch = NextBatch(*loader);
    digests.insert(batch.layout.Digest());
    counts.insert(batch.microbatches.size());
    *loss_tokens += batch.local_loss_tokens;
    *after = batch.state_after;
    for (const Microbatch& microbatch : batch.microbatches) {
      for (const SampleRef& sample : microbatch.samples) {
        lanes[sample.lane].push_back(sample.sample_id);
      }
    }
    EXPECT_GT(batch.global_loss_tokens, 0);
  }
  EXPECT_EQ(digests.size(), 1u) << "ranks disagree about the layout";
  EXPECT_EQ(counts.size(), 1u) << "ranks disagree about the number of microbatches";
  return lanes;
}

std::vector<std::unique_ptr<Loader>> StartWorld(
    const DataConfig& config, const std::map<std::string, std::shared_ptr<const SampleStore>>& data,
    int32_t world, const LoaderState& start) {
  std::vector<std::unique_ptr<Loader>> loaders;
  for (int32_t rank = 0; rank < world; ++rank) {
    loaders.push_back(Start(config, data, rank, world, start));
  }
  return loaders;
}

TEST(LoaderTest, AnotherWorldSizeContinuesOnTheSameSamples) {
  const auto data = SmallCorpus();
  for (const int32_t sequences : {1, 3}) {
    DataConfig config = MixedConfig();
    config.micro_batch_sequences = sequences;
    const auto alone = Start(config, data);
    LoaderState state;
    for (const int32_t world : {4, 3, 1, 7, 2}) {
      const auto loaders = StartWorld(config, data, world, state);
      for (int i = 0; i < 4; ++i) {
        std::map<int32_t, std::vector<std::string>> expected;
        const StepBatch batch = NextBatch(*alone);
        for (const Microbatch& microbatch : batch.microbatches) {
          for (const SampleRef& sample : microbatch.samples) {
            expected[sample.lane].push_back(sample.sample_id);
          }
        }
        int64_t loss_tokens = 0;
        EXPECT_EQ(Together(loaders, &state, &loss_tokens), expected) << "world " << world;
        EXPECT_EQ(loss_tokens, batch.global_loss_tokens);
      }
    }
  }
}

TEST(LoaderTest, RanksWithoutALaneHaveEmptyMicrobatches) {
  const DataConfig config = MixedConfig();
  const StepBatch batch = NextBatch(*Start(config, SmallCorpus(), 6, 7));
  ASSERT_EQ(batch.microbatches.size(), 1u);
  EXPECT_EQ(batch.microbatches[0].tokens.num_tokens(), 0);
  EXPECT_EQ(batch.microbatches[0].tokens.cu_seqlens, (std::vector<int32_t>{0}));
  EXPECT_EQ(batch.microbatches[0].tokens.cu_lanes, (std::vector<int32_t>{0}));
  EXPECT_EQ(batch.microbatches[0].media.at("vision").num_rows(), 0);
  EXPECT_EQ(batch.local_loss_tokens, 0);
  EXPECT_GT(batch.global_loss_tokens, 0);
  EXPECT_EQ(batch.local.samples, 0);
}

TEST(LoaderTest, ASampleThatFailsAtDecodeKeepsItsPlaceAndLosesItsLoss) {
  const auto good = SmallCorpus();
  std::vector<FakeSample> pictures;
  for (int i = 0; i < 26; ++i) pictures.push_back(Picture(28, 28 * (1 + i % 3), 5 * i + 3));
  for (int i = 0; i < 26; i += 3) pictures[i].media[0].resize(60);  // torn, its metadata stand
  auto torn = good;
  torn["image"] = std::make_shared<FakeStore>(std::move(pictures), "image.tar");
  DataConfig config = MixedConfig();
  config.loader.threads = 2;
  const auto whole = Start(config, good), holed = Start(config, torn);
  int64_t blanked = 0;
  for (int i = 0; i < 6; ++i) {
    const StepBatch expected = NextBatch(*whole), batch = NextBatch(*holed);
    ExpectConsistent(batch, config);
    EXPECT_EQ(batch.layout.Digest(), expected.layout.Digest());
    int64_t step_blanked = 0, lost = 0;
    for (size_t m = 0; m < batch.microbatches.size(); ++m) {
      const Microbatch& microbatch = batch.microbatches[m];
      const Microbatch& reference = expected.microbatches[m];
      EXPECT_EQ(microbatch.tokens.token_ids, reference.tokens.token_ids);
      EXPECT_EQ(microbatch.tokens.positions, reference.tokens.positions);
      const parallel::MediaPack& pack = microbatch.media.at("vision");
      size_t item = 0;
      for (size_t s = 0; s < microbatch.samples.size(); ++s) {
        const SampleRef& sample = microbatch.samples[s];
        const bool is_torn = sample.source == 0 && sample.index % 3 == 0;
        EXPECT_EQ(sample.is_blanked, is_torn) << sample.sample_id;
        if (is_torn) {
          ++step_blanked;
          lost += reference.samples[s].loss_tokens;
          EXPECT_EQ(sample.loss_tokens, 0);
        }
        if (sample.source != 0) continue;
        const parallel::MediaItem& media = pack.items[item++];
        const uint8_t first = pack.payload[media.input_row * pack.row_elements];
        EXPECT_EQ(first == 0, is_torn);
      }
    }
    EXPECT_EQ(batch.local_loss_tokens + lost, expected.local_loss_tokens);
    // The divisor is what there is, and a blanked picture is none.
    EXPECT_EQ(batch.global_loss_tokens, batch.local_loss_tokens);
    EXPECT_EQ(batch.global.image + step_blanked, expected.global.image);
    EXPECT_EQ(batch.global.items.at("vision") + step_blanked, expected.global.items.at("vision"));
    EXPECT_EQ(batch.global.tokens, expected.global.tokens);
    EXPECT_EQ(static_cast<int64_t>(batch.blanked.size()), step_blanked);
    int64_t events = 0;
    for (const FaultEvent& fault : batch.faults) {
      EXPECT_EQ(fault.fault, SampleFault::kBlanked);
      EXPECT_EQ(fault.source, "image");
      EXPECT_THAT(fault.sample_id, HasSubstr("image.tar:"));
      EXPECT_THAT(fault.message, HasSubstr("medium 0: corrupt PNG"));
      ++events;
    }
    EXPECT_EQ(events, step_blanked);
    blanked += step_blanked;
  }
  EXPECT_GT(blanked, 0);
}

class StoredLoaderTest : public StoreFixture {};

TEST_F(StoredLoaderTest, StorageThatFailsStopsTheJobForGood) {
  const std::string shard = WriteTar(
      "a.tar", {{"0.json", ImageAndSound()}, {"0.0.png", Png(28, 28)}, {"0.1.wav", Wav(800)}});
  ASSERT_TRUE(OpenSource(shard).ok());  // makes the index
  for (const int32_t threads : {0, 3}) {
    DataConfig config = TestConfig({{"image", 1}});
    config.loader.threads = threads;
    // The text is read, the picture is not: what was placed can't be decoded.
    std::atomic<int> reads = -1;
    const auto storage = std::make_shared<FaultyStorage>([&](Call call, const std::string& path) {
      const bool counts = call == Call::kRead && absl::EndsWith(path, "a.tar") && reads >= 0;
      return counts && reads++ >= config.lanes * config.window ? EIO : 0;
    });
    const auto loader = Start(config, {{"image", OpenSource(shard, {.storage = storage}).value()}});
    reads = 0;
    absl::Status status;
    for (int i = 0; i < 1000 && status.ok(); ++i) status = loader->Next().status();
    for (int i = 0; i < 2; ++i) {
      EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr("a.tar:0: "));
      EXPECT_THAT(std::string(status.message()), HasSubstr("Input/output error"));
      status = loader->Next().status();
    }
  }
}

TEST_F(StoredLoaderTest, AStepThatHasFailedReadsNoMore) {
  std::string lines;
  for (int i = 0; i < 40; ++i) {
    OMNI_CHECK_OK(WriteFileAtomically(Path(absl::StrCat(i, ".png")), Png(28, 28)));
    lines += absl::StrCat(R"({"query":"<image>","response":"y","images":[")", i, ".png\"]}\n");
  }
  OMNI_CHECK_OK(WriteFileAtomically(Path("d.jsonl"), lines));
  // The text is read all along, and the pictures as long as they are measured.
  std::atomic<int> opened = 0;
  std::atomic<bool> fails = false;
  const auto storage = std::make_shared<FaultyStorage>(
      [&](Call call, const std::string& path) {
        if (!fails || call != Call::kOpen || !absl::EndsWith(path, ".png")) return 0;
        ++opened;
        return EIO;
      },
      absl::Milliseconds(100));
  const std::shared_ptr<const SampleStore> store =
      OpenSource(Path("d.jsonl"), {.storage = storage}).value();
  for (int64_t i = 0; i < 40; ++i) ASSERT_TRUE(store->Metadata(i).ok());
  fails = true;
  DataConfig config = TestConfig({{"image", 1}});
  config.sequence_length = 2048;
  config.loader.threads = 1;
  config.loader.prefetch_steps = 1;
  const auto loader = Start(config, {{"image", store}});
  EXPECT_EQ(loader->Next().status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(opened, 3);  // of one picture of all: at once, after nothing, after 100 ms
}

TEST(LoaderTest, WaitingMediaStayBelowTheLimit) {
  const auto data = SmallCorpus();
  DataConfig config = MixedConfig();
  config.lanes = 16;
  config.sequence_length = 512;
  config.window = 64;
  config.loader = {.threads = 2, .prefetch_steps = 1000, .memory_mib = 4};
  const auto loader = Start(config, data);
  int64_t step_bytes_max = 0;
  for (int i = 0; i < 12; ++i) {
    int64_t bytes = 0;
    for (const Microbatch& microbatch : NextBatch(*loader).microbatches) {
      for (const auto& [name, pack] : microbatch.media) bytes += pack.payload.size();
    }
    step_bytes_max = std::max(step_bytes_max, bytes);
  }
  EXPECT_GT(step_bytes_max, 1 << 20);  // else the limit would mean nothing
  EXPECT_LE(loader->buffered_bytes_max(), std::max<int64_t>(4 << 20, step_bytes_max));
  EXPECT_GE(loader->queue_depth(), 0);
}

TEST(LoaderTest, StepsLargerThanTheLimitPassOneByOne) {
  DataConfig config = TestConfig({{"image", 1}});
  config.sequence_length = 2000;
  config.window = 4;
  config.loader = {.threads = 2, .prefetch_steps = 8, .memory_mib = 1};
  std::vector<FakeSample> pictures(8, Picture(700, 700, 9));
  const auto loader = Start(config, {{"image", std::make_shared<FakeStore>(std::move(pictures))}});
  for (int i = 0; i < 3; ++i) EXPECT_GT(NextBatch(*loader).local.input_rows["vision"], 2000);
}

TEST(LoaderTest, StopsWhileItIsBusy) {
  DataConfig config = MixedConfig();
  config.loader.threads = 3;
  for (int i = 0; i < 10; ++i) {
    const auto loader = Start(config, SmallCorpus());
    if (i % 2 == 1) NextBatch(*loader);
  }
}

// A store whose media wait until they are let go.
class SlowStore : public FakeStore {
 public:
  using FakeStore::FakeStore;
  absl::StatusOr<std::string> LoadMedia(int64_t index, int32_t media_index) const override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return is_free_; });
    return FakeStore::LoadMedia(index, media_index);
  }
  void LetGo() {
    const std::lock_guard lock(mutex_);
    is_free_ = true;
    changed_.notify_all();
  }

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool is_free_ = false;
};

TEST(LoaderTest, DeadlineNamesTheSampleBeingDecoded) {
  DataConfig config = TestConfig({{"image", 1}});
  config.loader.threads = 1;
  const auto store = std::make_shared<SlowStore>(std::vector<FakeSample>{Picture(28, 28, 9)});
  const auto loader = Start(config, {{"image", store}});
  absl::Status status;
  do {  // at first the planner may still be at it
    status = loader->Next(absl::Milliseconds(5)).status();
    ASSERT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  } while (!absl::StrContains(status.message(), "being decoded: fake.tar:0"));
  store->LetGo();
  EXPECT_EQ(NextBatch(*loader).step, 0);
}

TEST(LoaderTest, AStopEndsAWaitAndLosesNothing) {
  DataConfig config = TestConfig({{"image", 1}});
  config.loader.threads = 1;
  const auto store = std::make_shared<SlowStore>(std::vector<FakeSample>{Picture(28, 28, 9)});
  const auto loader = Start(config, {{"image", store}});
  int asked = 0;
  const absl::Status status =
      loader->Next(absl::InfiniteDuration(), [&] { return ++asked == 3; }).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled) << status;
  store->LetGo();
  EXPECT_EQ(NextBatch(*loader).step, 0);
}

// Storage that stalls for ever: the loader ends all the same, and its thread harms nobody when it
// comes back.
TEST(LoaderTest, AThreadStuckInStorageIsLeftToItself) {
  DataConfig config = TestConfig({{"image", 1}});
  config.loader.threads = 2;
  auto store = std::make_shared<SlowStore>(std::vector<FakeSample>{Picture(28, 28, 9)});
  std::weak_ptr<SlowStore> watched = store;
  auto is_gone = std::make_unique<std::atomic<bool>>(false);  // what `costs` uses, of the caller
  auto loader = Loader::Create(
      MakePlanner(config, {{"image", store}}),
      {.data = parallel::DataLayout::DataParallel(1),
       .costs = {.item = [&](int32_t, const parallel::MediaItem&) { return *is_gone ? 2.0 : 1.0; },
                 .split = [](int32_t, const parallel::MediaItem&) { return 0; }},
       .start = {}});
  ASSERT_TRUE(loader.ok()) << loader.status();
  absl::Status status;
  do {
    status = (*loader)->Next(absl::Milliseconds(5)).status();
  } while (!absl::StrContains(status.message(), "being decoded"));
  loader->reset();  // its threads are still in LoadMedia
  is_gone.reset();
  EXPECT_GT(watched.use_count(), 1);
  store->LetGo();
  store.reset();
  while (!watched.expired()) absl::SleepFor(absl::Milliseconds(1));  // all threads have left
}

TEST(LoaderTest, AudioMaskFlattensBandsButDiffersByEpoch) {
  DataConfig config = TestConfig({{"audio", 1}});
  config.lanes = 1;
  config.window = 1;
  config.audio_mask = {.frames = 40, .bands = 60};
  const std::map<std::string, std::shared_ptr<const SampleStore>> data = {
      {"audio", std::make_shared<FakeStore>(std::vector<FakeSample>{Sound(16000, 0.5)})}};
  const auto masked = Start(config, data);
  const std::vector<uint8_t> first = NextBatch(*masked).microbatches[0].media.at("audio").payload;
  const std::vector<uint8_t> second = NextBatch(*masked).microbatches[0].media.at("audio").payload;
  const auto elsewhere = Start(
      config, {{"audio", std::make_shared<FakeStore>(std::vector<FakeSample>{Sound(16000, 0.5)},
                                                     "/another/folder/fake.tar")}});
  EXPECT_EQ(first, NextBatch(*elsewhere).microbatches[0].media.at("audio").payload);
  config.audio_mask = {};
  const auto clear = Start(config, data);
  const std::vector<uint8_t> plain = NextBatch(*clear).microbatches[0].media.at("audio").payload;
  EXPECT_NE(first, second);
  EXPECT_NE(first, plain);
  EXPECT_EQ(first.size(), plain.size());
  EXPECT_EQ(plain, NextBatch(*clear).microbatches[0].media.at("audio").payload);
}

// From files: tar shards with a picture, a sound, a clip and text, and a tokenizer.
class LoaderFilesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = ::testing::TempDir() + "/loader_files";
    std::filesystem::remove_all(root_);
    std::filesystem::create_directories(root_);
    OMNI_CHECK_OK(WriteFileAtomically(root_ + "/tokenizer.model", TestModel()));
  }
  std::string WriteShard(const std::string& name, const std::string& type,
                         const std::string& suffix, const std::vector<std::string>& media) {
    const std::string path = absl::StrCat(root_, "/", name, ".tar");
    auto writer = TarWriter::Create(path);
    OMNI_CHECK_OK(writer.status());
    for (size_t i = 0; i < media.size(); ++i) {
      OMNI_CHECK_OK((*writer)->Add(
          absl::StrCat(i, ".json"),
          absl::StrCat(R"({"messages":[{"role":"user","content":[{"type":")", type, R"(",")", type,
                       R"(":")", suffix, R"("},{"type":"text","text":"What?"}]},)",
                       R"({"role":"assistant","content":"red"}],"question":"what"})")));
      OMNI_CHECK_OK((*writer)->Add(absl::StrCat(i, ".", suffix), media[i]));
    }
    OMNI_CHECK_OK((*writer)->Finish());
    return path;
  }
  std::string root_;
};

TEST_F(LoaderFilesTest, TrainsOnPicturesSoundsAndClips) {
  auto plugin = VideoPlugin::Load();
  ASSERT_TRUE(plugin.ok()) << plugin.status();
  std::vector<uint8_t> frames(int64_t{8} * 56 * 56 * 3);
  for (size_t i = 0; i < frames.size(); ++i)
    frames[i] = static_cast<uint8_t>(i / (56 * 56 * 3) * 30);
  const auto clip = (*plugin)->Encode(frames, {56, 56}, {});
  ASSERT_TRUE(clip.ok()) << clip.status();
  DataConfig config = TestConfig({{"image", 1}, {"audio", 1}, {"video", 1}});
  config.video.fps = 4;
  config.video.max_frames = 8;
  config.sources[2].video_fps = 8;  // all of the clip, not every other frame
  config.tokenizer = root_ + "/tokenizer.model";
  config.sources[0].path = WriteShard("image", "image", "0.png", {Picture(28, 56, 80).media[0]});
  config.sources[1].path = WriteShard("audio", "audio", "0.wav", {Sound(8000, 0.3).media[0]});
  config.sources[2].path = WriteShard("video", "video", "0.mp4", {*clip, *clip});
  config.loader.threads = 2;
  auto loader = Loader::Create(config, 0, 1);
  ASSERT_TRUE(loader.ok()) << loader.status();
  SampleCounts sum;
  for (int i = 0; i < 4; ++i) {
    const StepBatch batch = NextBatch(**loader);
    ExpectConsistent(batch, config);
    EXPECT_TRUE(batch.faults.empty()) << batch.faults[0].sample_id << batch.faults[0].message;
    for (const Microbatch& microbatch : batch.microbatches) {
      for (const parallel::MediaItem& item : microbatch.media.at("vision").items) {
        EXPECT_TRUE(item.t == 1 || item.t == 4) << item.t;
      }
    }
    sum += batch.global;
  }
  EXPECT_GT(sum.video, 0);
  EXPECT_GT(sum.image, 0);
  EXPECT_GT(sum.audio, 0);

  config.eval = {{.name = "video", .path = config.sources[2].path, .group_by = "question"},
                 {.name = "fast", .path = config.sources[2].path, .video_fps = 8}};
  auto eval = EvalLoader::Create(config, "video", {});
  ASSERT_TRUE(eval.ok()) << eval.status();
  const auto pack = (*eval)->Next();
  ASSERT_TRUE(pack.ok()) << pack.status();
  ASSERT_TRUE(pack->has_value());
  EXPECT_EQ((*pack)->samples.size(), 2u);
  EXPECT_EQ((*pack)->samples[0].group, "what");
  EXPECT_EQ((*pack)->media.at("vision").items[0].t, 2);
  const auto fast = EvalLoader::Create(config, "fast", {}).value()->Next();
  ASSERT_TRUE(fast.ok() && fast->has_value());
  EXPECT_EQ((*fast)->media.at("vision").items[0].t, 4);
}

TEST_F(LoaderFilesTest, MissingSourceIsNamed) {
  DataConfig config = TestConfig({{"image", 1}});
  config.tokenizer = root_ + "/tokenizer.model";
  config.sources[0].path = root_ + "/absent.tar";
  const auto loader = Loader::Create(config, 0, 1);
  EXPECT_EQ(loader.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(loader.status().message()), HasSubstr("data source \"image\""));
  config.tokenizer = root_ + "/absent.model";
  EXPECT_THAT(std::string(Loader::Create(config, 0, 1).status().message()),
              HasSubstr("absent.model"));
}

}  // namespace
}  // namespace omni::dataloader
