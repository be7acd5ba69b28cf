// One connection from each rank to every other that carries no data, only news: who is alive,
// who has left, who gave up and why, what each is doing, and memory to share.
//
// A thread per rank listens. The kernel closes a dead process' sockets, so the end of a
// connection without a farewell names the dead rank at once, whatever the data plane is doing.
// A stopped process keeps its sockets but doesn't answer questions: so it is found when a
// deadline expires, and what it did is known from what it last said by itself.
//
// All groups a rank belongs to share its links; a group is a `channel`. They also share one fate:
// the first failure in any of them ends all of them, on all ranks of the job.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "runtime/base/doorstep.h"
#include "runtime/base/progress.h"
#include "runtime/base/working_clock.h"
#include "runtime/comm/options.h"
#include "runtime/comm/sockets.h"
#include "runtime/comm/standing.h"

namespace omni::comm {

// A call for the log.
struct LoggedCall {
  absl::Time issued;
  bool succeeded;
  std::string text;
};

// A group, as the links see it. Called by the listening thread and by who fails or reports; must
// not call Unregister.
class ChannelObserver {
 public:
  virtual ~ChannelObserver() = default;
  virtual void OnLeft(int32_t world_rank) = 0;
  virtual void OnFailed(const absl::Status& why) = 0;
  // Of this rank in this group; without activity.
  virtual Standing standing() const = 0;
  virtual std::vector<LoggedCall> recent() const = 0;
};

class PeerLinks {
 public:
  // `listener` may be invalid: then all links are given by AddPeer. `addresses` are where the
  // listeners of all ranks are, empty if there are none.
  PeerLinks(int32_t rank, int32_t size, UniqueFd listener, std::vector<std::string> addresses,
            const CommOptions& options);
  ~PeerLinks();  // says farewell
  PeerLinks(const PeerLinks&) = delete;
  PeerLinks& operator=(const PeerLinks&) = delete;

  int32_t rank() const { return rank_; }
  int32_t size() const { return size_; }

  void AddPeer(int32_t rank, UniqueFd link);
  // Connects to all lower ranks and waits for all higher ones.
  absl::Status ConnectAll();

  // A connection to `peer` for `channel`: made towards lower ranks, awaited from higher ones.
  absl::StatusOr<UniqueFd> OpenStream(int32_t peer, uint64_t channel, absl::Time deadline);

  // From now on the observer hears of its members; of what happened before, at once.
  void Register(uint64_t channel, absl::Span<const int32_t> members, ChannelObserver* observer);
  // When it returns, the observer is not being called and won't be.
  void Unregister(uint64_t channel);

  void SendLeft(uint64_t channel, absl::Span<const int32_t> members);

  // All groups are dead from now on, here and at all other ranks. The first reason counts.
  void Fail(const absl::Status& why);
  absl::Status failure() const;

  // What this rank does from now on: for the others, in case they wait for it. Cheap.
  void SetActivity(absl::string_view activity);
  // Returns once it has been sent to the others: they know it whatever happens to this rank then.
  // At the latest after options.deadline.
  void FlushActivity();
  // Shared: this rank's work ticks it, and may do so longer than the links live.
  std::shared_ptr<Progress> progress() const { return progress_; }

  // Asks all ranks how they stand; `channel` is the group whose sequence is of interest. Who has
  // not answered after `patience` may be stopped or only slow: as long as more than one rank may be
  // the one that all others wait for, it waits on, up to three times that.
  Survey Ask(uint64_t channel, absl::Duration patience);

  // After a failure: the reason, what the ranks were doing as far as this one asked, and its own
  // last calls in all groups, in the order they were issued in, and any older ones that had not
  // ended then.
  std::vector<std::string> FaultReport() const;

  // Sharing memory: Unix links only.
  absl::Status SendMemory(int32_t peer, uint64_t channel, int fd);
  absl::StatusOr<UniqueFd> AwaitMemory(int32_t peer, uint64_t channel, absl::Time deadline);

