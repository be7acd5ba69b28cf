// What PeerLinks does with the news: failures, farewells, questions, and what the ranks are doing.
#include <linux/sockios.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/base/wait.h"
#include "runtime/comm/peer_links.h"

namespace omni::comm {
namespace {

constexpr size_t kMaxActivity = 200;
constexpr size_t kReportedCalls = 32;
// With this many bytes unread a peer is stopped or very slow; what it need not know is not sent.
constexpr int kCongested = 16 << 10;

}  // namespace

void PeerLinks::Register(uint64_t channel, absl::Span<const int32_t> members,
                         ChannelObserver* observer) {
  const std::lock_guard<std::mutex> dispatch(dispatch_mutex_);
  std::vector<int32_t> left;
  absl::Status failure;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    Channel& entry = channels_[channel];
    OMNI_CHECK(entry.observer == nullptr && !entry.closed);
    entry.observer = observer;
    entry.members.assign(members.begin(), members.end());
    failure = failure_;
    left.assign(entry.left.begin(), entry.left.end());
    for (const int32_t member : members) {
      if (dead_.contains(member)) left.push_back(member);
    }
  }
  if (!failure.ok()) observer->OnFailed(failure);
  for (const int32_t rank : left) observer->OnLeft(rank);
}

void PeerLinks::Unregister(uint64_t channel) {
  const std::lock_guard<std::mutex> dispatch(dispatch_mutex_);
  const std::lock_guard<std::mutex> lock(mutex_);
  channels_[channel] = Channel{};
  channels_[channel].closed = true;
}

std::vector<ChannelObserver*> PeerLinks::Observers() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<ChannelObserver*> observers;
  for (const auto& [id, channel] : channels_) {
    if (channel.observer != nullptr) observers.push_back(channel.observer);
  }
  return observers;
}

void PeerLinks::SendLeft(uint64_t channel, absl::Span<const int32_t> members) {
  for (const int32_t member : members) Send(member, {.type = Type::kLeft, .channel = channel}, "");
}

void PeerLinks::Fail(const absl::Status& why) {
  const std::lock_guard<std::mutex> dispatch(dispatch_mutex_);
  FailAll(why);
}

// The peers are told first, whether the reason was found here or heard. A rank acts on a failure
// by leaving, so on each link the reason comes before the farewell, and nobody takes a rank that
// only gave up for the one that began it.
void PeerLinks::FailAll(const absl::Status& why) {
  if (!failure().ok()) return;
  const Message message = {.type = Type::kAbort, .code = static_cast<int32_t>(why.code())};
  for (int32_t peer = 0; peer < size_; ++peer) Send(peer, message, why.message());
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    failure_ = why;
    arrived_.notify_all();
  }
  for (ChannelObserver* observer : Observers()) observer->OnFailed(why);
}

absl::Status PeerLinks::failure() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return failure_;
}

void PeerLinks::SetActivity(absl::string_view activity) {
  const absl::Duration now = WorkingClock::OfProcess().Now();
  bool is_first;
  {
    const std::lock_guard<std::mutex> lock(activity_mutex_);
    activity_.assign(activity.data(), std::min(activity.size(), kMaxActivity));
    activity_since_ = now;
    is_first = num_activities_++ == 0;
  }
  if (is_first) Wake();
}

// By the thread, which is the only one that sends activities, so that none overtakes another.
void PeerLinks::FlushActivity() {
  std::unique_lock<std::mutex> lock(activity_mutex_);
  const int64_t flushed = flushed_activity_ = num_activities_;
  Wake();
  omni::WaitFor(told_, lock, {.limit = options_.deadline},
                [&] { return told_activity_ >= flushed; });
}

