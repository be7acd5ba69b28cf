#include "parallel/schedule/action_times.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <map>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/config.h"
#include "runtime/base/status.h"
#include "runtime/base/trace.h"

namespace omni::parallel {
namespace {

// Fields that an entry may name.
constexpr int kNamesRank = 1, kNamesPart = 2, kNamesIndex = 4;
// Masks of them, what is taken first first.
constexpr std::array<int, 8> kByPrecedence = {kNamesIndex | kNamesPart | kNamesRank,
                                              kNamesIndex | kNamesPart,
                                              kNamesIndex | kNamesRank,
                                              kNamesPart | kNamesRank,
                                              kNamesIndex,
                                              kNamesPart,
                                              kNamesRank,
                                              0};

struct KindName {
  const char* name;
  ActionKind kind;
  Payload payload = Payload::kNone;
};
constexpr KindName kKindNames[] = {
    {"forward_backward", ActionKind::kForwardBackward},
    {"forward", ActionKind::kForward},
    {"backward", ActionKind::kBackward},
    {"input_backward", ActionKind::kBackwardInput},
    {"weight_gradient", ActionKind::kWeightGrad},
    {"encode", ActionKind::kEncodeForward},
    {"encode_only", ActionKind::kEncodeOnly},
    {"encoder_backward", ActionKind::kEncodeBackward},
    {"reduce_gradients", ActionKind::kReduceGradients},
    {"agree", ActionKind::kAgree},
    {"update", ActionKind::kUpdate},
    {"gather_parameters", ActionKind::kGatherParameters},
    {"hidden", ActionKind::kSend, Payload::kHidden},
    {"hidden_gradient", ActionKind::kSend, Payload::kHiddenGrad},
    {"rows", ActionKind::kSend, Payload::kRows},
    {"row_gradients", ActionKind::kSend, Payload::kRowGrads},
};

bool OfEncoder(ActionKind kind, Payload payload) {
  return kind == ActionKind::kEncodeForward || kind == ActionKind::kEncodeOnly ||
         kind == ActionKind::kEncodeBackward || payload == Payload::kRows ||
         payload == Payload::kRowGrads;
}
bool IsCompute(ActionKind kind) { return kind <= ActionKind::kEncodeBackward; }

double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<int64_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return (*middle + *std::max_element(values.begin(), middle)) / 2;
}

// How long the process waited in each moment's past, by (process, track).
class Waits {
 public:
  // `events` ascend by begin; spans of waiting on one track do not overlap.
  explicit Waits(const std::vector<TraceEvent>& events) {
    for (const TraceEvent& event : events) {
      if (event.category != "wait") continue;
      std::vector<Span>& spans = by_track_[{event.process, event.track}];
      const double before = spans.empty() ? 0 : spans.back().before + spans.back().length();
      spans.push_back({event.begin_us, event.end_us, before});
    }
  }

  // Microseconds of waiting within a span.
  double Within(const TraceEvent& event) const {
    const auto found = by_track_.find({event.process, event.track});
    if (found == by_track_.end()) return 0;
    return Until(found->second, event.end_us) - Until(found->second, event.begin_us);
  }

 private:
  struct Span {
    double begin_us, end_us;
    double before;  // all earlier ones on the track
    double length() const { return end_us - begin_us; }
  };
  static double Until(const std::vector<Span>& spans, double time_us) {
    auto next =
        std::upper_bound(spans.begin(), spans.end(), time_us,
                         [](double time, const Span& span) { return time < span.begin_us; });
    if (next == spans.begin()) return 0;
    --next;
    return next->before + std::min(next->end_us, time_us) - next->begin_us;
  }
  std::map<std::pair<int32_t, int64_t>, std::vector<Span>> by_track_;
};

// One entry of a file.
struct Entry {
  int kind = -1;  // index into kKindNames
  double seconds = -1;
  int32_t rank = -1, chunk = -1, encoder = -1, microbatch = -1, group = -1;
};
absl::Status Read(const ConfigNode& node, Entry* out) {
  ConfigReader reader(node);
  std::vector<std::pair<std::string, int>> names;
  for (const KindName& kind : kKindNames) {
    names.emplace_back(kind.name, static_cast<int>(names.size()));
  }
  reader.ReadEnum("kind", &out->kind, names);
  reader.Require("kind");
  reader.Read("seconds", &out->seconds, NonNegative());
  reader.Require("seconds");
  reader.Read("rank", &out->rank, NonNegative());
  if (out->kind < 0) return reader.Finish();
  // The other two are then unknown keys.
  if (OfEncoder(kKindNames[out->kind].kind, kKindNames[out->kind].payload)) {
    reader.Read("encoder", &out->encoder, NonNegative());
    reader.Read("group", &out->group, NonNegative());
  } else {
    reader.Read("chunk", &out->chunk, NonNegative());
    reader.Read("microbatch", &out->microbatch, NonNegative());
  }
  return reader.Finish();
}

}  // namespace

ActionTimes::Key ActionTimes::KeyOf(int32_t rank, const Action& action) {
  // A chunk's or an encoder's gradients may be reduced: either is the part.
  return {action.kind, action.payload, rank, std::max<int32_t>(action.chunk, action.encoder),
          action.microbatch};
}

int ActionTimes::MaskOf(const Key& key) {
  return (key.rank >= 0 ? kNamesRank : 0) | (key.part >= 0 ? kNamesPart : 0) |
         (key.index >= 0 ? kNamesIndex : 0);
}

