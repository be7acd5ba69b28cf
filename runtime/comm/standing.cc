#include "runtime/comm/standing.h"

#include <algorithm>
#include <cstring>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace omni::comm {
namespace {

constexpr size_t kMaxLacks = 64, kMaxText = 200;

// What goes over the wire before the ranks lacked, the call and the activity.
struct Head {
  int64_t unchanged_ns = 0;
  int64_t sequence = -1;
  uint32_t num_lacks = 0, call_bytes = 0, activity_bytes = 0, reserved = 0;
};

std::string Ranks(absl::Span<const int32_t> ranks) {
  constexpr size_t kShown = 8;
  std::string text = absl::StrCat(ranks.size() == 1 ? "rank " : "ranks ",
                                  absl::StrJoin(ranks.subspan(0, kShown), ", "));
  if (ranks.size() > kShown) absl::StrAppend(&text, " and ", ranks.size() - kShown, " more");
  return text;
}

std::string WhatItDoes(const Standing& standing) {
  return absl::StrCat(standing.activity.empty() ? "busy outside of calls"
                                                : absl::StrCat("at \"", standing.activity, "\""),
                      ", unchanged for ", Brief(standing.unchanged));
}

}  // namespace

bool Waits(const Standing& standing) { return !standing.call.empty() && !standing.lacks.empty(); }

std::string Brief(absl::Duration duration) {
  return absl::FormatDuration(absl::Trunc(
      duration, duration < absl::Seconds(1) ? absl::Microseconds(1) : absl::Milliseconds(1)));
}

std::string Encode(const Standing& standing) {
  Head head = {
      .unchanged_ns = absl::ToInt64Nanoseconds(standing.unchanged),
      .sequence = standing.sequence,
      .num_lacks = static_cast<uint32_t>(std::min(standing.lacks.size(), kMaxLacks)),
      .call_bytes = static_cast<uint32_t>(std::min(standing.call.size(), kMaxText)),
      .activity_bytes = static_cast<uint32_t>(std::min(standing.activity.size(), kMaxText))};
  std::string bytes(sizeof(head) + head.num_lacks * sizeof(int32_t), '\0');
  std::memcpy(bytes.data(), &head, sizeof(head));
  if (head.num_lacks > 0) {
    std::memcpy(bytes.data() + sizeof(head), standing.lacks.data(),
                head.num_lacks * sizeof(int32_t));
  }
  bytes.append(standing.call, 0, head.call_bytes);
  bytes.append(standing.activity, 0, head.activity_bytes);
  return bytes;
}

std::optional<Standing> Decode(absl::string_view bytes) {
  Head head;
  if (bytes.size() < sizeof(head)) return std::nullopt;
  std::memcpy(&head, bytes.data(), sizeof(head));
  bytes.remove_prefix(sizeof(head));
  if (head.num_lacks > kMaxLacks || head.call_bytes > kMaxText || head.activity_bytes > kMaxText ||
      bytes.size() != head.num_lacks * sizeof(int32_t) + head.call_bytes + head.activity_bytes) {
    return std::nullopt;
  }
  Standing standing = {.unchanged = absl::Nanoseconds(head.unchanged_ns),
                       .lacks = std::vector<int32_t>(head.num_lacks),
                       .sequence = head.sequence};
  if (head.num_lacks > 0) {
    std::memcpy(standing.lacks.data(), bytes.data(), head.num_lacks * sizeof(int32_t));
  }
  bytes.remove_prefix(head.num_lacks * sizeof(int32_t));
  standing.call = std::string(bytes.substr(0, head.call_bytes));
  standing.activity = std::string(bytes.substr(head.call_bytes));
  return standing;
}

std::vector<std::string> Describe(const Survey& survey) {
  std::vector<std::string> lines;
  for (size_t rank = 0; rank < survey.standings.size(); ++rank) {
    std::string line = absl::StrCat("rank ", rank, ": ");
    if (survey.left[rank]) {
      absl::StrAppend(&line, "has left");
    } else if (!survey.standings[rank]) {
      absl::StrAppend(&line, "has not answered");
      if (const std::string& last = survey.last_heard[rank]; !last.empty()) {
        absl::StrAppend(&line, "; when last heard of, it was at \"", last, "\"");
      }
    } else {
      const Standing& standing = *survey.standings[rank];
      absl::StrAppend(&line, WhatItDoes(standing));
      if (Waits(standing)) {
        absl::StrAppend(&line, ", waits for ", Ranks(standing.lacks), " in ", standing.call);
      }
    }
    lines.push_back(std::move(line));
  }
  return lines;
}

