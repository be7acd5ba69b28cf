// What ranks hear of each other over their links.
#include "runtime/comm/peer_links.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/support/in_time.h"

namespace omni::comm {
namespace {

constexpr uint64_t kChannel = 5;

// Stands in its group as it is told, and says so only from `answers_at` on.
class SlowObserver final : public ChannelObserver {
 public:
  SlowObserver(Standing standing, absl::Time answers_at)
      : standing_(std::move(standing)), answers_at_(answers_at) {}

  void OnLeft(int32_t) override {}
  void OnFailed(const absl::Status&) override {}
  Standing standing() const override {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait_until(lock, absl::ToChronoTime(answers_at_), [this] { return is_released_; });
    return standing_;
  }
  std::vector<LoggedCall> recent() const override { return {}; }
  void Release() {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_released_ = true;
    changed_.notify_all();
  }

 private:
  const Standing standing_;
  const absl::Time answers_at_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool is_released_ = false;
};

// The links of three ranks, of which the first asks.
class Ranks {
 public:
  ~Ranks() {
    for (const auto& observer : observers_) observer->Release();
    for (size_t rank = 1; rank < links_.size(); ++rank) links_[rank]->Unregister(kChannel);
  }
  void Connect(std::unique_ptr<SlowObserver> first, std::unique_ptr<SlowObserver> second) {
    observers_.push_back(std::move(first));
    observers_.push_back(std::move(second));
    for (int32_t rank = 0; rank < 3; ++rank) {
      links_.push_back(std::make_unique<PeerLinks>(rank, 3, UniqueFd(), std::vector<std::string>(),
                                                   CommOptions{}));
      for (int32_t low = 0; low < rank; ++low) {
        auto pair = SocketPair();
        ASSERT_TRUE(pair.ok()) << pair.status();
        links_[low]->AddPeer(rank, std::move(pair->first));
        links_[rank]->AddPeer(low, std::move(pair->second));
      }
      if (rank > 0) links_[rank]->Register(kChannel, {}, observers_[rank - 1].get());
    }
  }
  PeerLinks& asker() { return *links_[0]; }

 private:
  std::vector<std::unique_ptr<SlowObserver>> observers_;
  std::vector<std::unique_ptr<PeerLinks>> links_;
};

Standing Waiting() { return {.call = "#7 group=world barrier", .lacks = {1}}; }

std::unique_ptr<SlowObserver> After(absl::Duration delay, Standing standing) {
  return std::make_unique<SlowObserver>(std::move(standing), absl::Now() + delay);
}

// On a busy machine a rank may answer late. As long as it could as well be the one to blame as the
// one that never answers, it is given time.
TEST(AskTest, TwoSilentRanksAreGivenTime) {
  constexpr absl::Duration kPatience = absl::Seconds(2);
  Ranks ranks;
  ranks.Connect(After(absl::InfiniteDuration(), {}), After(1.25 * kPatience, Waiting()));
  const Survey survey = ranks.asker().Ask(kChannel, kPatience);
  EXPECT_FALSE(survey.standings[1].has_value());
  EXPECT_TRUE(survey.standings[2].has_value());
  EXPECT_EQ(FindCulprit(survey, 0, {2}, 1, "world", absl::Seconds(1)).rank, 1);
}

// With everybody else waiting it is clear who is meant.
TEST(AskInTimeTest, OneSilentRankIsNotWaitedFor) {
  constexpr absl::Duration kPatience = absl::Seconds(1);
  test::ExpectInTime([&]() -> std::string {
    Ranks ranks;
    ranks.Connect(After(absl::InfiniteDuration(), {}), After(absl::ZeroDuration(), Waiting()));
    const absl::Time begin = absl::Now();
    const Survey survey = ranks.asker().Ask(kChannel, kPatience);
    const absl::Duration taken = absl::Now() - begin;
    EXPECT_GE(taken, kPatience);
    EXPECT_FALSE(survey.standings[1].has_value());
    EXPECT_TRUE(survey.standings[2].has_value());
    return taken < 2 * kPatience ? "" : absl::StrCat("asked for ", absl::FormatDuration(taken));
  });
}

}  // namespace
}  // namespace omni::comm
