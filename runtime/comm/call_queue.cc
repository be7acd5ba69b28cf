#include "runtime/comm/call_queue.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace omni::comm {
namespace {

constexpr size_t kRecent = 32;

std::string Seconds(absl::Duration duration) {
  return absl::FormatDuration(absl::Trunc(
      duration, duration < absl::Seconds(1) ? absl::Microseconds(1) : absl::Milliseconds(1)));
}

}  // namespace

CallQueue::CallQueue(std::shared_ptr<PeerLinks> links, std::unique_ptr<Transport> transport,
                     uint64_t channel, std::vector<int32_t> members, int32_t rank, std::string name,
                     const CommOptions& options)
    : links_(std::move(links)),
      transport_(std::move(transport)),
      channel_(channel),
      members_(std::move(members)),
      rank_(rank),
      name_(std::move(name)),
      options_(options),
      left_(members_.size()),
      messages_sent_(members_.size()),
      messages_received_(members_.size()) {}

CallQueue::~CallQueue() { Stop(); }

void CallQueue::Start() {
  links_->Register(channel_, members_, this);
  thread_ = std::thread([this] { Run(); });
}

void CallQueue::Stop() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard<std::mutex> one_at_a_time(fail_mutex_);
    FailHere(absl::CancelledError(absl::StrCat("the communicator of ", name_, " was destroyed")));
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    changed_.notify_all();
  }
  thread_.join();
  links_->SendLeft(channel_, members_);
  links_->Unregister(channel_);
}

void CallQueue::Issue(const std::shared_ptr<Ticket>& ticket, bool input_ready) {
  const std::lock_guard<std::mutex> lock(mutex_);
  ticket->issued = absl::Now();
  ticket->input_ready = input_ready;
  ticket->number = ++num_issued_;
  recent_.push_back(ticket);
  if (recent_.size() > kRecent) recent_.pop_front();
  if (!failure_.ok()) {
    Finish(*ticket, failure_);
  } else {
    queue_.push_back(ticket);
    changed_.notify_all();
  }
}

void CallQueue::InputReady(const std::shared_ptr<Ticket>& ticket) {
  const std::lock_guard<std::mutex> lock(mutex_);
  ticket->input_ready = true;
  changed_.notify_all();
}

bool CallQueue::FrontIsReady() const {
  return !busy_ && !queue_.empty() && queue_.front()->input_ready;
}

void CallQueue::Run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return (stop_ && !busy_) || FrontIsReady(); });
    if (!FrontIsReady()) return;  // stopping has failed all that was in the queue
    ExecuteFront(lock, absl::InfiniteFuture());
  }
}

absl::Status CallQueue::Await(const std::shared_ptr<Ticket>& ticket, absl::Duration patience) {
  const absl::Time start = absl::Now();
  const absl::Time give_up = start + patience;
  const auto done_or_ready = [&] { return ticket->done || FrontIsReady(); };
  std::unique_lock<std::mutex> lock(mutex_);
  OMNI_CHECK(ticket->number > 0);  // else its group has not ended yet
  while (!ticket->done) {
    if (give_up == absl::InfiniteFuture()) {
      changed_.wait(lock, done_or_ready);
    } else if (!changed_.wait_until(lock, absl::ToChronoTime(give_up), done_or_ready)) {
      lock.unlock();
      Fail(Expired(*ticket, absl::Now() - start));
      lock.lock();
      // Soon: whoever runs it sees the failure.
      changed_.wait(lock, [&] { return ticket->done; });
    }
    if (!ticket->done) ExecuteFront(lock, give_up);
  }
  return ticket->status;
}

void CallQueue::ExecuteFront(std::unique_lock<std::mutex>& lock, absl::Time give_up) {
  const std::shared_ptr<Ticket> ticket = queue_.front();
  queue_.pop_front();
  busy_ = true;
  ticket->started = absl::Now();
  lock.unlock();
  const absl::Status status = Execute(*ticket, give_up);
  if (!status.ok()) Fail(status);
  lock.lock();
  busy_ = false;
  // A call that made it before the group died has its result; one that did not gets the reason.
  Finish(*ticket, status.ok() ? status : failure_);
}

void CallQueue::Finish(Ticket& ticket, const absl::Status& status) {
  ticket.ended = absl::Now();
  ticket.status = status;
  ticket.done = true;
  changed_.notify_all();
}