Verdict FindCulprit(const Survey& survey, int32_t asker, absl::Span<const int32_t> lacks,
                    int64_t sequence, absl::string_view group, absl::Duration limit) {
  const auto size = static_cast<int32_t>(survey.standings.size());
  // Breadth first along the waits, so chains are short.
  std::vector<int32_t> reached(lacks.begin(), lacks.end());
  std::vector<int32_t> waiter(size, -1);  // who was seen to wait for it first; -1: nobody
  for (const int32_t rank : reached) waiter[rank] = asker;
  for (size_t next = 0; next < reached.size(); ++next) {
    const auto& standing = survey.standings[reached[next]];
    if (!standing || !Waits(*standing)) continue;
    for (const int32_t rank : standing->lacks) {
      if (rank < 0 || rank >= size || rank == asker || waiter[rank] >= 0) continue;
      waiter[rank] = reached[next];
      reached.push_back(rank);
    }
  }
  // The dead before the slow. Among equals the best of: silent and waited for; long at something
  // and waited for; silent; at something; in a ring of ranks that all wait for each other.
  enum Grade { kNone, kInRing, kBusy, kSilentElsewhere, kStuck, kSilent };
  Grade best = kNone;
  Verdict verdict;
  absl::Duration unchanged = -absl::InfiniteDuration();
  const auto silence = [&](int32_t rank) {
    return survey.silent.empty() ? absl::InfiniteDuration() : survey.silent[rank];
  };
  // Who only waits for others stands still as long as none of those it waits for gets on, the asker
  // among them: it may do so on another thread.
  absl::Duration ring_age = absl::InfiniteDuration();
  if (survey.standings[asker]) ring_age = survey.standings[asker]->unchanged;
  for (const int32_t rank : reached) {
    const auto& standing = survey.standings[rank];
    ring_age = std::min(ring_age, standing ? standing->unchanged : silence(rank));
  }
  const auto consider = [&](int32_t rank, Grade grade, absl::Duration age) {
    const absl::Duration dead_age = grade == kInRing ? ring_age : age;
    const bool is_dead = dead_age >= limit;
    if (std::tuple(is_dead, grade, age) <= std::tuple(verdict.is_dead, best, unchanged)) return;
    best = grade;
    unchanged = age;
    verdict.rank = rank;
    verdict.is_dead = is_dead;
    verdict.respite = std::max(limit - dead_age, absl::ZeroDuration());
  };
  for (const int32_t rank : reached) {
    const auto& standing = survey.standings[rank];
    if (!standing) {
      consider(rank, kSilent, survey.left[rank] ? absl::InfiniteDuration() : silence(rank));
    } else if (Waits(*standing)) {
      consider(rank, kInRing, standing->unchanged);
    } else {
      consider(rank, standing->unchanged >= limit / 2 ? kStuck : kBusy, standing->unchanged);
    }
  }
  for (int32_t rank = 0; rank < size; ++rank) {
    if (rank == asker || survey.left[rank] || waiter[rank] >= 0) continue;
    if (!survey.standings[rank]) consider(rank, kSilentElsewhere, silence(rank));
  }
  if (verdict.rank < 0) return verdict;

  std::vector<int32_t> path;  // from the culprit back to whom the asker waits for
  for (int32_t rank = verdict.rank; rank >= 0 && rank != asker; rank = waiter[rank]) {
    path.push_back(rank);
  }
  if (waiter[verdict.rank] >= 0) {
    verdict.chain = absl::StrCat(" for rank ", path.back());
    for (size_t i = path.size(); i-- > 1;) {
      absl::StrAppend(&verdict.chain, ", which waits for rank ", path[i - 1], " in ",
                      survey.standings[path[i]]->call);
    }
  }
  const auto& standing = survey.standings[verdict.rank];
  if (survey.left[verdict.rank]) {
    verdict.why = "has left";
  } else if (!standing) {
    verdict.why = "has not answered: stopped or cut off";
    if (const std::string& last = survey.last_heard[verdict.rank]; !last.empty()) {
      absl::StrAppend(&verdict.why, "; when last heard of, it was at \"", last, "\"");
    }
  } else if (best == kInRing) {
    verdict.why =
        absl::StrCat("is ", WhatItDoes(*standing), " and waits for ", Ranks(standing->lacks),
                     " in ", standing->call, ": ranks wait for each other");
  } else {
    verdict.why = absl::StrCat("is ", WhatItDoes(*standing));
    if (standing->sequence >= 0 && standing->sequence < sequence) {
      const int64_t behind = sequence - standing->sequence;
      absl::StrAppend(&verdict.why, ", ", behind, behind == 1 ? " collective" : " collectives",
                      " behind in group=", group);
    }
  }
  return verdict;
}

}  // namespace omni::comm
