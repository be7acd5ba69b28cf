#include "runtime/comm/call_queue.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "runtime/base/check.h"
#include "runtime/base/process.h"
#include "runtime/base/status.h"
#include "runtime/base/wait.h"
#include "runtime/base/working_clock.h"

namespace omni::comm {
namespace {

constexpr size_t kRecent = 32;

constexpr int64_t kNotAwaited = std::numeric_limits<int64_t>::max();

// In which deadlines are counted: of the working clock, as a time since its beginning.
absl::Time Now() { return absl::UnixEpoch() + WorkingClock::OfProcess().Now(); }

// "world/tensor{2,3}"; the world itself goes without its ranks.
std::string NameWithRanks(std::string name, absl::Span<const int32_t> members, int32_t world_size) {
  constexpr size_t kShown = 16;
  if (static_cast<int32_t>(members.size()) == world_size) return name;
  absl::StrAppend(&name, "{", absl::StrJoin(members.subspan(0, kShown), ","),
                  members.size() > kShown ? ",..." : "", "}");
  return name;
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
      name_(NameWithRanks(std::move(name), members_, links_->size())),
      options_(options),
      lacks_(members_.size()),
      left_(members_.size()),
      awaited_since_(kNotAwaited),
      last_sign_(Now()),
      messages_sent_(members_.size()),
      messages_received_(members_.size()) {}

CallQueue::~CallQueue() { Stop(); }

void CallQueue::Start() {
  links_->Register(channel_, members_, this);
  thread_ = std::thread([this] { Run(); });
}

void CallQueue::Stop() {
  if (!thread_.joinable()) return;
  OnFailed(absl::CancelledError(absl::StrCat("the communicator of ", name_, " was destroyed")));
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
  ticket->issued = Now();
  ticket->input_ready = input_ready;
  ticket->number = ++num_issued_;
  last_sign_ = ticket->issued;
  recent_.push_back(ticket);
  while (recent_.size() > kRecent && recent_.front()->done) recent_.pop_front();
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
  return !running_ && !queue_.empty() && queue_.front()->input_ready;
}

void CallQueue::Run() {
  NameThread("collectives");
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return (stop_ && !running_) || FrontIsReady(); });
    if (!FrontIsReady()) return;  // stopping has failed all that was in the queue
    ExecuteFront(lock, {});
  }
}

absl::Status CallQueue::Await(const std::shared_ptr<Ticket>& ticket, absl::Duration limit) {
  const absl::Time start = Now();
  Patience patience = {.limit = limit, .until = start + limit};
  const auto done_or_ready = [&] { return ticket->done || FrontIsReady(); };
  std::unique_lock<std::mutex> lock(mutex_);
  OMNI_CHECK(ticket->number > 0);  // else its group has not ended yet
  if (ticket->done) return ticket->status;
  if (num_waiters_++ == 0) awaited_since_ = absl::ToUnixNanos(start);
  while (!ticket->done) {
    const WaitEnd end = WaitFor(changed_, lock, {.limit = patience.until - Now()}, done_or_ready);
    if (end == WaitEnd::kLimit) {
      lock.unlock();
      const absl::Status dead = Expired(*ticket, Now() - start, &patience);
      if (!dead.ok()) Fail(dead);
      lock.lock();
      // Soon: whoever runs it sees the failure.
      if (!dead.ok()) changed_.wait(lock, [&] { return ticket->done; });
    } else if (!ticket->done) {
      ExecuteFront(lock, patience);
    }
  }
  if (--num_waiters_ == 0) awaited_since_ = kNotAwaited;
  return ticket->status;
}

bool CallQueue::IsDone(const Ticket& ticket) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return ticket.done;
}

void CallQueue::ExecuteFront(std::unique_lock<std::mutex>& lock, const Patience& patience) {
  const std::shared_ptr<Ticket> ticket = queue_.front();
  queue_.pop_front();
  running_ = ticket;
  ticket->started = Now();
  lock.unlock();
  const absl::Status status = Execute(*ticket, patience);
  if (!status.ok()) Fail(status);
  lock.lock();
  running_ = nullptr;
  // A call that made it before the group died has its result; one that did not gets the reason.
  Finish(*ticket, status.ok() ? status : failure_);
}

void CallQueue::Finish(Ticket& ticket, const absl::Status& status) {
  ticket.ended = last_sign_ = Now();
  ticket.status = status;
  ticket.done = true;
  changed_.notify_all();
}

