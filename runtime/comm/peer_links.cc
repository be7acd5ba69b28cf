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

// The first thing a connecting rank says, and the answer.
struct Hello {
  uint64_t magic, token;
  int64_t generation;
  uint64_t channel;
  int32_t rank, size;
};
enum class Welcome : int32_t { kYes, kOtherJob, kOtherGeneration, kOtherSize, kBadRank };
struct HelloAnswer {
  Welcome code;
  int32_t size;
  int64_t generation;
};

}  // namespace

PeerLinks::PeerLinks(int32_t rank, int32_t size, UniqueFd listener,
                     std::vector<std::string> addresses, const CommOptions& options)
    : rank_(rank),
      size_(size),
      addresses_(std::move(addresses)),
      options_(options),
      listener_(std::move(listener)),
      wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      peers_(size),
      last_heard_(size),
      heard_at_(size, WorkingClock::OfProcess().Now()) {
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

absl::StatusOr<UniqueFd> PeerLinks::OpenStream(int32_t peer, uint64_t channel,
                                               absl::Time deadline) {
  if (peer > rank_) return Await(streams_, peer, channel, deadline, "connected");
  auto connected = Connect(addresses_[peer], deadline);
  if (!connected.ok())
    return Annotate(connected.status(), absl::StrCat("connecting to rank ", peer));
  const Hello hello = {.magic = kMagic,
                       .token = options_.token,
                       .generation = options_.generation,
                       .channel = channel,
                       .rank = rank_,
                       .size = size_};
  HelloAnswer answer = {};
  absl::Status status = WriteAll(connected->get(), &hello, sizeof(hello), deadline);
  if (status.ok()) status = ReadAll(connected->get(), &answer, sizeof(answer), deadline);
  if (!status.ok()) return Annotate(status, absl::StrCat("greeting ", DescribePeer(peer)));
  switch (answer.code) {
    case Welcome::kYes:
      return *std::move(connected);
    case Welcome::kOtherGeneration:
      return absl::FailedPreconditionError(
          absl::StrCat(DescribePeer(peer), " is of generation ", answer.generation,
                       ", this rank of generation ", options_.generation));
    case Welcome::kOtherSize:
      return absl::InvalidArgumentError(
          absl::StrCat(DescribePeer(peer), " expects ", answer.size, " ranks, this rank ", size_));
    case Welcome::kBadRank:
      return absl::InvalidArgumentError(
          absl::StrCat(DescribePeer(peer), " refuses a second rank ", rank_));
    case Welcome::kOtherJob:
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
                   absl::FormatDuration(absl::Trunc(absl::Now() - start, absl::Milliseconds(1)))));
}

absl::Status PeerLinks::SendMemory(int32_t peer, uint64_t channel, int fd) {
  if (Send(peer, {.type = Type::kMemory, .channel = channel}, "", fd)) return absl::OkStatus();
  return absl::AbortedError(absl::StrCat("rank ", peer, " can't be reached"));
}

absl::StatusOr<UniqueFd> PeerLinks::AwaitMemory(int32_t peer, uint64_t channel,
                                                absl::Time deadline) {
  return Await(memories_, peer, channel, deadline, "shared its memory");
}

// Control messages are short and rare, so the socket has room for them unless the peer has
// long stopped reading; then nothing more can be said to it.
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
  ssize_t sent;
  do {
    sent = sendmsg(peer->fd.get(), &envelope, MSG_NOSIGNAL | MSG_DONTWAIT);
  } while (sent < 0 && errno == EINTR);
  peer->writable = sent == static_cast<ssize_t>(bytes.size());
  return peer->writable;
}

void PeerLinks::Listen() {
  NameThread("peers");
  std::vector<pollfd> polled;
  std::vector<int32_t> ranks;
  while (true) {
    polled.assign(1, {.fd = wake_.get(), .events = POLLIN, .revents = 0});
    polled.push_back({.fd = listener_.get(), .events = POLLIN, .revents = 0});  // -1 is ignored
    ranks.clear();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (stop_) return;
      for (int32_t rank = 0; rank < size_; ++rank) {
        if (peers_[rank] == nullptr || peers_[rank]->closed) continue;
        polled.push_back({.fd = peers_[rank]->fd.get(), .events = POLLIN, .revents = 0});
        ranks.push_back(rank);
      }
    }
    for (const Pending& pending : pending_) {
      polled.push_back({.fd = pending.fd.get(), .events = POLLIN, .revents = 0});
    }
    if (poll(polled.data(), polled.size(), TellActivity()) < 0) continue;
    if (polled[0].revents != 0) {
      uint64_t count;
      (void)!read(wake_.get(), &count, sizeof(count));
    }
    // Messages first: a rank that gave up says why before it goes.
    for (size_t i = 0; i < ranks.size(); ++i) {
      if (polled[2 + i].revents != 0) ReadPeer(ranks[i]);
    }
    ReadPending();
    if (polled[1].revents != 0) AcceptAll();
  }
}

void PeerLinks::AcceptAll() {
  while (true) {
    UniqueFd fd = Accept(listener_);
    if (!fd.valid()) return;
    pending_.push_back({.fd = std::move(fd), .inbox = {}});
  }
}

void PeerLinks::ReadPending() {
  for (Pending& pending : pending_) {
    char buffer[sizeof(Hello)];
    const ssize_t got = recv(pending.fd.get(), buffer, sizeof(Hello) - pending.inbox.size(), 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (got <= 0) {
      pending.fd.Reset();
      continue;
    }
    pending.inbox.append(buffer, got);
    if (pending.inbox.size() < sizeof(Hello)) continue;
    Hello hello;
    std::memcpy(&hello, pending.inbox.data(), sizeof(hello));
    HelloAnswer answer = {.code = Welcome::kYes, .size = size_, .generation = options_.generation};
    const auto key = std::pair(hello.channel, hello.rank);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (hello.magic != kMagic || hello.token != options_.token) {
      answer.code = Welcome::kOtherJob;
    } else if (hello.generation != options_.generation) {
      answer.code = Welcome::kOtherGeneration;
    } else if (hello.size != size_) {
      answer.code = Welcome::kOtherSize;
    } else if (hello.rank <= rank_ || hello.rank >= size_ || streams_.contains(key)) {
      answer.code = Welcome::kBadRank;
    }
    (void)!send(pending.fd.get(), &answer, sizeof(answer), MSG_NOSIGNAL);
    if (answer.code == Welcome::kYes) {
      streams_[key] = std::move(pending.fd);
      arrived_.notify_all();
    } else {
      pending.fd.Reset();
    }
  }
  std::erase_if(pending_, [](const Pending& pending) { return !pending.fd.valid(); });
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
