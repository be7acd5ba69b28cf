// Who waits for samples of an evaluation waits as long as they get ready, and knows of a stalled
// one by name, whether it is read or decoded; the loader of training alike.
#include "dataloader/eval_prefetch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>

#include "absl/time/clock.h"
#include "dataloader/loader.h"
#include "tests/dataloader/support.h"

namespace omni::dataloader {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr absl::Duration kLimit = absl::Milliseconds(400);

// Storage that is slow for every sample, and lets one wait until it is let go.
class SlowStore : public FakeStore {
 public:
  SlowStore(std::vector<FakeSample> samples, absl::Duration pause, int64_t stalled,
            bool stalls_as_text = false)
      : FakeStore(std::move(samples), "slow.tar"),
        pause_(pause),
        stalled_(stalled),
        stalls_as_text_(stalls_as_text) {}

  absl::StatusOr<Conversation> LoadConversation(int64_t index) const override {
    if (stalls_as_text_) Pause(index);
    return FakeStore::LoadConversation(index);
  }
  absl::StatusOr<std::string> LoadMedia(int64_t index, int32_t media_index) const override {
    if (!stalls_as_text_) Pause(index);
    return FakeStore::LoadMedia(index, media_index);
  }
  void LetGo() {
    const std::lock_guard lock(mutex_);
    is_free_ = true;
    changed_.notify_all();
  }

 private:
  void Pause(int64_t index) const {
    absl::SleepFor(pause_);
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return is_free_ || index != stalled_; });
  }

  const absl::Duration pause_;
  const int64_t stalled_;
  const bool stalls_as_text_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool is_free_ = false;
};

std::vector<FakeSample> Pictures(int count) {
  std::vector<FakeSample> samples;
  for (int i = 0; i < count; ++i) samples.push_back(Picture(28, 28, 10 + i));
  return samples;
}

std::unique_ptr<EvalLoader> Evaluation(const std::shared_ptr<const SampleStore>& store) {
  DataConfig config = TestConfig({{"x", 1}});
  auto loader = EvalLoader::Create(config, OpenedSource{"held", store}, /*max_samples=*/0,
                                   {.tokenizer = TestTokenizer()});
  OMNI_CHECK_OK(loader.status());
  return *std::move(loader);
}

TEST(EvalPrefetchTest, SamplesThatAreSlowInSumAreWaitedFor) {
  constexpr int kSamples = 12;
  const auto store = std::make_shared<SlowStore>(Pictures(kSamples), kLimit / 4, /*stalled=*/-1);
  EvalPrefetch prefetch(Evaluation(store));
  Progress progress;
  size_t samples = 0;
  const absl::Time begin = absl::Now();
  for (;;) {
    const auto next = prefetch.Next(kLimit, &progress);
    ASSERT_TRUE(next.ok()) << next.status();
    if (!next->has_value()) break;
    samples += (*next)->samples.size();
  }
  EXPECT_EQ(samples, size_t{kSamples});
  EXPECT_GT(absl::Now() - begin, kLimit);
  EXPECT_GT(progress.count(), 1);  // what the other ranks see meanwhile
  EXPECT_FALSE((*prefetch.Next(kLimit, nullptr)).has_value());
}

TEST(EvalPrefetchTest, AStalledSampleIsNamed) {
  for (const bool as_text : {false, true}) {
    const auto store =
        std::make_shared<SlowStore>(Pictures(6), absl::ZeroDuration(), /*stalled=*/4, as_text);
    EvalPrefetch prefetch(Evaluation(store));
    absl::Status status;
    while (status.ok()) {
      const auto next = prefetch.Next(kLimit, nullptr);
      status = next.status();
      if (next.ok() && !next->has_value()) break;
    }
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_THAT(std::string(status.message()), HasSubstr("slow.tar:4"));
    store->LetGo();
    EXPECT_TRUE(prefetch.Next(absl::Minutes(1), nullptr).ok());
  }
}

TEST(EvalPrefetchTest, AStopEndsAWait) {
  const auto store = std::make_shared<SlowStore>(Pictures(2), absl::ZeroDuration(), /*stalled=*/0);
  EvalPrefetch prefetch(Evaluation(store));
  int asked = 0;
  const auto next = prefetch.Next(absl::Hours(1), nullptr, [&] { return ++asked == 3; });
  EXPECT_EQ(next.status().code(), absl::StatusCode::kCancelled);
  store->LetGo();
}

TEST(LoaderLimitTest, SamplesThatAreSlowInSumAreWaitedForAndAStalledOneIsNamed) {
  DataConfig config = TestConfig({{"image", 1}});
  config.loader.threads = 1;
  const auto start = [&](const std::shared_ptr<const SampleStore>& store,
                         std::shared_ptr<Progress> progress) {
    auto samples = std::make_shared<const SamplePlanner>(
        config, std::vector<OpenedSource>{{"image", store}}, TestTokenizer());
    auto loader = Loader::Create(samples, {.progress = std::move(progress)});
    OMNI_CHECK_OK(loader.status());
    return *std::move(loader);
  };
  const auto progress = std::make_shared<Progress>();
  const auto slow =
      start(std::make_shared<SlowStore>(Pictures(40), kLimit / 4, /*stalled=*/-1), progress);
  EXPECT_TRUE(slow->Next(kLimit).ok());
  EXPECT_TRUE(slow->Next(kLimit).ok());
  EXPECT_GT(progress->count(), 1);
  for (const bool as_text : {false, true}) {
    const auto store =
        std::make_shared<SlowStore>(Pictures(3), absl::ZeroDuration(), /*stalled=*/1, as_text);
    const auto loader = start(store, nullptr);
    absl::Status status;
    while (status.ok()) status = loader->Next(kLimit).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(as_text ? "planned" : "decoded"), HasSubstr("slow.tar:1")));
    store->LetGo();
  }
}

}  // namespace
}  // namespace omni::dataloader