absl::Status CallQueue::Execute(Ticket& ticket, const Patience& patience) {
  const Drive drive = [&](Exchange& exchange, const std::function<bool()>& finished) {
    return DriveExchange(ticket, exchange, patience, finished);
  };
  const Group group = {.transport = *transport_,
                       .rank = rank_,
                       .size = static_cast<int32_t>(members_.size()),
                       .drive = drive};
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
  // One that gave up lacks what it lacks until the group is dead: another thread that gives up
  // meanwhile, or a rank that asks, has to see it.
  if (status.ok()) stuck_ = false;
  return status;
}

absl::Status CallQueue::DriveExchange(Ticket& ticket, Exchange& exchange, Patience patience,
                                      const std::function<bool()>& finished) {
  absl::Time last_progress = absl::InfinitePast();
  Patience own = {.limit = options_.deadline, .until = absl::InfinitePast()};  // once it is awaited
  while (!finished()) {
    if (failed_.load(std::memory_order_acquire)) return failure();
    OMNI_ASSIGN_OR_RETURN(const bool progress, exchange.Step());
    if (progress) {
      last_progress = absl::InfinitePast();
      links_->progress()->Tick();
      stuck_.store(false, std::memory_order_relaxed);
      continue;
    }
    const absl::Time now = Now();
    if (last_progress == absl::InfinitePast()) last_progress = now;
    const absl::Span<const Interest> missing = exchange.Missing();
    bool moved = false;
    int32_t first = -1;
    for (int32_t peer = 0; peer < static_cast<int32_t>(missing.size()) && !moved; ++peer) {
      const bool lacks = missing[peer].receive || missing[peer].send;
      lacks_[peer].store(lacks, std::memory_order_relaxed);
      if (!lacks) continue;
      if (first < 0) first = peer;
      if (!IsGone(peer)) continue;
      // Its last bytes may have come since the pass.
      OMNI_ASSIGN_OR_RETURN(moved, exchange.Step());
      if (!moved && !failed_) {
        // It went in peace: this group is over, the job's others are not.
        const absl::Status left = absl::AbortedError(absl::StrCat(
            "rank ", members_[peer], " left ", name_, " during ", DescribeTicket(ticket)));
        OnFailed(left);
        return left;
      }
    }
    if (moved || failed_) continue;
    ticket.waiting_for = first;
    stuck_.store(true, std::memory_order_relaxed);
    absl::Time expiry = patience.until;
    if (const int64_t since = awaited_since_; since != kNotAwaited) {
      own.until = std::max(own.until,
                           std::max(last_progress, absl::FromUnixNanos(since)) + options_.deadline);
      expiry = std::min(expiry, own.until);
    }
    if (now >= expiry) {
      OMNI_RETURN_IF_ERROR(
          Expired(ticket, now - ticket.started, expiry == own.until ? &own : &patience));
      continue;
    }
    transport_->Wait(missing, absl::Now() + (expiry - now));
  }
  return absl::OkStatus();
}

bool CallQueue::IsGone(int32_t peer) {
  const auto left = [&] { return left_[peer].load(std::memory_order_acquire); };
  if (!transport_->Ended(peer, left())) return false;
  // The news is on its way to the listening thread; only a broken data connection has none.
  const absl::Time give_up = Now() + options_.deadline;
  while (!left() && !failed_ && Now() < give_up) absl::SleepFor(absl::Milliseconds(2));
  return true;
}

absl::Status CallQueue::Expired(Ticket& ticket, absl::Duration waited, Patience* patience) {
  const Survey survey = links_->Ask(channel_, options_.query_deadline);
  if (absl::Status known = failure(); !known.ok()) return known;
  const int32_t self = members_[rank_];
  // As long as whom it waits for gets on, or this rank does, it is slow: look again when it would
  // be dead. The question took its time.
  const auto go_on = [&](absl::Duration respite, absl::Duration query) {
    patience->until = Now() + std::max(respite - query, absl::Milliseconds(10));
    return absl::OkStatus();
  };
  const absl::Duration own_respite = patience->limit - survey.standings[self]->unchanged;
  const std::string call =
      absl::StrCat(DescribeTicket(ticket), " on rank ", self, " has waited ", Brief(waited));
  std::shared_ptr<Ticket> unmade;  // the first that has not ended, if its input is missing
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (running_ == nullptr && !queue_.empty() && !queue_.front()->input_ready) {
      unmade = queue_.front();
    }
  }
  if (unmade != nullptr) {
    if (own_respite > absl::ZeroDuration()) return go_on(own_respite, absl::ZeroDuration());
    const std::string which =
        unmade.get() == &ticket ? "this call" : absl::StrCat(DescribeTicket(*unmade), " before it");
    return absl::DeadlineExceededError(absl::StrCat("rank ", self, " is behind: ", call, "; rank ",
                                                    self, " has not made the input of ", which,
                                                    " yet"));
  }
  const Verdict verdict = FindCulprit(survey, self, Lacking(), sequence_, name_, patience->limit);
  if (verdict.rank < 0) {
    if (own_respite > absl::ZeroDuration()) return go_on(own_respite, absl::ZeroDuration());
    return absl::DeadlineExceededError(
        absl::StrCat(call, ": it or calls before it move bytes, but have not ended"));
  }
  if (!verdict.is_dead) {
    return go_on(verdict.respite,
                 survey.standings[verdict.rank] ? absl::ZeroDuration() : options_.query_deadline);
  }
  return absl::DeadlineExceededError(absl::StrCat("rank ", verdict.rank, " is behind: ", call,
                                                  verdict.chain, "; rank ", verdict.rank, " ",
                                                  verdict.why));
}

