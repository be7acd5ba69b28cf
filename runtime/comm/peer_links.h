// One connection from each rank to every other that carries no data, only news: who is alive,
// who has left, who gave up and why, how far each has come, and memory to share.
//
// A thread per rank listens. The kernel closes a dead process' sockets, so the end of a
// connection without a farewell names the dead rank at once, whatever the data plane is doing.
// A stopped process keeps its sockets but doesn't answer questions: so it is found when a
// deadline expires. All groups a rank belongs to share its links; a group is a `channel`.
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
#include "runtime/comm/options.h"
#include "runtime/comm/sockets.h"

namespace omni::comm {

// How far a rank has come in one group; the answer to a question.
struct Position {
  int64_t sequence = 0;      // number of its current or last call
  int32_t in_call = 0;       // 1: that call is running
  int32_t waiting_for = -1;  // rank of the group it waits for, while in_call
};

// What a group wants to know. Called by the listening thread; must not call Unregister.
class ChannelObserver {
 public:
  virtual ~ChannelObserver() = default;
  virtual void OnDied(int32_t world_rank) = 0;
  virtual void OnLeft(int32_t world_rank) = 0;
  virtual void OnAborted(int32_t world_rank, const absl::Status& why) = 0;
  virtual Position position() const = 0;
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

  void SendAbort(uint64_t channel, absl::Span<const int32_t> members, const absl::Status& why);
  void SendLeft(uint64_t channel, absl::Span<const int32_t> members);

  // Asks all members but this rank; those that don't answer in time have no value.
  std::vector<std::optional<Position>> Query(uint64_t channel, absl::Span<const int32_t> members,
                                             absl::Duration patience);

  // Sharing memory: Unix links only.
  absl::Status SendMemory(int32_t peer, uint64_t channel, int fd);
  absl::StatusOr<UniqueFd> AwaitMemory(int32_t peer, uint64_t channel, absl::Time deadline);

 private:
  struct Message;
  struct Peer {
    UniqueFd fd;
    std::mutex write_mutex;     // one message at a time
    bool writable = true;       // guarded by write_mutex
    std::string inbox;          // bytes of a message not yet complete
    std::vector<UniqueFd> fds;  // descriptors received, oldest first
    bool said_farewell = false;
    bool closed = false;
  };
  struct Pending {  // accepted, has not said yet who it is
    UniqueFd fd;
    std::string inbox;
  };
  struct Channel {
    ChannelObserver* observer = nullptr;
    std::vector<int32_t> members;  // world ranks
    std::set<int32_t> left;        // heard before registration
    std::optional<std::pair<int32_t, absl::Status>> aborted;
    bool closed = false;
  };

  using Arrivals = std::map<std::pair<uint64_t, int32_t>, UniqueFd>;  // by (channel, peer)

  void Listen();  // the thread
  void AcceptAll();
  void ReadPending();
  void ReadPeer(int32_t rank);
  void Dispatch(int32_t from, const Message& message, const std::string& text);
  void PeerClosed(int32_t rank);
  bool Send(int32_t peer, const Message& message, absl::string_view text, int fd = -1);
  void Wake();
  // Takes what `peer` sent for `channel`; `what` it was to do, for the message.
  absl::StatusOr<UniqueFd> Await(Arrivals& arrivals, int32_t peer, uint64_t channel,
                                 absl::Time deadline, absl::string_view what);
  std::string DescribePeer(int32_t peer) const;

  const int32_t rank_, size_;
  const std::vector<std::string> addresses_;
  const CommOptions options_;
  UniqueFd listener_;
  UniqueFd wake_;  // eventfd

  std::mutex dispatch_mutex_;  // held while observers are called; taken before mutex_
  std::mutex mutex_;
  std::condition_variable arrived_;  // a stream, memory, an answer or a death
  bool stop_ = false;
  std::vector<std::unique_ptr<Peer>> peers_;  // null for oneself and until connected
  std::set<int32_t> dead_;
  std::map<uint64_t, Channel> channels_;
  Arrivals streams_;  // accepted
  Arrivals memories_;
  uint64_t next_query_ = 1;
  std::map<std::pair<uint64_t, int32_t>, Position> answers_;  // by (query, peer)
  std::set<uint64_t> open_queries_;
  std::vector<Pending> pending_;  // the thread's own
  std::thread thread_;
};

}  // namespace omni::comm
