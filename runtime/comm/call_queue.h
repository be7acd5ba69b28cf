// The calls of one group on one rank, from issue to end.
//
// A call waits until those before it have ended and its input is ready, is run by the queue's
// thread or by a waiter who would only sleep otherwise, and ends for good: with success, or with
// the one status that killed the group.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "runtime/comm/collectives.h"
#include "runtime/comm/options.h"
#include "runtime/comm/peer_links.h"
#include "runtime/comm/transport.h"

namespace omni::comm {

// How long a wait may go on without progress of whom it waits for, and when to look next.
struct Patience {
  absl::Duration limit = absl::InfiniteDuration();
  absl::Time until = absl::InfiniteFuture();
};

// One call, or the calls of a group. Guarded by the queue's mutex, except `calls`, which stay
// as they are once issued, and `waiting_for`.
struct Ticket {
  std::vector<Call> calls;
  int64_t number = 0;  // of all calls of this rank in this group, from 1
  // Times here are of the working clock.
  absl::Time issued, started = absl::InfinitePast(), ended = absl::InfiniteFuture();
  bool input_ready = true;
  bool done = false;
  absl::Status status;
  std::atomic<int32_t> waiting_for{-1};
};

class CallQueue final : public ChannelObserver {
 public:
  // `members` are the world ranks of the group, members[rank] this one.
  CallQueue(std::shared_ptr<PeerLinks> links, std::unique_ptr<Transport> transport,
            uint64_t channel, std::vector<int32_t> members, int32_t rank, std::string name,
            const CommOptions& options);
  ~CallQueue() override;

  // Starts listening for news of the members and the thread. Not in the constructor, because
  // news may come at once.
  void Start();
  // Ends what is pending and leaves the group. Afterwards all tickets are done.
  void Stop();

  // Queues a ticket with its calls. With `input_ready` false, InputReady has to follow.
  void Issue(const std::shared_ptr<Ticket>& ticket, bool input_ready);
  void InputReady(const std::shared_ptr<Ticket>& ticket);
  // Runs calls up to this one, or waits while another thread does. DeadlineExceeded once whom it
  // waits for has shown no progress for `limit`.
  absl::Status Await(const std::shared_ptr<Ticket>& ticket, absl::Duration limit);
  bool IsDone(const Ticket& ticket) const;

  // All groups of the job are dead from now on (PeerLinks::Fail).
  void Fail(const absl::Status& why);
  absl::Status failure() const;

  const CommOptions& options() const { return options_; }

  void OnLeft(int32_t world_rank) override;
  void OnFailed(const absl::Status& why) override;
  Standing standing() const override;
  std::vector<LoggedCall> recent() const override;

 private:
  void Run();  // the thread
  // With mutex_ held; ExecuteFront lets go of it while the call runs.
  bool FrontIsReady() const;
  void ExecuteFront(std::unique_lock<std::mutex>& lock, const Patience& patience);
  absl::Status Execute(Ticket& ticket, const Patience& patience);
  absl::Status DriveExchange(Ticket& ticket, Exchange& exchange, Patience patience,
                             const std::function<bool()>& finished);
  void Finish(Ticket& ticket, const absl::Status& status);
  // Of a wait whose time to look has come: why it ends, or OK and when to look again.
  absl::Status Expired(Ticket& ticket, absl::Duration waited, Patience* patience);
  std::vector<int32_t> Lacking() const;  // ranks of the job
  int32_t RankOf(int32_t world_rank) const;
  std::string DescribeTicket(const Ticket& ticket) const;
  // True if nothing more will come from the peer; gives the links time to say that it died.
  bool IsGone(int32_t peer);

  const std::shared_ptr<PeerLinks> links_;  // shared by all groups of the rank
  const std::unique_ptr<Transport> transport_;
  const uint64_t channel_;
  const std::vector<int32_t> members_;
  const int32_t rank_;
  const std::string name_;  // with the ranks of the job it has, unless it has all
  const CommOptions options_;

  // For peers who ask, and for passes that must not lock.
  std::atomic<bool> failed_{false};
  std::atomic<int64_t> sequence_{0};
  std::atomic<bool> stuck_{false};        // the running call moves no bytes; it
  std::vector<std::atomic<bool>> lacks_;  // lacks those of these, by rank
  std::vector<std::atomic<bool>> left_;   // by rank
  // Unix nanoseconds; the clock of a call that nobody waits for stands still.
  std::atomic<int64_t> awaited_since_;

  // From here to stop_: guarded by mutex_.
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  absl::Status failure_;
  std::deque<std::shared_ptr<Ticket>> queue_;
  std::deque<std::shared_ptr<Ticket>> recent_;
  std::shared_ptr<Ticket> running_;
  absl::Time last_sign_;  // when a call was issued or ended last
  int32_t num_waiters_ = 0;
  int64_t num_issued_ = 0;
  bool stop_ = false;

  // Of whoever is executing.
  int64_t num_collectives_ = 0;
  std::vector<int64_t> messages_sent_, messages_received_;
  std::thread thread_;
};

}  // namespace omni::comm