absl::Status CallQueue::Execute(Ticket& ticket, absl::Time give_up) {
  const Drive drive = [&](Exchange& exchange, const std::function<bool()>& finished) {
    return DriveExchange(ticket, exchange, give_up, finished);
  };
  const Group group = {.transport = *transport_,
                       .rank = rank_,
                       .size = static_cast<int32_t>(members_.size()),
                       .drive = drive};
  in_call_ = 1;
  absl::Status status;
  std::vector<Call> messages;
  for (const Call& issued : ticket.calls) {
    if (issued.is_message()) {
      messages.push_back(issued);
      continue;
    }
    Call call = issued;
    call.sequence = ++num_collectives_;
    sequence_ = num_collectives_;
    status = RunCollective(call, group);
    if (!status.ok()) break;
  }
  if (status.ok() && !messages.empty()) {
    status = RunMessages(messages, absl::MakeSpan(messages_sent_),
                         absl::MakeSpan(messages_received_), group);
  }
  in_call_ = 0;
  waiting_for_ = -1;
  return status;
}

absl::Status CallQueue::DriveExchange(Ticket& ticket, Exchange& exchange, absl::Time give_up,
                                      const std::function<bool()>& finished) {
  absl::Time last_progress = absl::InfinitePast();
  while (!finished()) {
    if (failed_.load(std::memory_order_acquire)) return failure();
    OMNI_ASSIGN_OR_RETURN(const bool progress, exchange.Step());
    if (progress) {
      last_progress = absl::InfinitePast();
      waiting_for_ = -1;
      continue;
    }
    const absl::Time now = absl::Now();
    if (last_progress == absl::InfinitePast()) last_progress = now;
    const absl::Span<const Interest> missing = exchange.Missing();
    bool moved = false;
    int32_t waiting_for = -1;
    for (int32_t peer = 0; peer < static_cast<int32_t>(missing.size()) && !moved; ++peer) {
      if (!missing[peer].receive && !missing[peer].send) continue;
      if (waiting_for < 0) waiting_for = peer;
      if (!IsGone(peer)) continue;
      // Its last bytes may have come since the pass.
      OMNI_ASSIGN_OR_RETURN(moved, exchange.Step());
      if (!moved && !failed_) {
        return absl::AbortedError(
            absl::StrCat("rank ", peer, " left ", name_, " during ", DescribeTicket(ticket)));
      }
    }
    if (moved || failed_) continue;
    ticket.waiting_for = waiting_for;
    waiting_for_ = waiting_for;
    const absl::Time expiry = std::min(last_progress + options_.deadline, give_up);
    if (now >= expiry) return Expired(ticket, now - ticket.started);
    transport_->Wait(missing, expiry);
  }
  return absl::OkStatus();
}

bool CallQueue::IsGone(int32_t peer) {
  const auto left = [&] { return left_[peer].load(std::memory_order_acquire); };
  if (!transport_->Ended(peer, left())) return false;
  // The news is on its way to the listening thread; only a broken data connection has none.
  const absl::Time give_up = absl::Now() + options_.deadline;
  while (!left() && !failed_ && absl::Now() < give_up) absl::SleepFor(absl::Milliseconds(2));
  return true;
}

// Asks everybody how far they are, then follows who waits for whom to the one who waits for
// nobody: who has not come to this call, or doesn't even answer.
absl::Status CallQueue::Expired(Ticket& ticket, absl::Duration waited) {
  const auto positions = links_->Query(channel_, members_, options_.query_deadline);
  if (absl::Status known = failure(); !known.ok()) return known;
  int32_t blamed = ticket.waiting_for;
  std::string why = "has not answered: stopped or cut off";
  for (size_t hops = 0; blamed >= 0 && hops < members_.size(); ++hops) {
    if (blamed == rank_ || !positions[blamed]) break;
    const Position& position = *positions[blamed];
    if (!position.in_call || position.waiting_for < 0) {
      why =
          absl::StrCat(position.in_call ? "is still in" : "has come no further than",
                       " collective #", position.sequence, ", this rank is at #", sequence_.load());
      break;
    }
    why = absl::StrCat("waits for rank ", position.waiting_for, " in collective #",
                       position.sequence);
    const auto& next = positions[position.waiting_for];
    if (position.waiting_for == rank_ || (next && next->waiting_for == blamed)) break;  // a ring
    blamed = position.waiting_for;
    if (!positions[blamed]) why = "has not answered: stopped or cut off";
  }
  // Someone may be stopped although nobody got to wait for it.
  for (size_t peer = 0; peer < positions.size(); ++peer) {
    if (static_cast<int32_t>(peer) == rank_ || positions[peer] ||
        (blamed >= 0 && blamed != rank_ && !positions[blamed])) {
      continue;
    }
    blamed = static_cast<int32_t>(peer);
    why = "has not answered: stopped or cut off";
  }
  const bool input_ready = [&] {
    const std::lock_guard<std::mutex> lock(mutex_);
    return ticket.input_ready;
  }();
  if (!input_ready) {
    blamed = rank_;
    why = "has not made the input of this call yet";
  }
  const std::string text = DescribeTicket(ticket);
  if (blamed < 0) {
    return absl::DeadlineExceededError(absl::StrCat(text, " after ", Seconds(waited), " on rank ",
                                                    rank_, ": calls before it have not ended"));
  }
  return absl::DeadlineExceededError(absl::StrCat("rank ", blamed, " is behind: ", text,
                                                  " on rank ", rank_, " has waited ",
                                                  Seconds(waited), "; rank ", blamed, " ", why));
}

