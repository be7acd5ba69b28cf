#include "runtime/comm/shm_transport.h"

#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <climits>
#include <cstring>
#include <ctime>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/comm/peer_links.h"

namespace omni::comm {
namespace {

constexpr int64_t kPage = 4096;

// Sleepers look up this often even if nobody rings.
constexpr absl::Duration kLongestSleep = absl::Milliseconds(50);

struct alignas(64) Bell {
  std::atomic<uint32_t> word;
  std::atomic<uint32_t> sleeping;
};

// Counts of bytes ever written and read, each on its writer's cache line.
struct Ring {
  alignas(64) std::atomic<uint64_t> written;
  alignas(64) std::atomic<uint64_t> read;
};

static_assert(std::atomic<uint32_t>::is_always_lock_free &&
              std::atomic<uint64_t>::is_always_lock_free);

int64_t RoundToPage(int64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

// Offsets inside the shared file.
struct Layout {
  int64_t size, ring_bytes;
  int64_t rings_offset() const { return RoundToPage(size * static_cast<int64_t>(sizeof(Bell))); }
  int64_t data_offset() const {
    return rings_offset() + RoundToPage(size * size * static_cast<int64_t>(sizeof(Ring)));
  }
  int64_t total_bytes() const { return data_offset() + size * size * ring_bytes; }
};

// Larger rings mean fewer changes of context; all of a group's should fit a shared cache.
int64_t ChooseRingBytes(int64_t size, int64_t wanted) {
  if (wanted > 0) return wanted;
  if (size <= 4) return 256 << 10;
  if (size <= 8) return 128 << 10;
  return size <= 32 ? 32 << 10 : 8 << 10;
}

void FutexWait(std::atomic<uint32_t>& word, uint32_t expected, absl::Duration longest) {
  const timespec timeout = absl::ToTimespec(std::max(longest, absl::ZeroDuration()));
  syscall(SYS_futex, &word, FUTEX_WAIT, expected, &timeout, nullptr, 0);
}

void FutexWake(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

class ShmTransport final : public Transport {
 public:
  ShmTransport(void* base, Layout layout, int32_t rank, absl::Duration spin)
      : base_(static_cast<uint8_t*>(base)),
        layout_(layout),
        rank_(rank),
        spin_(spin),
        outgoing_(layout.size),
        incoming_(layout.size),
        dirty_(layout.size) {
    bells_ = reinterpret_cast<Bell*>(base_);
    auto* rings = reinterpret_cast<Ring*>(base_ + layout.rings_offset());
    for (int64_t peer = 0; peer < layout.size; ++peer) {
      const int64_t out = rank * layout.size + peer, in = peer * layout.size + rank;
      outgoing_[peer] = {&rings[out], base_ + layout.data_offset() + out * layout.ring_bytes};
      incoming_[peer] = {&rings[in], base_ + layout.data_offset() + in * layout.ring_bytes};
    }
  }
  ~ShmTransport() override { munmap(base_, layout_.total_bytes()); }

  void BeginPass() override { seen_ = bells_[rank_].word.load(std::memory_order_seq_cst); }

  int64_t TrySend(int32_t to, absl::Span<const Piece> pieces) override {
    Direction& out = outgoing_[to];
    const uint64_t written = out.ring->written.load(std::memory_order_relaxed);
    const uint64_t read = out.ring->read.load(std::memory_order_acquire);
    int64_t room = layout_.ring_bytes - static_cast<int64_t>(written - read);
    int64_t sent = 0;
    for (const Piece& piece : pieces) {
      const int64_t count = std::min(piece.bytes, room);
      CopyIn(out.data, written + sent, piece.data, count);
      sent += count;
      room -= count;
      if (count < piece.bytes) break;
    }
    if (sent > 0) {
      out.ring->written.store(written + sent, std::memory_order_release);
      dirty_[to] = 1;
    }
    return sent;
  }

  absl::Span<const uint8_t> Peek(int32_t from) override {
    const Direction& in = incoming_[from];
    const uint64_t read = in.ring->read.load(std::memory_order_relaxed);
    const uint64_t written = in.ring->written.load(std::memory_order_acquire);
    const int64_t begin = read & (layout_.ring_bytes - 1);
    const int64_t count =
        std::min(static_cast<int64_t>(written - read), layout_.ring_bytes - begin);
    return {in.data + begin, static_cast<size_t>(count)};
  }

  void Consume(int32_t from, int64_t bytes) override {
    if (bytes == 0) return;
    Ring& ring = *incoming_[from].ring;
    ring.read.store(ring.read.load(std::memory_order_relaxed) + bytes, std::memory_order_release);
    dirty_[from] = 1;
  }

  int64_t TryReceive(int32_t from, void* to, int64_t bytes) override {
    int64_t done = 0;
    while (done < bytes) {  // at most twice: the ring may wrap
      const absl::Span<const uint8_t> piece = Peek(from);
      if (piece.empty()) break;
      const int64_t count = std::min(bytes - done, static_cast<int64_t>(piece.size()));
      std::memcpy(static_cast<uint8_t*>(to) + done, piece.data(), count);
      Consume(from, count);
      done += count;
    }
    return done;
  }

  void EndPass() override {
    for (int64_t peer = 0; peer < layout_.size; ++peer) {
      if (std::exchange(dirty_[peer], 0)) RingBell(bells_[peer]);
    }
  }

  void Wait(absl::Span<const Interest>, absl::Time until) override {
    Bell& bell = bells_[rank_];
    if (spin_ > absl::ZeroDuration()) {
      const absl::Time spin_until = absl::Now() + spin_;
      do {
        for (int i = 0; i < 64; ++i) {
          if (bell.word.load(std::memory_order_acquire) != seen_) return;
          __builtin_ia32_pause();
        }
      } while (absl::Now() < spin_until);
    }
    // A ringer increases the word, then looks for sleepers; a sleeper says so, then has the
    // kernel compare the word. One of the two notices the other.
    bell.sleeping.store(1, std::memory_order_seq_cst);
    FutexWait(bell.word, seen_, std::min(kLongestSleep, until - absl::Now()));
    bell.sleeping.store(0, std::memory_order_seq_cst);
  }

  void Interrupt() override { RingBell(bells_[rank_]); }

  bool Ended(int32_t peer, bool left) override { return left && Peek(peer).empty(); }

 private:
  struct Direction {
    Ring* ring = nullptr;
    uint8_t* data = nullptr;
  };

  static void RingBell(Bell& bell) {
    bell.word.fetch_add(1, std::memory_order_seq_cst);
    if (bell.sleeping.load(std::memory_order_seq_cst) != 0) FutexWake(bell.word);
  }

  void CopyIn(uint8_t* ring, uint64_t position, const uint8_t* from, int64_t bytes) {
    if (bytes == 0) return;
    const int64_t begin = position & (layout_.ring_bytes - 1);
    const int64_t first = std::min(bytes, layout_.ring_bytes - begin);
    std::memcpy(ring + begin, from, first);
    if (first < bytes) std::memcpy(ring, from + first, bytes - first);
  }

  uint8_t* base_;
  const Layout layout_;
  const int32_t rank_;
  const absl::Duration spin_;
  Bell* bells_;
  std::vector<Direction> outgoing_, incoming_;
  std::vector<uint8_t> dirty_;  // peers whose bell is due
  uint32_t seen_ = 0;
};

// Zero pages are a valid start: empty rings, silent bells.
absl::StatusOr<UniqueFd> MakeMemory(const Layout& layout) {
  UniqueFd fd(memfd_create("omnitrain-comm", MFD_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus("memfd_create");
  if (ftruncate(fd.get(), layout.total_bytes()) != 0) return ErrnoStatus("ftruncate");
  return fd;
}

class ShmFactory final : public TransportFactory {
 public:
  absl::string_view engine() const override { return "shm"; }

  absl::StatusOr<std::unique_ptr<Transport>> Make(PeerLinks& links, uint64_t channel,
                                                  absl::Span<const int32_t> world_ranks,
                                                  int32_t rank,
                                                  const CommOptions& options) override {
    const Layout layout = {.size = static_cast<int64_t>(world_ranks.size()),
                           .ring_bytes = ChooseRingBytes(world_ranks.size(), options.ring_bytes)};
    OMNI_CHECK(layout.ring_bytes >= kPage && std::has_single_bit(uint64_t(layout.ring_bytes)));
    UniqueFd fd;
    if (rank == 0) {
      OMNI_ASSIGN_OR_RETURN(fd, MakeMemory(layout));
      for (size_t peer = 1; peer < world_ranks.size(); ++peer) {
        OMNI_RETURN_IF_ERROR(links.SendMemory(world_ranks[peer], channel, fd.get()));
      }
    } else {
      OMNI_ASSIGN_OR_RETURN(
          fd, links.AwaitMemory(world_ranks[0], channel, absl::Now() + options.connect_deadline));
    }
    struct stat info = {};
    if (fstat(fd.get(), &info) != 0 || info.st_size != layout.total_bytes()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "rank ", world_ranks[0], " shares ", info.st_size, " bytes, rank ", world_ranks[rank],
          " expects ", layout.total_bytes(), ": their ring_bytes differ"));
    }
    void* base =
        mmap(nullptr, layout.total_bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
    if (base == MAP_FAILED) return ErrnoStatus("mmap");
    // Spinning pays only where every rank has a core.
    absl::Duration spin = options.spin;
    if (spin < absl::ZeroDuration()) {
      spin = world_ranks.size() <= std::thread::hardware_concurrency() ? absl::Microseconds(20)
                                                                       : absl::ZeroDuration();
    }
    return std::make_unique<ShmTransport>(base, layout, rank, spin);
  }
};

}  // namespace

std::unique_ptr<TransportFactory> MakeShmTransportFactory() {
  return std::make_unique<ShmFactory>();
}

}  // namespace omni::comm
