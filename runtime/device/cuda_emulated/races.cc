// Finds races of kernels: an own runtime for the calls that -fsanitize=thread compiles into them.
//
// The compiler's instrumentation calls __tsan_read4(address) and so on before every access; instead
// of ThreadSanitizer these functions answer, who know what a GPU orders and what not. Two accesses
// of the same two bytes, one of them a write, not both atomic, are a race unless
//   - one CUDA thread made both, or
//   - threads of one block with a barrier between them, or
//   - lanes of one warp with a full-warp operation between them (as __syncwarp orders), or
//   - different pieces of work of which the later knows that the earlier ended: same stream, or an
//     event waited for, or the host synchronised in between (vector clocks by stream).
// Kernels only are compiled that way; copies and fake libraries report their ranges (AccessRange).
#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <mutex>
#include <set>
#include <unordered_map>
#include <utility>

#include "runtime/device/cuda_emulated/block.h"
#include "runtime/device/cuda_emulated/runtime.h"

namespace omni::emulated {

uint64_t num_races = 0;
const bool keeps_works = true;
uint32_t RunningWork();  // runtime.cc

namespace {

constexpr size_t kGrain = 2;  // bytes a cell stands for; int8 tensors want 1

struct Access {
  uint32_t work = 0, block = 0;    // block_serial, of the OS thread that ran it
  uint16_t thread = 0, epoch = 0;  // barriers passed
  uint16_t warp_epoch = 0;
  uint16_t atomic = 0;
  const void* where = nullptr;
};
struct Cell {
  Access write, read, other_read;  // reads by two different threads
};

Cell* NewShadow(size_t bytes) {
  void* memory = mmap(nullptr, bytes / kGrain * sizeof(Cell), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) Fault("no addresses for the records of accesses; see ulimit -v");
  return static_cast<Cell*>(memory);
}

struct Shadow {
  const std::byte* begin = nullptr;
  size_t bytes = 0;
  Cell* cells = nullptr;
  Cell* Find(const std::byte* address) const {
    const size_t offset = static_cast<size_t>(address - begin);
    return offset < bytes ? cells + offset / kGrain : nullptr;
  }
};
Shadow& DeviceShadow() {
  static Shadow shadow = [] {
    const DeviceRange range = DeviceMemory();
    return Shadow{range.begin, range.bytes, NewShadow(range.bytes)};
  }();
  return shadow;
}
thread_local Shadow shared_shadow;

bool WorkOrdered(uint32_t before, uint32_t now) {
  static thread_local std::unordered_map<uint64_t, bool> known;
  const uint64_t pair = uint64_t{before} << 32 | now;
  const auto [it, is_new] = known.emplace(pair, false);
  if (!is_new) return it->second;
  const Work& first = WorkOf(before);
  const Work& second = WorkOf(now);
  if (first.stream < 0) return it->second = true;
  const auto stream = static_cast<size_t>(first.stream);
  return it->second = stream < second.clock.size() && second.clock[stream] >= first.sequence;
}

bool Ordered(const Access& before, const Access& now, bool shared) {
  if (before.work == 0) return true;
  if (shared && before.block != now.block) return true;  // it was another block's memory
  if (before.work != now.work) return WorkOrdered(before.work, now.work);
  if (before.block != now.block) return false;
  if (before.thread == now.thread || before.epoch != now.epoch) return true;
  return before.thread / 32 == now.thread / 32 && before.warp_epoch != now.warp_epoch;
}

void Report(const Access& before, const char* was, const Access& now, const char* is,
            const std::byte* address, bool shared) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, const void*>> seen;
  const std::lock_guard lock(mutex);
  ++num_races;
  if (!seen.insert({before.where, now.where}).second) return;
  const Work& first = WorkOf(before.work);
  const Work& second = WorkOf(now.work);
  std::fprintf(stderr,
               "race on %s memory %p: %s by block #%u thread %u of %s %u (stream %d) at %s,\n",
               shared ? "shared" : "global", static_cast<const void*>(address), was, before.block,
               before.thread, first.what, before.work, first.stream, NameOf(before.where).c_str());
  std::fprintf(stderr, "     %s by block #%u thread %u of %s %u (stream %d) at %s\n", is, now.block,
               now.thread, second.what, now.work, second.stream, NameOf(now.where).c_str());
}

void Look(Cell& cell, const Access& now, bool writes, const std::byte* address, bool shared) {
  if (!(now.atomic && cell.write.atomic) && !Ordered(cell.write, now, shared))
    Report(cell.write, "written", now, writes ? "written" : "read", address, shared);
  if (!writes) {
    if (cell.read.work != now.work || cell.read.block != now.block ||
        cell.read.thread == now.thread || Ordered(cell.read, now, shared))
      cell.read = now;
    else
      cell.other_read = now;
    return;
  }
  for (const Access* read : {&cell.read, &cell.other_read})
    if (!(now.atomic && read->atomic) && !Ordered(*read, now, shared))
      Report(*read, "read", now, "written", address, shared);
  cell.write = now;
}

void OnAccess(const void* address, size_t bytes, bool writes, bool atomic, const void* where) {
  if (current == nullptr) return;
  const auto* data = static_cast<const std::byte*>(address);
  const Shadow* shadow = &shared_shadow;
  if (shared_shadow.cells == nullptr) {
    const Range range = SharedRange();
    shared_shadow = {range.begin, range.bytes, NewShadow(range.bytes)};
  }
  Cell* cell = shadow->Find(data);
  const bool shared = cell != nullptr;
  if (cell == nullptr && (cell = DeviceShadow().Find(data)) == nullptr) return;  // a stack, say
  const Moment moment = Now();
  const Access now = {.work = moment.launch,
                      .block = moment.block_serial,
                      .thread = static_cast<uint16_t>(moment.thread),
                      .epoch = static_cast<uint16_t>(moment.barrier_epoch),
                      .warp_epoch = static_cast<uint16_t>(moment.warp_epoch),
                      .atomic = atomic,
                      .where = where};
  for (size_t i = 0; i < bytes; i += kGrain, ++cell) Look(*cell, now, writes, data + i, shared);
}

}  // namespace

