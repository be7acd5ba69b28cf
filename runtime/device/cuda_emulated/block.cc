#include "runtime/device/cuda_emulated/block.h"

#include <pthread.h>

#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "runtime/device/cuda_emulated/fiber.h"
#include "runtime/device/cuda_emulated/runtime.h"

namespace omni::emulated {

thread_local constinit ThreadState* current = nullptr;
thread_local constinit BlockState* block = nullptr;

namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 << 10;
#else
constexpr size_t kStackBytes = 64 << 10;
#endif
// Stacks start at different cache sets: 64 KiB apart, their tops would all fall into one.
constexpr size_t kStackStride = kStackBytes + 4096 + 832;
constexpr int kMaxThreads = 1024;
constexpr size_t kSharedBytes = 227 << 10;
constexpr size_t kRedZone = 64;

struct Thread : ThreadState {
  Fiber* fiber = nullptr;  // where it waits
};

struct WarpOp {
  uint32_t arrived = 0;
  int verb = 0;
  int parity = 0;
  // The previous operation's are read while the next one's arrive.
  uint64_t values[2][32];
  uint64_t words[2][32][kMaxWords];
};

struct Warp {
  uint32_t alive, unstarted, ready, epoch;  // ready: has a stack and may go on
  WarpOp whole;
  std::map<uint32_t, WarpOp> parts;  // by mask
};

class Runner {
 public:
  using Finish = void (*)(const void* arg, uint64_t (*words)[kMaxWords]);
  Runner();
  void Run(const Grid& grid);
  void Barrier(Place place);
  const uint64_t* Exchange(int verb, uint32_t mask, uint64_t value) {
    int parity;
    return Meet(verb, mask, &value, 0, &parity).values[parity];
  }
  const uint64_t (*Combine(int verb, const uint64_t* words, int num_words, Finish finish,
                           const void* arg))[kMaxWords] {
    int parity;
    return Meet(verb, 0xffffffffu, words, num_words, &parity, finish, arg).words[parity];
  }
  void* SharedObject(const void* key, size_t bytes, size_t alignment);
  void* Dynamic() {
    if (grid_->shared_bytes == 0) Fault("no dynamic shared memory was asked for");
    return shared_->at;
  }
  Moment Now() const {
    return {grid_->launch, block_serial_, current->linear, barrier_epoch_,
            warps_[current->linear / 32].epoch};
  }
  Range Shared() const { return {shared_->at, kSharedBytes}; }

 private:
  WarpOp& Meet(int verb, uint32_t mask, const uint64_t* words, int num_words, int* its_parity,
               Finish finish = nullptr, const void* arg = nullptr);
  static void FiberMain();
  void RunBlock(uint3 index);
  void RunThreadsFrom(uint32_t warp);
  void Suspend();
  void Resume(uint32_t warp, uint32_t lane);
  void Start(uint32_t warp);
  Fiber* TakeFiber();
  [[noreturn]] void Deadlock();

