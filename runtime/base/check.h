// Invariants of this program, always on. What the world can get wrong (configuration,
// files, peers, memory) is an absl::Status instead; see HACKING.md, "Errors".
//
//   OMNI_CHECK(rank < num_ranks);
//   OMNI_CHECK_EQ(x.size(0), y.size(0));   // prints both numbers
#pragma once

#include <sstream>
#include <string>

namespace omni {

// Prints "file:line: CHECK failed: what" to stderr and aborts.
[[noreturn]] void CheckFailed(const char* file, int line, const std::string& what);

template <typename A, typename B>
[[noreturn]] void CheckOpFailed(const char* file, int line, const char* expression, const A& a,
                                const B& b) {
  std::ostringstream what;
  what << expression << " (" << a << " vs " << b << ")";
  CheckFailed(file, line, what.str());
}

}  // namespace omni

#define OMNI_CHECK(condition)                              \
  do {                                                     \
    if (!(condition)) [[unlikely]]                         \
      ::omni::CheckFailed(__FILE__, __LINE__, #condition); \
  } while (false)

#define OMNI_CHECK_OP_(op, a, b)                                                                \
  do {                                                                                          \
    const auto& omni_check_a = (a);                                                             \
    const auto& omni_check_b = (b);                                                             \
    if (!(omni_check_a op omni_check_b)) [[unlikely]]                                           \
      ::omni::CheckOpFailed(__FILE__, __LINE__, #a " " #op " " #b, omni_check_a, omni_check_b); \
  } while (false)

#define OMNI_CHECK_EQ(a, b) OMNI_CHECK_OP_(==, a, b)
#define OMNI_CHECK_NE(a, b) OMNI_CHECK_OP_(!=, a, b)
#define OMNI_CHECK_LT(a, b) OMNI_CHECK_OP_(<, a, b)
#define OMNI_CHECK_LE(a, b) OMNI_CHECK_OP_(<=, a, b)
#define OMNI_CHECK_GT(a, b) OMNI_CHECK_OP_(>, a, b)
#define OMNI_CHECK_GE(a, b) OMNI_CHECK_OP_(>=, a, b)

// Aborts with the status' message; for calls that can't fail here unless the program is wrong.
#define OMNI_CHECK_OK(expression)                                                        \
  do {                                                                                   \
    const auto& omni_check_status = (expression);                                        \
    if (!omni_check_status.ok()) [[unlikely]]                                            \
      ::omni::CheckFailed(__FILE__, __LINE__, std::string(omni_check_status.message())); \
  } while (false)

// Inside loops over elements only; compiled out of release builds.
#ifdef NDEBUG
#define OMNI_DCHECK(condition) \
  do {                         \
  } while (false && (condition))
#else
#define OMNI_DCHECK(condition) OMNI_CHECK(condition)
#endif