std::vector<int32_t> CallQueue::Lacking() const {
  std::vector<int32_t> ranks;
  if (!stuck_) return ranks;
  for (size_t peer = 0; peer < lacks_.size(); ++peer) {
    if (lacks_[peer]) ranks.push_back(members_[peer]);
  }
  return ranks;
}

void CallQueue::OnFailed(const absl::Status& why) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!failure_.ok()) return;
  failure_ = why;
  failed_.store(true, std::memory_order_release);
  for (const auto& ticket : queue_) Finish(*ticket, why);
  queue_.clear();
  transport_->Interrupt();
}

void CallQueue::Fail(const absl::Status& why) {
  if (failed_) return;  // already told, or destroyed, which is no failure
  links_->Fail(why);
  OnFailed(links_->failure());  // in case it is no longer registered
}

absl::Status CallQueue::failure() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return failure_;
}

int32_t CallQueue::RankOf(int32_t world_rank) const {
  const auto found = std::find(members_.begin(), members_.end(), world_rank);
  return found == members_.end() ? -1 : static_cast<int32_t>(found - members_.begin());
}

void CallQueue::OnLeft(int32_t world_rank) {
  const int32_t rank = RankOf(world_rank);
  if (rank < 0) return;
  left_[rank].store(true, std::memory_order_release);
  transport_->Interrupt();
}

Standing CallQueue::standing() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  Standing standing = {.unchanged = Now() - last_sign_, .sequence = sequence_};
  if (num_waiters_ > 0 && running_ != nullptr) {
    standing.call = DescribeTicket(*running_);
    standing.lacks = Lacking();
  }
  return standing;
}

std::string CallQueue::DescribeTicket(const Ticket& ticket) const {
  std::string what = absl::StrJoin(ticket.calls, " + ", [&](std::string* out, const Call& call) {
    if (!call.is_message()) {
      absl::StrAppend(out, Describe(call.header()));
    } else {
      absl::StrAppend(out, call.sends ? "send to " : "recv from ", members_[call.peer], " ",
                      omni::Name(call.output.dtype), " ", HumanBytes(call.output.num_bytes()));
    }
  });
  if (what.size() > 200) what = absl::StrCat(what.substr(0, 200), "...");
  return absl::StrCat("#", ticket.number, " group=", name_, " ", what);
}

std::vector<LoggedCall> CallQueue::recent() const {
  std::vector<LoggedCall> calls;
  const std::lock_guard<std::mutex> lock(mutex_);
  const absl::Time now = Now();
  for (const auto& ticket : recent_) {
    std::string line = DescribeTicket(*ticket);
    if (ticket->done && ticket->status.ok()) {
      absl::StrAppend(&line, " done in ", Brief(ticket->ended - ticket->issued));
    } else if (ticket->done) {
      absl::StrAppend(&line, " failed after ", Brief(ticket->ended - ticket->issued));
    } else {
      absl::StrAppend(&line, ticket->started == absl::InfinitePast() ? " queued " : " pending ",
                      Brief(now - ticket->issued));
    }
    const int32_t waiting_for = ticket->waiting_for;
    if (waiting_for >= 0 && !(ticket->done && ticket->status.ok())) {
      absl::StrAppend(&line, ", waiting for rank ", members_[waiting_for]);
    }
    calls.push_back({.issued = ticket->issued,
                     .succeeded = ticket->done && ticket->status.ok(),
                     .text = std::move(line)});
  }
  return calls;
}

}  // namespace omni::comm