void AtomicAccess(const void* address, size_t bytes) {
  OnAccess(address, bytes, true, true, __builtin_return_address(0));
}
void AccessRange(const void* address, size_t bytes, bool writes) {
  const void* where = __builtin_return_address(0);
  const Access now = {.work = RunningWork(), .where = where};
  const auto* data = static_cast<const std::byte*>(address);
  Cell* cell = DeviceShadow().Find(data);
  if (cell == nullptr) return;
  for (size_t i = 0; i < bytes; i += kGrain, ++cell) Look(*cell, now, writes, data + i, false);
}

void ForgetAccesses(const void* address, size_t bytes) {
  constexpr uintptr_t kPage = 4096;
  Cell* const begin = DeviceShadow().Find(static_cast<const std::byte*>(address));
  Cell* const end = begin + (bytes + kGrain - 1) / kGrain;
  const uintptr_t from = reinterpret_cast<uintptr_t>(begin), to = reinterpret_cast<uintptr_t>(end);
  const uintptr_t first = (from + kPage - 1) / kPage * kPage, last = to / kPage * kPage;
  if (first >= last) {
    for (Cell* cell = begin; cell < end; ++cell) *cell = Cell();
    return;
  }
  std::memset(static_cast<void*>(begin), 0, first - from);
  madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
  std::memset(reinterpret_cast<void*>(last), 0, to - last);
}

}  // namespace omni::emulated

#define HERE __builtin_return_address(0)
#define ACCESS(bytes)                                                                          \
  void __tsan_read##bytes(void* p) { omni::emulated::OnAccess(p, bytes, false, false, HERE); } \
  void __tsan_write##bytes(void* p) { omni::emulated::OnAccess(p, bytes, true, false, HERE); } \
  void __tsan_unaligned_read##bytes(void* p) {                                                 \
    omni::emulated::OnAccess(p, bytes, false, false, HERE);                                    \
  }                                                                                            \
  void __tsan_unaligned_write##bytes(void* p) {                                                \
    omni::emulated::OnAccess(p, bytes, true, false, HERE);                                     \
  }                                                                                            \
  void __tsan_volatile_read##bytes(void* p) {                                                  \
    omni::emulated::OnAccess(p, bytes, false, false, HERE);                                    \
  }                                                                                            \
  void __tsan_volatile_write##bytes(void* p) {                                                 \
    omni::emulated::OnAccess(p, bytes, true, false, HERE);                                     \
  }
extern "C" {
ACCESS(1) ACCESS(2) ACCESS(4) ACCESS(8) ACCESS(16) void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_read_range(void* p, size_t bytes) {
  omni::emulated::OnAccess(p, bytes, false, false, HERE);
}
void __tsan_write_range(void* p, size_t bytes) {
  omni::emulated::OnAccess(p, bytes, true, false, HERE);
}
// Atomics of the emulator's own making (atomicAdd says so itself): just do them.
int __tsan_atomic32_load(const volatile int* p, int) {
  return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}
long __tsan_atomic64_load(const volatile long* p, int) {
  return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}
void __tsan_atomic32_store(volatile int* p, int v, int) {
  __atomic_store_n(p, v, __ATOMIC_SEQ_CST);
}
int __tsan_atomic32_compare_exchange_val(volatile int* p, int expected, int v, int, int) {
  __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
  return expected;
}
int __tsan_atomic32_compare_exchange_strong(volatile int* p, int* expected, int v, int, int) {
  return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
}  // extern "C"