int PeerLinks::TellActivity() {
  const absl::Duration interval = std::max(absl::Milliseconds(100), size_ * absl::Milliseconds(1));
  // Often enough that a rank which is heard of no more has stopped, and is no victim of chance.
  const absl::Duration sign_of_life =
      std::max(interval, std::min(absl::Seconds(1), options_.deadline / 8));
  // Of progress: so precisely is it known when it ended.
  constexpr absl::Duration kLook = absl::Milliseconds(100);
  std::string activity;
  int64_t number;
  {
    const std::lock_guard<std::mutex> lock(activity_mutex_);
    stillness_.Grew();
    const absl::Duration now = WorkingClock::OfProcess().Now();
    absl::Duration due = told_at_ + sign_of_life;
    if (flushed_activity_ > told_activity_) {
      due = now;
    } else if (num_activities_ > told_activity_) {
      due = told_at_ + interval;
    }
    if (now < due) return 1 + static_cast<int>(std::min(kLook, due - now) / absl::Milliseconds(1));
    number = num_activities_;
    told_at_ = now;
    activity = activity_;
  }
  for (int32_t peer = 0; peer < size_; ++peer) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (peers_[peer] == nullptr || peers_[peer]->closed) continue;
    }
    int unread = 0;  // only this thread closes a peer, so it is still there
    if (ioctl(peers_[peer]->fd.get(), SIOCOUTQ, &unread) != 0 || unread > kCongested) continue;
    Send(peer, {.type = Type::kActivity}, activity);
  }
  const std::lock_guard<std::mutex> lock(activity_mutex_);
  told_activity_ = number;
  told_.notify_all();
  return static_cast<int>(kLook / absl::Milliseconds(1));
}

Standing PeerLinks::OwnStanding(uint64_t channel) const {
  Standing own;
  {
    const std::lock_guard<std::mutex> lock(activity_mutex_);
    own.activity = activity_;
    own.unchanged = std::min(WorkingClock::OfProcess().Now() - activity_since_, stillness_.Last());
  }
  ChannelObserver* asked = nullptr;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (const auto found = channels_.find(channel); found != channels_.end()) {
      asked = found->second.observer;
    }
  }
  for (const ChannelObserver* observer : Observers()) {
    const Standing standing = observer->standing();
    own.unchanged = std::min(own.unchanged, standing.unchanged);
    if (observer == asked) own.sequence = standing.sequence;
    if (standing.call.empty()) continue;
    if (own.call.empty()) own.call = standing.call;
    for (const int32_t rank : standing.lacks) {
      if (std::find(own.lacks.begin(), own.lacks.end(), rank) == own.lacks.end()) {
        own.lacks.push_back(rank);
      }
    }
  }
  return own;
}

int PeerLinks::NumSuspects(uint64_t query) const {
  int suspects = 0;
  for (int32_t peer = 0; peer < size_; ++peer) {
    if (peer == rank_ || dead_.contains(peer)) continue;
    const auto answer = answers_.find({query, peer});
    suspects += answer == answers_.end() || !Waits(answer->second) ? 1 : 0;
  }
  return suspects;
}

Survey PeerLinks::Ask(uint64_t channel, absl::Duration patience) {
  uint64_t query;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    query = next_query_++;
    open_queries_.insert(query);
  }
  for (int32_t peer = 0; peer < size_; ++peer) {
    Send(peer, {.type = Type::kQuery, .channel = channel, .query = query}, "");
  }
  Survey survey = {.standings = {}, .last_heard = {}, .left = std::vector<bool>(size_)};
  survey.standings.resize(size_);
  {
    std::unique_lock<std::mutex> lock(mutex_);
    // A rank that is gone can't be asked, but the listening thread may yet have to hear of it.
    const auto all_answered = [&]() {
      if (!failure_.ok()) return true;
      for (int32_t peer = 0; peer < size_; ++peer) {
        if (peer != rank_ && !dead_.contains(peer) && !answers_.contains({query, peer})) {
          return false;
        }
      }
      return true;
    };
    arrived_.wait_for(lock, absl::ToChronoNanoseconds(patience), all_answered);
    arrived_.wait_for(lock, absl::ToChronoNanoseconds(2 * patience),
                      [&] { return all_answered() || NumSuspects(query) <= 1; });
    survey.last_heard = last_heard_;
    for (const absl::Duration at : heard_at_) {
      survey.silent.push_back(WorkingClock::OfProcess().Now() - at);
    }
    for (int32_t peer = 0; peer < size_; ++peer) {
      survey.left[peer] = dead_.contains(peer);
      auto answer = answers_.extract({query, peer});
      if (!answer.empty()) survey.standings[peer] = std::move(answer.mapped());
    }
    open_queries_.erase(query);
  }
  // Observers have been told of all that ended the wait.
  const std::lock_guard<std::mutex> dispatch(dispatch_mutex_);
  survey.standings[rank_] = OwnStanding(channel);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (failure_.ok()) survey_ = Describe(survey);
  return survey;
}

