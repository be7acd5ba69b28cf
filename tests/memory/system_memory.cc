#include "tests/memory/system_memory.h"

#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <malloc.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace {

// Counters of one process: functions of the C library have nowhere else to put them.
std::atomic<int64_t> live_bytes{0}, peak_bytes{0}, mappings{0}, unmappings{0}, large_calls{0};
std::atomic<bool> shows_calls{false};

void Show(const char* what, size_t size) {
  if (!shows_calls.exchange(false)) return;  // backtrace may allocate
  char line[96];
  const int length = snprintf(line, sizeof(line), "%s of %zu bytes from\n", what, size);
  if (write(STDERR_FILENO, line, static_cast<size_t>(length)) < 0) return;
  void* frames[24];
  backtrace_symbols_fd(frames, backtrace(frames, 24), STDERR_FILENO);
  shows_calls.store(true);
}

// FFmpeg opens a decoder for each clip, whose state is large: its memory is not ours to keep.
bool IsFfmpeg(const void* caller) {
  Dl_info found;
  return dladdr(caller, &found) != 0 && found.dli_fname != nullptr &&
         strstr(found.dli_fname, "/libav") != nullptr;
}

void* Counted(void* block, size_t size, bool may_be_large = false) {
  if (block == nullptr) return nullptr;
  const auto usable = static_cast<int64_t>(malloc_usable_size(block));
  const int64_t live = live_bytes.fetch_add(usable, std::memory_order_relaxed) + usable;
  int64_t peak = peak_bytes.load(std::memory_order_relaxed);
  while (live > peak && !peak_bytes.compare_exchange_weak(peak, live, std::memory_order_relaxed)) {
  }
  if (static_cast<int64_t>(size) >= omni::test::kLargeBytes && !may_be_large) {
    large_calls.fetch_add(1, std::memory_order_relaxed);
    Show("allocation", size);
  }
  return block;
}

void Uncount(void* block) {
  if (block == nullptr) return;
  live_bytes.fetch_sub(static_cast<int64_t>(malloc_usable_size(block)), std::memory_order_relaxed);
}

}  // namespace

// The C library's own names for what is replaced here.
extern "C" {

void* __libc_malloc(size_t size);
void* __libc_calloc(size_t count, size_t size);
void* __libc_realloc(void* block, size_t size);
void* __libc_memalign(size_t alignment, size_t size);
void __libc_free(void* block);

void* malloc(size_t size) { return Counted(__libc_malloc(size), size); }
void* calloc(size_t count, size_t size) {
  return Counted(__libc_calloc(count, size), count * size);
}
void* realloc(void* block, size_t size) {
  Uncount(block);
  return Counted(__libc_realloc(block, size), size);
}
void* memalign(size_t alignment, size_t size) {
  return Counted(__libc_memalign(alignment, size), size);
}
void* aligned_alloc(size_t alignment, size_t size) {
  return Counted(__libc_memalign(alignment, size), size);
}
int posix_memalign(void** block, size_t alignment, size_t size) {
  const bool is_ffmpeg = static_cast<int64_t>(size) >= omni::test::kLargeBytes &&
                         IsFfmpeg(__builtin_return_address(0));
  *block = Counted(__libc_memalign(alignment, size), size, is_ffmpeg);
  return *block == nullptr ? ENOMEM : 0;
}
void free(void* block) {
  Uncount(block);
  __libc_free(block);
}

void* mmap(void* address, size_t size, int protection, int flags, int fd, off_t offset) {
  mappings.fetch_add(1, std::memory_order_relaxed);
  Show("mapping", size);
  // The raw call returns small negative numbers through errno as the C library's does.
  return reinterpret_cast<void*>(syscall(SYS_mmap, address, size, protection, flags, fd, offset));
}
void* mmap64(void* address, size_t size, int protection, int flags, int fd, off_t offset) {
  return mmap(address, size, protection, flags, fd, offset);
}
int munmap(void* address, size_t size) {
  unmappings.fetch_add(1, std::memory_order_relaxed);
  Show("unmapping", size);
  return static_cast<int>(syscall(SYS_munmap, address, size));
}
void* mremap(void* address, size_t old_size, size_t new_size, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  void* wanted = (flags & MREMAP_FIXED) != 0 ? va_arg(rest, void*) : nullptr;
  va_end(rest);
  mappings.fetch_add(1, std::memory_order_relaxed);
  return reinterpret_cast<void*>(syscall(SYS_mremap, address, old_size, new_size, flags, wanted));
}
int madvise(void* address, size_t size, int advice) {
  if (advice == MADV_DONTNEED || advice == MADV_FREE) {
    unmappings.fetch_add(1, std::memory_order_relaxed);
    Show("return of pages", size);
  }
  return static_cast<int>(syscall(SYS_madvise, address, size, advice));
}

}  // extern "C"

namespace omni::test {

SystemUse ReadSystemUse() {
  const struct mallinfo2 info = mallinfo2();
  return {.live_bytes = live_bytes.load(),
          .heap_bytes = static_cast<int64_t>(info.arena + info.hblkhd),
          .mappings = mappings.load(),
          .unmappings = unmappings.load(),
          .large_calls = large_calls.load()};
}

int64_t PeakLiveBytes() { return peak_bytes.load(); }
void ResetPeak() { peak_bytes.store(live_bytes.load()); }
void ShowLargeCalls(bool shows) { shows_calls.store(shows); }

std::vector<std::string> WhatWasAsked(const SystemUse& before, const SystemUse& after,
                                      int64_t slack_bytes, int64_t slack_calls) {
  std::vector<std::string> found;
  const auto expect = [&](const char* what, int64_t grown, int64_t most) {
    if (grown > most) found.push_back(absl::StrCat(what, ": ", grown, ", at most ", most));
  };
  expect("mappings", after.mappings - before.mappings, 0);
  expect("pages given back", after.unmappings - before.unmappings, 0);
  expect("allocations of 256 KiB and more", after.large_calls - before.large_calls, slack_calls);
  expect("bytes the heap grew by", after.heap_bytes - before.heap_bytes, slack_bytes);
  expect("bytes not freed", after.live_bytes - before.live_bytes, slack_bytes);
  return found;
}

}  // namespace omni::test
