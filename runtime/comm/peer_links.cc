#include "runtime/comm/peer_links.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/time/clock.h"
#include "runtime/base/check.h"
#include "runtime/base/process.h"
#include "runtime/base/status.h"

namespace omni::comm {
namespace {

constexpr uint64_t kMagic = 0x316d6d6f63696e6d;  // "mnicomm1"
constexpr uint64_t kLinkChannel = ~uint64_t{0};
// Connections that have not said who they are: as many as ranks may send at once, and scanners.
constexpr int32_t kMostWaiting = 256;
// A greeting that was cut off is sent again: in a flood of strangers it may be the oldest.
constexpr int kGreetings = 5;
// Of news that a peer does not read. Beyond that only why the job failed, and a farewell, wait.
constexpr size_t kMostUnsent = 256 << 10;

// The first thing a connecting rank says, and the answer.
struct Hello {
  uint64_t magic, token;
  int64_t generation;
  uint64_t channel;
  int32_t rank, size;
};
enum class WelcomeCode : int32_t { kYes, kOtherJob, kOtherGeneration, kOtherSize, kBadRank };

Doorstep MakeDoor(UniqueFd listener, int32_t size, const CommOptions& options) {
  std::vector<UniqueFd> listeners;
  if (listener.valid()) listeners.push_back(std::move(listener));
  return Doorstep(std::move(listeners),
                  {.greeting = std::string(reinterpret_cast<const char*>(&kMagic), sizeof(kMagic)),
                   .greeting_bytes = sizeof(Hello),
                   .most_waiting = kMostWaiting + 4 * size,
                   .patience = options.connect_deadline});
}

}  // namespace

struct PeerLinks::HelloAnswer {
  WelcomeCode code;
  int32_t size;
  int64_t generation;
};

PeerLinks::PeerLinks(int32_t rank, int32_t size, UniqueFd listener,
                     std::vector<std::string> addresses, const CommOptions& options)
    : rank_(rank),
      size_(size),
      addresses_(std::move(addresses)),
      options_(options),
      wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      peers_(size),
      last_heard_(size),
      heard_at_(size, WorkingClock::OfProcess().Now()),
      door_(MakeDoor(std::move(listener), size, options)) {
  OMNI_CHECK(wake_.valid());
  thread_ = std::thread([this] { Listen(); });
}

PeerLinks::~PeerLinks() {
  for (int32_t peer = 0; peer < size_; ++peer) Send(peer, {.type = Type::kFarewell}, "");
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  Wake();
  thread_.join();
  for (int32_t peer = 0; peer < size_; ++peer) {
    if (peers_[peer] != nullptr && !peers_[peer]->closed) SendUnsent(peer);
  }
}

void PeerLinks::Wake() {
  const uint64_t one = 1;
  (void)!write(wake_.get(), &one, sizeof(one));
}

std::string PeerLinks::DescribePeer(int32_t peer) const {
  return addresses_.empty() ? absl::StrCat("rank ", peer)
                            : absl::StrCat("rank ", peer, " (", addresses_[peer], ")");
}

void PeerLinks::AddPeer(int32_t rank, UniqueFd link) {
  auto peer = std::make_unique<Peer>();
  peer->fd = std::move(link);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    OMNI_CHECK(peers_[rank] == nullptr);
    peers_[rank] = std::move(peer);
    heard_at_[rank] = WorkingClock::OfProcess().Now();
  }
  Wake();
}

absl::Status PeerLinks::ConnectAll() {
  const absl::Time deadline = absl::Now() + options_.connect_deadline;
  for (int32_t peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    OMNI_ASSIGN_OR_RETURN(UniqueFd link, OpenStream(peer, kLinkChannel, deadline));
    AddPeer(peer, std::move(link));
  }
  return absl::OkStatus();
}