std::vector<std::string> PeerLinks::FaultReport() const {
  const std::lock_guard<std::mutex> dispatch(dispatch_mutex_);
  std::vector<std::string> lines;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!failure_.ok()) lines.push_back(std::string(failure_.message()));
  }
  {
    const std::lock_guard<std::mutex> lock(activity_mutex_);
    if (!activity_.empty()) {
      lines.push_back(absl::StrCat("this rank, ", rank_, ", is at \"", activity_, "\" since ",
                                   Brief(WorkingClock::OfProcess().Now() - activity_since_)));
    }
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    lines.insert(lines.end(), survey_.begin(), survey_.end());
  }
  std::vector<LoggedCall> calls;
  for (const ChannelObserver* observer : Observers()) {
    for (LoggedCall& call : observer->recent()) calls.push_back(std::move(call));
  }
  std::stable_sort(calls.begin(), calls.end(),
                   [](const LoggedCall& a, const LoggedCall& b) { return a.issued < b.issued; });
  for (size_t i = 0; i < calls.size(); ++i) {
    if (calls[i].succeeded && i + kReportedCalls < calls.size()) continue;
    lines.push_back(std::move(calls[i].text));
  }
  return lines;
}

void PeerLinks::Dispatch(int32_t from, const Message& message, const std::string& text) {
  const std::lock_guard<std::mutex> dispatch(dispatch_mutex_);
  switch (message.type) {
    case Type::kAbort:
      FailAll(absl::Status(static_cast<absl::StatusCode>(message.code), text));
      return;
    case Type::kQuery: {
      const Message answer = {
          .type = Type::kAnswer, .channel = message.channel, .query = message.query};
      Send(from, answer, Encode(OwnStanding(message.channel)));
      return;
    }
    default:
      break;
  }
  ChannelObserver* observer = nullptr;  // who hears that the peer left
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    Peer& peer = *peers_[from];
    switch (message.type) {
      case Type::kFarewell:
        peer.said_farewell = true;
        break;
      case Type::kActivity:
        last_heard_[from] = text;
        break;
      case Type::kAnswer: {
        std::optional<Standing> standing = Decode(text);
        if (!standing) break;
        last_heard_[from] = standing->activity;
        if (open_queries_.contains(message.query)) {
          answers_[{message.query, from}] = *std::move(standing);
          arrived_.notify_all();
        }
        break;
      }
      case Type::kMemory:
        if (!peer.fds.empty()) {
          memories_[{message.channel, from}] = std::move(peer.fds.front());
          peer.fds.erase(peer.fds.begin());
          arrived_.notify_all();
        }
        break;
      case Type::kLeft: {
        Channel& channel = channels_[message.channel];
        observer = channel.observer;
        // This rank may yet have to get there.
        if (observer == nullptr && !channel.closed) channel.left.insert(from);
        break;
      }
      default:
        break;
    }
  }
  if (observer != nullptr) observer->OnLeft(from);
}

void PeerLinks::PeerClosed(int32_t rank) {
  const std::lock_guard<std::mutex> dispatch(dispatch_mutex_);
  std::string died;
  std::vector<ChannelObserver*> observers;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    Peer& peer = *peers_[rank];
    peer.closed = true;
    dead_.insert(rank);
    arrived_.notify_all();
    if (!peer.said_farewell) {
      died = absl::StrCat("rank ", rank, " of ", options_.name,
                          " died: its connection was closed without a farewell");
      if (!last_heard_[rank].empty()) {
        absl::StrAppend(&died, "; when last heard of, it was at \"", last_heard_[rank], "\"");
      }
    }
    for (const auto& [id, channel] : channels_) {
      const bool member =
          std::find(channel.members.begin(), channel.members.end(), rank) != channel.members.end();
      if (channel.observer != nullptr && member) observers.push_back(channel.observer);
    }
  }
  if (!died.empty()) FailAll(absl::AbortedError(died));
  for (ChannelObserver* observer : observers) observer->OnLeft(rank);
}

}  // namespace omni::comm
