// How the ranks of a job stand when a wait has lasted too long, and who of them is to blame.
//
// Ranks are those of the job. A rank that waits names whom it waits for, in whatever group that
// is, so the search follows the waits across groups to the rank that waits for nobody.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

namespace omni::comm {

// What one rank says of itself when asked.
struct Standing {
  std::string activity;  // as it last named it; empty if it never did
  // Since it last got on: named an activity, began or ended a call, or ended a piece of work
  // (runtime/base/progress.h).
  absl::Duration unchanged;
  std::string call;            // what a thread of it waits for now; empty: none waits
  std::vector<int32_t> lacks;  // whose bytes that call lacks
  int64_t sequence = -1;  // collectives begun in the group asked about; -1: it has no part in it
};

// In a call that lacks bytes of others.
bool Waits(const Standing& standing);

std::string Encode(const Standing& standing);
std::optional<Standing> Decode(absl::string_view bytes);  // nothing if they are not of Encode

struct Survey {
  std::vector<std::optional<Standing>> standings;  // by rank; none: has not answered
  std::vector<std::string> last_heard;  // by rank: the activity it named last, before it was asked
  std::vector<bool> left;               // by rank: has said farewell
  // By rank: since anything was heard from it. Empty: as if nothing ever was.
  std::vector<absl::Duration> silent = {};
};

// "rank 2: at "forward chunk 1", unchanged for 1.5s, waits for ranks 0, 3 in #7 group=..."
std::vector<std::string> Describe(const Survey& survey);

struct Verdict {
  int32_t rank = -1;
  // It has shown no progress, or not a sign of life, for the limit; otherwise it is only slow, and
  // will be dead in `respite` if it goes on like that.
  bool is_dead = false;
  absl::Duration respite;
  std::string chain;  // " for rank 1, which waits for rank 2 in #7 group=...", from the asker on
  std::string why;    // what rank is doing: "is at ...", "has not answered: ..."
};

// `asker` lacks bytes of `lacks`, in a group in which it has begun `sequence` collectives. A rank
// that has not got on for `limit` is dead, and named before any that has.
Verdict FindCulprit(const Survey& survey, int32_t asker, absl::Span<const int32_t> lacks,
                    int64_t sequence, absl::string_view group, absl::Duration limit);

// "1.5s", "312.4ms": short enough for messages.
std::string Brief(absl::Duration duration);

}  // namespace omni::comm
