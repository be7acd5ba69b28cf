// Runs the blocks of a grid on the CPU: one CUDA thread after another on stacks of their own, that
// are switched at barriers and warp-wide operations and nowhere else.
//
// A thread that never waits costs a function call: the stack goes on with the next thread. So an
// element-wise kernel runs as a loop, and only threads that wait occupy a stack.
//
// What ends the program (Fault): a barrier some threads have passed or left; a warp operation whose
// lanes are not all there; different barriers at once; a misaligned vector.
#pragma once

#include <vector_types.h>

#include <cstddef>
#include <cstdint>

namespace omni::emulated {

struct ThreadState {
  uint3 index;
  uint32_t linear;  // in the block
  uint32_t lane;
};
struct BlockState {
  uint3 index;
  dim3 shape, grid;
};
// The thread and the block that this OS thread is running.
extern thread_local constinit ThreadState* current;
extern thread_local constinit BlockState* block;

struct Grid {
  dim3 grid, shape;
  size_t shared_bytes = 0;
  void (*body)(void* arg) = nullptr;  // one CUDA thread
  void* arg = nullptr;
  uint32_t launch = 0;  // its number; for reports
};
void RunGrid(const Grid& grid);

// Where something stands in the source. Addresses of code would not do: a compiler may make two
// calls of one, or one of two.
struct Place {
  const char* file;
  int line;
  friend bool operator==(const Place& a, const Place& b);
};
// Waits for all threads of the block, which must wait at the same place.
void Barrier(Place place);
// The values of all lanes once all of `mask` have come.
const uint64_t* WarpExchange(int verb, uint32_t mask, uint64_t value);
inline constexpr int kMaxWords = 3;
// Likewise of a whole warp, but the last lane to come calls finish(arg, words of all lanes) before
// the others go on.
const uint64_t (*WarpCombine(int verb, const uint64_t* words, int num_words,
                             void (*finish)(const void* arg, uint64_t (*words)[kMaxWords]),
                             const void* arg))[kMaxWords];
void* SharedObject(const void* key, size_t bytes, size_t alignment);
void* DynamicSharedMemory();
[[noreturn]] void Fault(const char* what);

// races.cc looks at it where it is linked; no_races.cc does nothing.
void AtomicAccess(const void* address, size_t bytes);

// For races.cc.
struct Moment {
  uint32_t launch, block_serial, thread, barrier_epoch, warp_epoch;
};
Moment Now();
struct Range {
  const std::byte* begin;
  size_t bytes;
};
Range SharedRange();  // of this OS thread

}  // namespace omni::emulated