bool ActionTimes::Insert(const Key& key, double seconds) {
  masks_ |= 1u << MaskOf(key);
  return times_.emplace(key, seconds).second;
}

const double* ActionTimes::Find(const Key& key) const {
  for (const int mask : kByPrecedence) {
    if ((masks_ >> mask & 1) == 0) continue;
    Key masked = key;
    if ((mask & kNamesRank) == 0) masked.rank = -1;
    if ((mask & kNamesPart) == 0) masked.part = -1;
    if ((mask & kNamesIndex) == 0) masked.index = -1;
    const auto found = times_.find(masked);
    if (found != times_.end()) return &found->second;
  }
  if (key.kind != ActionKind::kEncodeOnly) return nullptr;
  Key keeping = key;
  keeping.kind = ActionKind::kEncodeForward;
  return Find(keeping);
}

double ActionTimes::operator()(int32_t rank, const Action& action) const {
  const double* found = Find(KeyOf(rank, action));
  return found == nullptr ? 0 : *found;
}

absl::Status ActionTimes::Covers(const std::vector<Program>& programs) const {
  for (size_t rank = 0; rank < programs.size(); ++rank) {
    for (const Action& action : programs[rank]) {
      if (!IsCompute(action.kind) || Find(KeyOf(static_cast<int32_t>(rank), action)) != nullptr) {
        continue;
      }
      std::vector<std::string> known;
      for (const KindName& kind : kKindNames) {
        const bool is_known = std::any_of(times_.begin(), times_.end(), [&](const auto& entry) {
          return entry.first.kind == kind.kind && entry.first.payload == kind.payload;
        });
        if (is_known) known.push_back(kind.name);
      }
      return absl::FailedPreconditionError(
          absl::StrCat("no time for rank ", rank, " ", ToString(action), "; there are times for ",
                       known.empty() ? "nothing" : absl::StrJoin(known, ", ")));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ActionTimes> ActionTimes::LoadFile(const std::string& path) {
  OMNI_ASSIGN_OR_RETURN(const ConfigNode root, ConfigNode::LoadFile(path));
  ConfigReader reader(root);
  std::vector<Entry> entries;
  const ConfigNode list = reader.Child("times");
  reader.ReadList("times", &entries);
  reader.Require("times");
  OMNI_RETURN_IF_ERROR(reader.Finish());
  ActionTimes times;
  for (size_t i = 0; i < entries.size(); ++i) {
    const Entry& entry = entries[i];
    const KindName& kind = kKindNames[entry.kind];
    const Key key{kind.kind, kind.payload, entry.rank, std::max(entry.chunk, entry.encoder),
                  std::max(entry.microbatch, entry.group)};
    if (!times.Insert(key, entry.seconds)) {
      return list.items()[i].Error(
          absl::StrCat("a second time for the same ", kind.name, " actions"));
    }
  }
  return times;
}

absl::StatusOr<ActionTimes> ActionTimes::FromTraces(const std::vector<std::string>& paths,
                                                    int32_t ranks_per_stage) {
  // Seconds by step, of one action on one rank of a run.
  std::map<std::pair<int32_t, std::string>, std::vector<double>> recorded;
  for (const std::string& path : paths) {
    OMNI_ASSIGN_OR_RETURN(std::vector<TraceEvent> events, ReadChromeTrace(path));
    std::stable_sort(events.begin(), events.end(), [](const TraceEvent& a, const TraceEvent& b) {
      return a.begin_us < b.begin_us;
    });
    const Waits waits(events);
    bool any = false;
    for (const TraceEvent& event : events) {
      if (event.category != "action" || event.process < 0) continue;
      recorded[{event.process, event.name}].push_back(
          std::max(0.0, event.end_us - event.begin_us - waits.Within(event)) / 1e6);
      any = true;
    }
    if (!any) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": found no span of category \"action\" among ", events.size(), " spans"));
    }
  }
  // Seconds by step, of a pipeline rank.
  std::map<std::pair<int32_t, std::string>, std::vector<double>> by_step;
  for (const auto& [who, seconds] : recorded) {
    const bool agrees = who.second == ToString({.kind = ActionKind::kAgree});
    std::vector<double>& steps = by_step[{agrees ? -1 : who.first / ranks_per_stage, who.second}];
    for (size_t i = 0; i < seconds.size(); ++i) {
      if (i == steps.size()) {
        steps.push_back(seconds[i]);
      } else {
        steps[i] = agrees ? std::min(steps[i], seconds[i]) : std::max(steps[i], seconds[i]);
      }
    }
  }
  ActionTimes times;
  std::map<std::tuple<ActionKind, Payload, int32_t, int32_t>, std::vector<double>> by_part;
  for (const auto& [who, steps] : by_step) {
    const std::optional<Action> action = ParseAction(who.second);
    if (!action.has_value()) continue;  // another version's
    const Key key = KeyOf(who.first, *action);
    const double seconds = Median(steps);
    times.Insert(key, seconds);
    by_part[{key.kind, key.payload, key.rank, key.part}].push_back(seconds);
    by_part[{key.kind, key.payload, -1, key.part}].push_back(seconds);
  }
  for (const auto& [part, seconds] : by_part) {
    const auto& [kind, payload, rank, index] = part;
    times.Insert({kind, payload, rank, index, -1}, Median(seconds));
  }
  return times;
}

}  // namespace omni::parallel