void CallQueue::FailHere(const absl::Status& why) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!failure_.ok()) return;
  failure_ = why;
  failed_.store(true, std::memory_order_release);
  for (const auto& ticket : queue_) Finish(*ticket, why);
  queue_.clear();
  transport_->Interrupt();
}

// The peers are told first, whether the reason was found here or heard. A rank acts on a failure
// by leaving, so on each link the reason comes before the farewell, and nobody takes a rank that
// only gave up for the one that began it.
void CallQueue::Fail(const absl::Status& why) {
  const std::lock_guard<std::mutex> one_at_a_time(fail_mutex_);
  if (failed_) return;
  links_->SendAbort(channel_, members_, why);
  FailHere(why);
}

absl::Status CallQueue::failure() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return failure_;
}

int32_t CallQueue::RankOf(int32_t world_rank) const {
  const auto found = std::find(members_.begin(), members_.end(), world_rank);
  return found == members_.end() ? -1 : static_cast<int32_t>(found - members_.begin());
}

void CallQueue::OnDied(int32_t world_rank) {
  const int32_t rank = RankOf(world_rank);
  std::string who = absl::StrCat("rank ", rank, " of ", name_);
  if (rank != world_rank) absl::StrAppend(&who, " (rank ", world_rank, " of the job)");
  Fail(
      absl::AbortedError(absl::StrCat(who, " died: its connection was closed without a farewell")));
}

void CallQueue::OnLeft(int32_t world_rank) {
  const int32_t rank = RankOf(world_rank);
  if (rank < 0) return;
  left_[rank].store(true, std::memory_order_release);
  transport_->Interrupt();
}

void CallQueue::OnAborted(int32_t, const absl::Status& why) { Fail(why); }

Position CallQueue::position() const {
  return {.sequence = sequence_, .in_call = in_call_, .waiting_for = waiting_for_};
}

std::string CallQueue::DescribeTicket(const Ticket& ticket) const {
  std::string what = absl::StrJoin(ticket.calls, " + ", [&](std::string* out, const Call& call) {
    if (!call.is_message()) {
      absl::StrAppend(out, Describe(call.header()));
    } else {
      absl::StrAppend(out, call.sends ? "send to " : "recv from ", call.peer, " ",
                      omni::Name(call.output.dtype), " ", HumanBytes(call.output.num_bytes()));
    }
  });
  if (what.size() > 200) what = absl::StrCat(what.substr(0, 200), "...");
  return absl::StrCat("#", ticket.number, " group=", name_, " ", what);
}

std::vector<std::string> CallQueue::Recent() const {
  std::vector<std::string> lines;
  const std::lock_guard<std::mutex> lock(mutex_);
  const absl::Time now = absl::Now();
  for (const auto& ticket : recent_) {
    std::string line = DescribeTicket(*ticket);
    if (ticket->done && ticket->status.ok()) {
      absl::StrAppend(&line, " done in ", Seconds(ticket->ended - ticket->issued));
    } else if (ticket->done) {
      absl::StrAppend(&line, " failed after ", Seconds(ticket->ended - ticket->issued));
    } else {
      absl::StrAppend(&line, ticket->started == absl::InfinitePast() ? " queued " : " pending ",
                      Seconds(now - ticket->issued));
      const int32_t waiting_for = ticket->waiting_for;
      if (waiting_for >= 0) absl::StrAppend(&line, ", waiting for rank ", waiting_for);
    }
    lines.push_back(std::move(line));
  }
  return lines;
}

}  // namespace omni::comm