absl::StatusOr<UniqueFd> PeerLinks::Greet(int32_t peer, uint64_t channel, absl::Time deadline,
                                          HelloAnswer* answer) {
  auto connected = Connect(addresses_[peer], deadline);
  if (!connected.ok())
    return Annotate(connected.status(), absl::StrCat("connecting to rank ", peer));
  const Hello hello = {.magic = kMagic,
                       .token = options_.token,
                       .generation = options_.generation,
                       .channel = channel,
                       .rank = rank_,
                       .size = size_};
  absl::Status status = WriteAll(connected->get(), &hello, sizeof(hello), deadline);
  if (status.ok()) status = ReadAll(connected->get(), answer, sizeof(*answer), deadline);
  if (!status.ok()) return Annotate(status, absl::StrCat("greeting ", DescribePeer(peer)));
  return connected;
}

absl::StatusOr<UniqueFd> PeerLinks::OpenStream(int32_t peer, uint64_t channel,
                                               absl::Time deadline) {
  if (peer > rank_) return Await(streams_, peer, channel, deadline, "connected");
  HelloAnswer answer = {};
  absl::StatusOr<UniqueFd> connected = Greet(peer, channel, deadline, &answer);
  for (int i = 1; i < kGreetings && absl::IsUnavailable(connected.status()); ++i) {
    if (absl::Now() > deadline) break;
    absl::SleepFor(i * absl::Milliseconds(20));
    connected = Greet(peer, channel, deadline, &answer);
  }
  if (!connected.ok()) return connected.status();
  switch (answer.code) {
    case WelcomeCode::kYes:
      return *std::move(connected);
    case WelcomeCode::kOtherGeneration:
      return absl::FailedPreconditionError(
          absl::StrCat(DescribePeer(peer), " is of generation ", answer.generation,
                       ", this rank of generation ", options_.generation));
    case WelcomeCode::kOtherSize:
      return absl::InvalidArgumentError(
          absl::StrCat(DescribePeer(peer), " expects ", answer.size, " ranks, this rank ", size_));
    case WelcomeCode::kBadRank:
      return absl::InvalidArgumentError(
          absl::StrCat(DescribePeer(peer), " refuses a second rank ", rank_));
    case WelcomeCode::kOtherJob:
      break;
  }
  return absl::PermissionDeniedError(absl::StrCat(DescribePeer(peer), " belongs to another job"));
}

absl::StatusOr<UniqueFd> PeerLinks::Await(Arrivals& arrivals, int32_t peer, uint64_t channel,
                                          absl::Time deadline, absl::string_view what) {
  const absl::Time start = absl::Now();
  std::unique_lock<std::mutex> lock(mutex_);
  Arrivals::iterator found;
  const auto arrived = [&]() {
    found = arrivals.find({channel, peer});
    return found != arrivals.end() || dead_.contains(peer) || !failure_.ok();
  };
  arrived_.wait_until(lock, absl::ToChronoTime(deadline), arrived);
  if (found != arrivals.end()) {
    UniqueFd fd = std::move(found->second);
    arrivals.erase(found);
    return fd;
  }
  if (!failure_.ok()) return failure_;
  if (dead_.contains(peer)) return absl::AbortedError(absl::StrCat("rank ", peer, " has left"));
  return absl::DeadlineExceededError(
      absl::StrCat(DescribePeer(peer), " has not ", what, " after ",
                   absl::FormatDuration(absl::Trunc(absl::Now() - start, absl::Milliseconds(1))),
                   door_problem_.empty() ? "" : "; here ", door_problem_));
}

absl::Status PeerLinks::SendMemory(int32_t peer, uint64_t channel, int fd) {
  if (Send(peer, {.type = Type::kMemory, .channel = channel}, "", fd)) return absl::OkStatus();
  return absl::AbortedError(absl::StrCat("rank ", peer, " can't be reached"));
}

absl::StatusOr<UniqueFd> PeerLinks::AwaitMemory(int32_t peer, uint64_t channel,
                                                absl::Time deadline) {
  return Await(memories_, peer, channel, deadline, "shared its memory");
}