 private:
  enum class Type : uint32_t { kAbort, kLeft, kFarewell, kQuery, kAnswer, kActivity, kMemory };
  struct Message {  // goes before its text
    Type type;
    uint32_t text_bytes = 0;
    uint64_t channel = 0;
    uint64_t query = 0;
    int32_t code = 0;
    int32_t reserved = 0;
  };
  static constexpr size_t kMaxText = 2048;
  struct Peer {
    UniqueFd fd;
    std::mutex write_mutex;     // one message at a time
    bool writable = true;       // guarded by write_mutex, as is the next
    std::string unsent;         // what the socket had no room for
    std::string inbox;          // bytes of a message not yet complete
    std::vector<UniqueFd> fds;  // descriptors received, oldest first
    bool said_farewell = false;
    bool closed = false;
  };
  struct HelloAnswer;
  struct Channel {
    ChannelObserver* observer = nullptr;
    std::vector<int32_t> members;  // world ranks
    std::set<int32_t> left;        // heard before registration
    bool closed = false;
  };

  using Arrivals = std::map<std::pair<uint64_t, int32_t>, UniqueFd>;  // by (channel, peer)

  void Listen();              // the thread
  void Welcome(UniqueFd fd);  // its greeting can be read
  void SendUnsent(int32_t rank);
  void ReadPeer(int32_t rank);
  void Dispatch(int32_t from, const Message& message, const std::string& text);
  void PeerClosed(int32_t rank);
  // The rest with dispatch_mutex_ held.
  void FailAll(const absl::Status& why);
  std::vector<ChannelObserver*> Observers() const;
  Standing OwnStanding(uint64_t channel) const;
  // Tells the others a new activity, at most so often unless flushed, and from time to time the old
  // one, as a sign of life; milliseconds until to look again.
  int TellActivity();
  int NumSuspects(uint64_t query) const;  // with mutex_ held: ranks not known to wait for others
  // False if the peer will not get it. An activity is dropped where the peer does not read; all
  // else then waits for it.
  bool Send(int32_t peer, const Message& message, absl::string_view text, int fd = -1);
  // One attempt to connect and say who this is.
  absl::StatusOr<UniqueFd> Greet(int32_t peer, uint64_t channel, absl::Time deadline,
                                 HelloAnswer* answer);
  void Wake();
  // Takes what `peer` sent for `channel`; `what` it was to do, for the message.
  absl::StatusOr<UniqueFd> Await(Arrivals& arrivals, int32_t peer, uint64_t channel,
                                 absl::Time deadline, absl::string_view what);
  std::string DescribePeer(int32_t peer) const;

  const int32_t rank_, size_;
  const std::vector<std::string> addresses_;
  const CommOptions options_;
  UniqueFd wake_;  // eventfd

  mutable std::mutex dispatch_mutex_;  // held while observers are called; taken before mutex_
  mutable std::mutex mutex_;
  std::condition_variable arrived_;  // a stream, memory, an answer or a death
  bool stop_ = false;
  std::vector<std::unique_ptr<Peer>> peers_;  // null for oneself and until connected
  std::set<int32_t> dead_;
  std::map<uint64_t, Channel> channels_;
  Arrivals streams_;          // accepted
  std::string door_problem_;  // why none can be
  Arrivals memories_;
  uint64_t next_query_ = 1;
  std::map<std::pair<uint64_t, int32_t>, Standing> answers_;  // by (query, peer)
  std::set<uint64_t> open_queries_;
  absl::Status failure_;
  std::vector<std::string> survey_;       // what was answered before the failure
  std::vector<std::string> last_heard_;   // activities, by peer
  std::vector<absl::Duration> heard_at_;  // likewise: when anything last came from it

  const std::shared_ptr<Progress> progress_ = std::make_shared<Progress>();
  mutable std::mutex activity_mutex_;  // guards the next six; the last lock taken
  mutable Stillness stillness_{*progress_};
  std::condition_variable told_;  // told_activity_
  std::string activity_;
  absl::Duration activity_since_;  // all times are of the working clock
  int64_t num_activities_ = 0;
  int64_t told_activity_ = 0;     // how many of them the others have been sent, or passed over
  int64_t flushed_activity_ = 0;  // this one is due at once
  absl::Duration told_at_ = -absl::InfiniteDuration();  // the thread's own, as is the rest
  Doorstep door_;                                       // the thread's own
  std::thread thread_;
};

}  // namespace omni::comm
