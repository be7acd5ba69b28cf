// What became of the samples that were drawn: of each source how many, and by reason those that are
// not used as they stand, the first of each named. Every rank adds what all ranks know of a step,
// so all have the same numbers.
//
// Broken are those that can't be read or decoded (SampleFault::kBroken, kBlanked). A source of
// which more than the share data.max_broken is broken stops the job: Check.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "dataloader/batch.h"
#include "dataloader/sample_planner.h"

namespace omni::dataloader {

class SampleTally {
 public:
  static constexpr size_t kNamed = 3;  // samples, of each reason
  // One bad sample among the first three says nothing of a source: so many are waited for. Where
  // max_broken is 0, the first.
  static constexpr int64_t kFewestBroken = 32;

  struct Named {
    std::string sample_id, message;
    bool operator==(const Named&) const = default;
  };
  struct Reason {
    int64_t count = 0;
    std::vector<Named> first;  // kNamed at most
    bool operator==(const Reason&) const = default;
  };
  struct Source {
    std::string name;
    int64_t drawn = 0;
    std::map<SampleFault, Reason> reasons;

    int64_t broken() const;
    int64_t left_out() const;  // of any reason but kCut
    // "3 of 120 samples left out (broken 2, blanked 1)".
    std::string Summary() const;
    bool operator==(const Source&) const = default;
  };

  SampleTally() = default;
  explicit SampleTally(const std::vector<std::string>& sources);

  // What is known on all ranks of a step, its failures applied.
  void Add(const StepBatch& batch);
  void AddDrawn(const std::string& source, int64_t count);
  void Add(const FaultEvent& event);

  const std::vector<Source>& sources() const { return sources_; }
  bool empty() const;  // nothing was left out or cut

  // FailedPrecondition, naming source, share and a sample, if more than `max_broken` of what was
  // drawn since this object was made is broken, by two standard deviations of such a count. What
  // Restore brought does not count: who mended the data and goes on starts anew.
  absl::Status Check(double max_broken) const;

  // A line for each source of which twice as many are left out as when it was last named here.
  std::vector<std::string> News();
  // For people: a line for each source and one for each sample named. "" if nothing is.
  std::string Table() const;

  std::string ToJson() const;
  // Goes on from a state of ToJson; sources it lacks or has more do no harm. DataLoss if it is
  // none.
  absl::Status Restore(absl::string_view json);

 private:
  Source* Find(const std::string& name);  // made if it is not there

  std::vector<Source> sources_;
  std::map<std::string, std::pair<int64_t, int64_t>> restored_;  // drawn, broken
  std::map<std::string, int64_t> told_;
};

// As a checkpoint or a report has it: the name of SampleFault; nothing for another.
const SampleFault* FaultOfName(absl::string_view name);

}  // namespace omni::dataloader