// Control messages are short and rare, so the socket has room for them unless the peer has long
// stopped reading. Then what it does is of no interest to it, but why the job failed still is: that
// waits here until there is room, and the thread sends it.
bool PeerLinks::Send(int32_t rank, const Message& message, absl::string_view text, int fd) {
  Peer* peer;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    peer = peers_[rank].get();  // stays where it is until the destructor
    if (peer == nullptr || peer->closed) return false;
  }
  text = text.substr(0, kMaxText);
  Message header = message;
  header.text_bytes = static_cast<uint32_t>(text.size());
  std::string bytes(sizeof(header) + text.size(), '\0');
  std::memcpy(bytes.data(), &header, sizeof(header));
  std::memcpy(bytes.data() + sizeof(header), text.data(), text.size());

  iovec part = {.iov_base = bytes.data(), .iov_len = bytes.size()};
  msghdr envelope = {};
  envelope.msg_iov = &part;
  envelope.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  if (fd >= 0) {
    envelope.msg_control = control;
    envelope.msg_controllen = sizeof(control);
    cmsghdr* rights = CMSG_FIRSTHDR(&envelope);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(rights), &fd, sizeof(int));
  }
  const std::lock_guard<std::mutex> lock(peer->write_mutex);
  if (!peer->writable) return false;
  const bool may_wait = message.type != Type::kActivity && fd < 0;
  if (!peer->unsent.empty()) {  // what comes later must not overtake it
    const bool is_last = message.type == Type::kAbort || message.type == Type::kFarewell;
    const bool has_room = peer->unsent.size() + bytes.size() <= kMostUnsent;
    if (!may_wait || (!has_room && !is_last)) return false;
    peer->unsent += bytes;
    return true;
  }
  ssize_t sent;
  do {
    sent = sendmsg(peer->fd.get(), &envelope, MSG_NOSIGNAL | MSG_DONTWAIT);
  } while (sent < 0 && errno == EINTR);
  if (sent == static_cast<ssize_t>(bytes.size())) return true;
  if (sent < 0 && errno != EAGAIN) return peer->writable = false;
  if (sent <= 0 && !may_wait) return false;
  peer->unsent = bytes.substr(std::max<ssize_t>(sent, 0));  // half a message must be completed
  Wake();                                                   // the thread looks for room
  return true;
}

void PeerLinks::SendUnsent(int32_t rank) {
  Peer& peer = *peers_[rank];
  const std::lock_guard<std::mutex> lock(peer.write_mutex);
  if (peer.unsent.empty()) return;
  const ssize_t sent =
      send(peer.fd.get(), peer.unsent.data(), peer.unsent.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent > 0) peer.unsent.erase(0, sent);
  if (sent < 0 && errno != EAGAIN && errno != EINTR) {
    peer.writable = false;
    peer.unsent.clear();
  }
}

void PeerLinks::Listen() {
  NameThread("peers");
  std::vector<pollfd> polled;
  std::vector<int32_t> ranks;
  while (true) {
    polled.assign(1, {.fd = wake_.get(), .events = POLLIN, .revents = 0});
    ranks.clear();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (stop_) return;
      door_problem_ = door_.problem();
      for (int32_t rank = 0; rank < size_; ++rank) {
        if (peers_[rank] == nullptr || peers_[rank]->closed) continue;
        polled.push_back({.fd = peers_[rank]->fd.get(), .events = POLLIN, .revents = 0});
        ranks.push_back(rank);
      }
    }
    for (size_t i = 0; i < ranks.size(); ++i) {
      Peer& peer = *peers_[ranks[i]];
      const std::lock_guard<std::mutex> lock(peer.write_mutex);
      if (!peer.unsent.empty()) polled[1 + i].events |= POLLOUT;
    }
    door_.AddTo(&polled);
    // The sooner of the two, of which -1 is never.
    const int activity_ms = TellActivity(), door_ms = door_.TimeoutMs();
    const bool one_is_never = activity_ms < 0 || door_ms < 0;
    const int timeout_ms =
        one_is_never ? std::max(activity_ms, door_ms) : std::min(activity_ms, door_ms);
    if (poll(polled.data(), polled.size(), timeout_ms) < 0) continue;
    if (polled[0].revents != 0) {
      uint64_t count;
      (void)!read(wake_.get(), &count, sizeof(count));
    }
    // Messages first: a rank that gave up says why before it goes.
    for (size_t i = 0; i < ranks.size(); ++i) {
      if ((polled[1 + i].revents & POLLOUT) != 0) SendUnsent(ranks[i]);
      if ((polled[1 + i].revents & ~POLLOUT) != 0) ReadPeer(ranks[i]);
    }
    for (UniqueFd& fd : door_.Serve(polled)) Welcome(std::move(fd));
  }
}

