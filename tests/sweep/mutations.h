// Faults put between ranks and their communicators, for a test of the tests: whoever compares plans
// with one rank must see each of them. Nothing in the product knows of it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/comm/communicator.h"
#include "tests/sweep/plan_run.h"

namespace omni::test {

enum class Fault : uint8_t {
  kSwap,    // one rank makes two successive reductions in the other order
  kDrop,    // one rank's part of a sum is zero
  kScale,   // a sum is divided by the number of ranks: a mean
  kRotate,  // rows travel one row off
};

// Of doubles, on devices whose streams run at once (cpu).
struct Mutation {
  const char* name;
  const char* what;     // for people
  const char* channel;  // of the communicators it is in (rank_groups.cc)
  Fault fault;
  const char* job;  // a job and a plan in which it matters
  const char* parallel;
};
const std::vector<Mutation>& Mutations();
const Mutation* FindMutation(const std::string& name);  // null if there is none

// `hits` counts calls that were changed; it outlives all communicators.
WrapCommunicator Mutate(const Mutation& mutation, std::atomic<int64_t>* hits);

}  // namespace omni::test
