// Which cases a sweep tries: an all-pairs cover of the features of jobs and plans first, random
// ones then. All follow from the seed, and case K is the same however many are asked for.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/base/rng.h"
#include "tests/sweep/sweep_case.h"

namespace omni::test {

struct SweepCase {
  Levels job;
  SweepPlan plan;
};

// A random job, and a random plan that fits it: degrees divide as parallel/layout.cc wants, and at
// most eight ranks.
Levels RandomJob(CounterRng& rng);
SweepPlan RandomPlan(const JobShape& shape, CounterRng& rng);

// "job.moe=shared", "plan.schedule=zb_v", ...: what pairs are made of. Besides a plan's own levels
// how it meets the job: whether the pipeline divides the microbatches, replicas without any, ...
std::vector<std::string> LevelsOf(const SweepCase& sweep_case);

class SweepCases {
 public:
  explicit SweepCases(uint64_t seed);

  SweepCase At(int64_t index) const;
  // How many of the first cases make the cover, and of how many pairs.
  int64_t num_cover() const { return static_cast<int64_t>(cover_.size()); }
  int64_t num_pairs() const { return num_pairs_; }
  // How many of them the first `count` cases have.
  int64_t CountPairs(int64_t count) const;

 private:
  const uint64_t seed_;
  std::vector<Levels> jobs_;  // few, so that their one-rank results serve many plans
  std::vector<SweepCase> cover_;
  int64_t num_pairs_ = 0;
};

}  // namespace omni::test