  const Grid* grid_ = nullptr;
  BlockState state_;
  std::vector<Thread> threads_{kMaxThreads};
  std::vector<Warp> warps_{kMaxThreads / 32};
  uint32_t num_warps_ = 0, num_threads_ = 0, alive_ = 0, at_barrier_ = 0;
  Place barrier_place_ = {};
  uint32_t barrier_epoch_ = 0, block_serial_ = 0;
  uint32_t start_warp_ = 0;  // what FiberMain begins with
  Fiber main_;
  Fiber* running_ = nullptr;
  std::byte* stacks_ = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> free_;
  struct Object {
    const void* key;
    std::byte* data;
  };
  struct alignas(256) SharedMemory {
    std::byte at[kSharedBytes];
  };
  std::unique_ptr<SharedMemory> shared_ = std::make_unique<SharedMemory>();
  std::vector<Object> objects_;
  size_t shared_used_ = 0;
};

thread_local constinit Runner* this_runner = nullptr;
Runner& ThisRunner() { return *this_runner; }  // inside RunGrid

uint32_t Lowest(uint32_t mask) { return static_cast<uint32_t>(__builtin_ctz(mask)); }

Runner::Runner() {
  stacks_ =
      static_cast<std::byte*>(mmap(nullptr, kStackStride * kMaxThreads, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (stacks_ == MAP_FAILED) Fault("no addresses for the stacks of a block; see ulimit -v");
  pthread_attr_t attributes;  // ASan wants to know the stack that main_ goes back to
  pthread_getattr_np(pthread_self(), &attributes);
  void* bottom;
  pthread_attr_getstack(&attributes, &bottom, &main_.bytes);
  main_.bottom = static_cast<std::byte*>(bottom);
  pthread_attr_destroy(&attributes);
}

Fiber* Runner::TakeFiber() {
  if (free_.empty()) {
    auto fiber = std::make_unique<Fiber>();
    fiber->bottom = stacks_ + kStackStride * fibers_.size();
    fiber->bytes = kStackBytes;
    fibers_.push_back(std::move(fiber));
    return fibers_.back().get();
  }
  Fiber* fiber = free_.back();
  free_.pop_back();
  return fiber;
}

void Runner::Run(const Grid& grid) {
  grid_ = &grid;
  num_threads_ = grid.shape.x * grid.shape.y * grid.shape.z;
  num_warps_ = num_threads_ / 32;
  block = &state_;
  state_.shape = grid.shape;
  state_.grid = grid.grid;
  uint32_t i = 0;
  for (uint32_t z = 0; z < grid.shape.z; ++z)
    for (uint32_t y = 0; y < grid.shape.y; ++y)
      for (uint32_t x = 0; x < grid.shape.x; ++x, ++i) {
        threads_[i].index = {x, y, z};
        threads_[i].linear = i;
        threads_[i].lane = i % 32;
      }
  for (uint32_t z = 0; z < grid.grid.z; ++z)
    for (uint32_t y = 0; y < grid.grid.y; ++y)
      for (uint32_t x = 0; x < grid.grid.x; ++x) RunBlock({x, y, z});
  block = nullptr;
  current = nullptr;
}

void Runner::RunBlock(uint3 index) {
  state_.index = index;
  ++block_serial_;
  barrier_epoch_ = 0;
  alive_ = num_threads_;
  objects_.clear();
  shared_used_ = grid_->shared_bytes;
  if (shared_used_ != 0) std::memset(shared_->at, 0xff, shared_used_);
  for (uint32_t w = 0; w < num_warps_; ++w) {
    Warp& warp = warps_[w];
    warp.alive = warp.unstarted = 0xffffffffu;
    warp.ready = warp.epoch = 0;
  }
  start_warp_ = 0;
  running_ = TakeFiber();
  Prepare(*running_, FiberMain);
  Switch(main_, *running_, false);
}

void Runner::FiberMain() {
  Entered();
  ThisRunner().RunThreadsFrom(ThisRunner().start_warp_);
}

// Runs threads that have not begun, on one stack, while nobody waits; never returns.
void Runner::RunThreadsFrom(uint32_t w) {
  for (;;) {
    Warp& warp = warps_[w];
    if (warp.unstarted != 0) {
      const uint32_t lane = Lowest(warp.unstarted);
      warp.unstarted &= warp.unstarted - 1;
      Thread& thread = threads_[w * 32 + lane];
      current = &thread;
      grid_->body(grid_->arg);
      // It may have been suspended in between, but this is its stack still.
      warp.alive &= ~(1u << lane);
      --alive_;
      continue;
    }
    if (at_barrier_ != 0 && at_barrier_ == alive_) Fault("threads have left others at a barrier");
    Fiber& self = *running_;
    if (alive_ == 0) {
      free_.push_back(&self);
      Switch(self, main_, true);
    }
    if (warp.ready != 0) {
      free_.push_back(&self);  // nobody takes it before the switch is over
      Resume(w, Lowest(warp.ready));
    }
    uint32_t next = w;
    do next = next + 1 == num_warps_ ? 0 : next + 1;
    while (next != w && warps_[next].unstarted == 0 && warps_[next].ready == 0);
    if (next == w) Deadlock();
    if (warps_[next].ready != 0 && warps_[next].unstarted == 0) {
      free_.push_back(&self);
      Resume(next, Lowest(warps_[next].ready));
    }
    w = next;
  }
}

void Runner::Resume(uint32_t w, uint32_t lane) {
  Warp& warp = warps_[w];
  warp.ready &= ~(1u << lane);
  Thread& thread = threads_[w * 32 + lane];
  current = &thread;
  Fiber& from = *running_;
  running_ = thread.fiber;
  // A stack given back is never returned to as it is; whoever takes it prepares it anew.
  Switch(from, *thread.fiber, !free_.empty() && free_.back() == &from);
}

void Runner::Start(uint32_t w) {
  Fiber& from = *running_;
  start_warp_ = w;
  running_ = TakeFiber();
  Prepare(*running_, FiberMain);
  Switch(from, *running_, false);
}

// Goes on with another thread until somebody resumes this one.
void Runner::Suspend() {
  auto& self = static_cast<Thread&>(*current);
  self.fiber = running_;
  const uint32_t mine = self.linear / 32;
  uint32_t w = mine;
  do {
    Warp& warp = warps_[w];
    if (warp.unstarted != 0) {
      Start(w);
      return;
    }
    if (warp.ready != 0) {
      const uint32_t above = w == mine ? warp.ready & ~((2u << self.lane) - 1) : 0;
      Resume(w, Lowest(above != 0 ? above : warp.ready));
      return;
    }
    w = w + 1 == num_warps_ ? 0 : w + 1;
  } while (w != mine);
  Deadlock();
}

void Runner::Barrier(Place place) {
  auto& self = static_cast<Thread&>(*current);
  if (at_barrier_ == 0) {
    barrier_place_ = place;
  } else if (barrier_place_ != place) {
    Fault("threads of a block wait at different barriers");
  }
  if (alive_ != num_threads_) Fault("a barrier that some threads of the block have left");
  if (++at_barrier_ < alive_) {
    Suspend();
    return;
  }
  at_barrier_ = 0;
  ++barrier_epoch_;
  for (uint32_t w = 0; w < num_warps_; ++w) warps_[w].ready = warps_[w].alive;
  warps_[self.linear / 32].ready &= ~(1u << self.lane);
}

WarpOp& Runner::Meet(int verb, uint32_t mask, const uint64_t* words, int num_words, int* its_parity,
                     Finish finish, const void* arg) {
  auto& self = static_cast<Thread&>(*current);
  Warp& warp = warps_[self.linear / 32];
  const uint32_t bit = 1u << self.lane;
  if ((mask & bit) == 0) Fault("a warp operation whose mask lacks the lane that calls it");
  if ((mask & ~warp.alive) != 0) Fault("a warp operation for lanes that have ended");
  WarpOp& op = mask == 0xffffffffu ? warp.whole : warp.parts[mask];
  if (op.arrived != 0 && op.verb != verb) Fault("lanes of a warp meet in different operations");
  op.verb = verb;
  op.arrived |= bit;
  const int parity = op.parity;
  *its_parity = parity;
  if (num_words == 0) op.values[parity][self.lane] = *words;
  for (int i = 0; i < num_words; ++i) op.words[parity][self.lane][i] = words[i];
  if (op.arrived == mask) {
    if (finish != nullptr) finish(arg, op.words[parity]);
    op.arrived = 0;
    op.parity ^= 1;
    if (mask == 0xffffffffu) ++warp.epoch;
    warp.ready |= mask & ~bit;
  } else {
    Suspend();
  }
  return op;
}

void* Runner::SharedObject(const void* key, size_t bytes, size_t alignment) {
  for (const Object& object : objects_)
    if (object.key == key) return object.data;
  const size_t begin = (shared_used_ + kRedZone + alignment - 1) / alignment * alignment;
  if (begin + bytes > kSharedBytes) Fault("more shared memory than a multiprocessor has");
  shared_used_ = begin + bytes;
  objects_.push_back({key, shared_->at + begin});
  std::memset(shared_->at + begin, 0xff, bytes);  // NaN until written
  return shared_->at + begin;
}

void Runner::Deadlock() { Fault("no thread can go on: some wait for threads that wait elsewhere"); }

}  // namespace

void RunGrid(const Grid& grid) {
  static thread_local Runner runner;
  this_runner = &runner;
  runner.Run(grid);
}
bool operator==(const Place& a, const Place& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}
void Barrier(Place place) { ThisRunner().Barrier(place); }
const uint64_t* WarpExchange(int verb, uint32_t mask, uint64_t value) {
  return ThisRunner().Exchange(verb, mask, value);
}
const uint64_t (*WarpCombine(int verb, const uint64_t* words, int num_words,
                             void (*finish)(const void* arg, uint64_t (*words)[kMaxWords]),
                             const void* arg))[kMaxWords] {
  return ThisRunner().Combine(verb, words, num_words, finish, arg);
}
void* SharedObject(const void* key, size_t bytes, size_t alignment) {
  return ThisRunner().SharedObject(key, bytes, alignment);
}
void* DynamicSharedMemory() { return ThisRunner().Dynamic(); }
Moment Now() { return ThisRunner().Now(); }
Range SharedRange() { return ThisRunner().Shared(); }

void Fault(const char* what) {
  if (block != nullptr && current != nullptr) {
    std::fprintf(stderr, "emulated GPU: %s (block %u,%u,%u thread %u)\n", what, block->index.x,
                 block->index.y, block->index.z, current->linear);
  } else {
    std::fprintf(stderr, "emulated GPU: %s\n", what);
  }
  std::abort();
}

}  // namespace omni::emulated