void PeerLinks::Welcome(UniqueFd fd) {
  if (!Admit(fd.get())) return;
  Hello hello;
  if (recv(fd.get(), &hello, sizeof(hello), 0) != sizeof(hello)) return;
  HelloAnswer answer = {
      .code = WelcomeCode::kYes, .size = size_, .generation = options_.generation};
  const auto key = std::pair(hello.channel, hello.rank);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (hello.token != options_.token) {
    answer.code = WelcomeCode::kOtherJob;
  } else if (hello.generation != options_.generation) {
    answer.code = WelcomeCode::kOtherGeneration;
  } else if (hello.size != size_) {
    answer.code = WelcomeCode::kOtherSize;
  } else if (hello.rank <= rank_ || hello.rank >= size_ || streams_.contains(key)) {
    answer.code = WelcomeCode::kBadRank;
  }
  (void)!send(fd.get(), &answer, sizeof(answer), MSG_NOSIGNAL);
  if (answer.code != WelcomeCode::kYes) return;
  streams_[key] = std::move(fd);
  arrived_.notify_all();
}

void PeerLinks::ReadPeer(int32_t rank) {
  Peer& peer = *peers_[rank];  // only this thread changes an entry that is there
  bool ended = false;
  while (true) {
    char buffer[4096];
    alignas(cmsghdr) char control[CMSG_SPACE(8 * sizeof(int))];
    iovec part = {.iov_base = buffer, .iov_len = sizeof(buffer)};
    msghdr envelope = {};
    envelope.msg_iov = &part;
    envelope.msg_iovlen = 1;
    envelope.msg_control = control;
    envelope.msg_controllen = sizeof(control);
    const ssize_t got = recvmsg(peer.fd.get(), &envelope, MSG_CMSG_CLOEXEC);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) break;
    if (got <= 0) {
      ended = true;
      break;
    }
    for (cmsghdr* item = CMSG_FIRSTHDR(&envelope); item; item = CMSG_NXTHDR(&envelope, item)) {
      if (item->cmsg_level != SOL_SOCKET || item->cmsg_type != SCM_RIGHTS) continue;
      const size_t count = (item->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (size_t i = 0; i < count; ++i) {
        int fd;
        std::memcpy(&fd, CMSG_DATA(item) + i * sizeof(int), sizeof(int));
        peer.fds.emplace_back(fd);
      }
    }
    peer.inbox.append(buffer, got);
    const std::lock_guard<std::mutex> lock(mutex_);
    heard_at_[rank] = WorkingClock::OfProcess().Now();
  }
  size_t begin = 0;
  while (peer.inbox.size() - begin >= sizeof(Message)) {
    Message message;
    std::memcpy(&message, peer.inbox.data() + begin, sizeof(message));
    if (message.text_bytes > kMaxText) {  // not one of ours
      ended = true;
      break;
    }
    if (peer.inbox.size() - begin < sizeof(message) + message.text_bytes) break;
    Dispatch(rank, message, peer.inbox.substr(begin + sizeof(message), message.text_bytes));
    begin += sizeof(message) + message.text_bytes;
  }
  peer.inbox.erase(0, begin);
  if (ended) PeerClosed(rank);
}

}  // namespace omni::comm
