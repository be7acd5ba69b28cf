#include "runtime/comm/tcp_transport.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <vector>

#include "absl/time/clock.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/comm/peer_links.h"

namespace omni::comm {
namespace {

constexpr int64_t kInboxBytes = 256 << 10;
constexpr int64_t kDirectBytes = 64 << 10;  // larger reads go straight to where they belong
constexpr absl::Duration kLongestPoll = absl::Milliseconds(200);

class TcpTransport final : public Transport {
 public:
  TcpTransport(std::vector<UniqueFd> sockets, UniqueFd wake)
      : streams_(sockets.size()), wake_(std::move(wake)) {
    for (size_t peer = 0; peer < sockets.size(); ++peer) {
      streams_[peer].fd = std::move(sockets[peer]);
    }
  }

  void BeginPass() override {}
  void EndPass() override {}

  int64_t TrySend(int32_t to, absl::Span<const Piece> pieces) override {
    iovec parts[8];
    int count = 0;
    for (const Piece& piece : pieces) {
      if (piece.bytes == 0) continue;
      parts[count++] = {const_cast<uint8_t*>(piece.data), static_cast<size_t>(piece.bytes)};
      if (count == 8) break;
    }
    if (count == 0) return 0;
    msghdr envelope = {};
    envelope.msg_iov = parts;
    envelope.msg_iovlen = count;
    const ssize_t sent = sendmsg(streams_[to].fd.get(), &envelope, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno != EAGAIN && errno != EINTR) streams_[to].ended = true;
    return std::max<ssize_t>(sent, 0);
  }

  absl::Span<const uint8_t> Peek(int32_t from) override {
    Stream& stream = streams_[from];
    if (stream.inbox_end < kInboxBytes) Fill(stream);
    return {stream.inbox.data() + stream.inbox_begin,
            static_cast<size_t>(stream.inbox_end - stream.inbox_begin)};
  }

  void Consume(int32_t from, int64_t bytes) override {
    Stream& stream = streams_[from];
    stream.inbox_begin += bytes;
    OMNI_DCHECK(stream.inbox_begin <= stream.inbox_end);
    // Bytes keep their place modulo 8, so elements in the inbox are aligned.
    if (stream.inbox_begin == stream.inbox_end) {
      stream.inbox_begin = stream.inbox_end = stream.inbox_begin % 8;
    } else if (stream.inbox_begin >= kInboxBytes / 2) {
      const int64_t shift = stream.inbox_begin / 8 * 8;
      std::memmove(stream.inbox.data(), stream.inbox.data() + shift, stream.inbox_end - shift);
      stream.inbox_begin -= shift;
      stream.inbox_end -= shift;
    }
  }

  int64_t TryReceive(int32_t from, void* to, int64_t bytes) override {
    Stream& stream = streams_[from];
    int64_t done = 0;
    if (stream.inbox_begin == stream.inbox_end && bytes < kDirectBytes) Fill(stream);
    if (const int64_t have = stream.inbox_end - stream.inbox_begin; have > 0) {
      done = std::min(have, bytes);
      std::memcpy(to, stream.inbox.data() + stream.inbox_begin, done);
      Consume(from, done);
    }
    // The inbox is empty now if more is wanted, and so it must be read in order from here.
    if (bytes - done >= kDirectBytes && stream.inbox_begin == stream.inbox_end) {
      const int64_t got = Read(stream, static_cast<uint8_t*>(to) + done, bytes - done);
      stream.inbox_begin = stream.inbox_end = (stream.inbox_begin + got) % 8;
      done += got;
    }
    return done;
  }

  void Wait(absl::Span<const Interest> interests, absl::Time until) override {
    polled_.assign(1, {.fd = wake_.get(), .events = POLLIN, .revents = 0});
    for (size_t peer = 0; peer < interests.size(); ++peer) {
      const short events = static_cast<short>((interests[peer].receive ? POLLIN : 0) |
                                              (interests[peer].send ? POLLOUT : 0));
      if (events == 0 || streams_[peer].ended) continue;
      polled_.push_back({.fd = streams_[peer].fd.get(), .events = events, .revents = 0});
    }
    const absl::Duration sleep =
        std::clamp(until - absl::Now(), absl::ZeroDuration(), kLongestPoll);
    const timespec timeout = absl::ToTimespec(sleep);
    if (ppoll(polled_.data(), polled_.size(), &timeout, nullptr) > 0 && polled_[0].revents != 0) {
      uint64_t count;
      (void)!read(wake_.get(), &count, sizeof(count));
    }
  }

  void Interrupt() override {
    const uint64_t one = 1;
    (void)!write(wake_.get(), &one, sizeof(one));
  }

  bool Ended(int32_t peer, bool) override {
    return streams_[peer].ended && streams_[peer].inbox_begin == streams_[peer].inbox_end;
  }

 private:
  struct Stream {
    UniqueFd fd;
    std::vector<uint8_t> inbox;  // made when first needed
    int64_t inbox_begin = 0, inbox_end = 0;
    bool ended = false;
  };

  int64_t Read(Stream& stream, uint8_t* to, int64_t bytes) {
    const ssize_t got = recv(stream.fd.get(), to, bytes, MSG_DONTWAIT);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) stream.ended = true;
    return std::max<ssize_t>(got, 0);
  }

  void Fill(Stream& stream) {
    if (stream.inbox.empty()) stream.inbox.resize(kInboxBytes);
    stream.inbox_end +=
        Read(stream, stream.inbox.data() + stream.inbox_end, kInboxBytes - stream.inbox_end);
  }

  std::vector<Stream> streams_;
  UniqueFd wake_;
  std::vector<pollfd> polled_;
};

class TcpFactory final : public TransportFactory {
 public:
  absl::string_view engine() const override { return "tcp"; }

  absl::StatusOr<std::unique_ptr<Transport>> Make(PeerLinks& links, uint64_t channel,
                                                  absl::Span<const int32_t> world_ranks,
                                                  int32_t rank,
                                                  const CommOptions& options) override {
    const absl::Time deadline = absl::Now() + options.connect_deadline;
    std::vector<UniqueFd> sockets(world_ranks.size());
    for (size_t peer = 0; peer < world_ranks.size(); ++peer) {
      if (static_cast<int32_t>(peer) == rank) continue;
      OMNI_ASSIGN_OR_RETURN(sockets[peer], links.OpenStream(world_ranks[peer], channel, deadline));
    }
    UniqueFd wake(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!wake.valid()) return ErrnoStatus("eventfd");
    return std::make_unique<TcpTransport>(std::move(sockets), std::move(wake));
  }
};

}  // namespace

std::unique_ptr<TransportFactory> MakeTcpTransportFactory() {
  return std::make_unique<TcpFactory>();
}

}  // namespace omni::comm
