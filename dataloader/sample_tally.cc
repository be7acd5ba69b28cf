#include "dataloader/sample_tally.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace omni::dataloader {
namespace {

using Json = nlohmann::ordered_json;

constexpr SampleFault kFaults[] = {SampleFault::kBroken,   SampleFault::kBlanked,
                                   SampleFault::kOverlong, SampleFault::kNoLoss,
                                   SampleFault::kUnpaired, SampleFault::kCut};

int64_t CountOf(const std::map<SampleFault, SampleTally::Reason>& reasons, SampleFault fault) {
  const auto found = reasons.find(fault);
  return found == reasons.end() ? 0 : found->second.count;
}

}  // namespace

const SampleFault* FaultOfName(absl::string_view name) {
  const auto found = std::find_if(std::begin(kFaults), std::end(kFaults),
                                  [&](SampleFault fault) { return name == Name(fault); });
  return found == std::end(kFaults) ? nullptr : found;
}

int64_t SampleTally::Source::broken() const {
  return CountOf(reasons, SampleFault::kBroken) + CountOf(reasons, SampleFault::kBlanked);
}

int64_t SampleTally::Source::left_out() const {
  int64_t sum = 0;
  for (const auto& [fault, reason] : reasons) sum += fault == SampleFault::kCut ? 0 : reason.count;
  return sum;
}

std::string SampleTally::Source::Summary() const {
  std::vector<std::string> counts;
  for (const SampleFault fault : kFaults) {
    const int64_t count = CountOf(reasons, fault);
    if (count > 0) counts.push_back(absl::StrCat(Name(fault), " ", count));
  }
  return absl::StrCat(left_out(), " of ", drawn, " samples left out",
                      counts.empty() ? "" : absl::StrCat(" (", absl::StrJoin(counts, ", "), ")"));
}

SampleTally::SampleTally(const std::vector<std::string>& sources) {
  for (const std::string& name : sources) Find(name);
}

SampleTally::Source* SampleTally::Find(const std::string& name) {
  const auto found = std::find_if(sources_.begin(), sources_.end(),
                                  [&](const Source& source) { return source.name == name; });
  if (found != sources_.end()) return &*found;
  sources_.push_back({.name = name});
  return &sources_.back();
}

void SampleTally::Add(const StepBatch& batch) {
  for (size_t i = 0; i < batch.drawn.size(); ++i) AddDrawn(batch.source_names[i], batch.drawn[i]);
  for (const FaultEvent& event : batch.left_out) Add(event);
  for (const FaultEvent& event : batch.blanked) Add(event);
}

void SampleTally::AddDrawn(const std::string& source, int64_t count) {
  Find(source)->drawn += count;
}

void SampleTally::Add(const FaultEvent& event) {
  Reason& reason = Find(event.source)->reasons[event.fault];
  ++reason.count;
  if (reason.first.size() < kNamed) reason.first.push_back({event.sample_id, event.message});
}

bool SampleTally::empty() const {
  return std::all_of(sources_.begin(), sources_.end(),
                     [](const Source& source) { return source.reasons.empty(); });
}

absl::Status SampleTally::Check(double max_broken) const {
  for (const Source& source : sources_) {
    const auto before = restored_.find(source.name);
    const int64_t drawn = source.drawn - (before == restored_.end() ? 0 : before->second.first);
    const int64_t broken =
        source.broken() - (before == restored_.end() ? 0 : before->second.second);
    if (broken < (max_broken > 0 ? kFewestBroken : 1)) continue;
    const double expected = max_broken * static_cast<double>(drawn);
    if (static_cast<double>(broken) <= expected + 2 * std::sqrt(expected * (1 - max_broken))) {
      continue;
    }
    std::string first;
    for (const SampleFault fault : {SampleFault::kBroken, SampleFault::kBlanked}) {
      const auto reason = source.reasons.find(fault);
      if (reason == source.reasons.end() || reason->second.first.empty() || !first.empty())
        continue;
      const Named& named = reason->second.first[0];
      first = absl::StrCat("; the first: ", named.sample_id, ": ", named.message);
    }
    return absl::FailedPreconditionError(absl::StrFormat(
        "data source \"%s\": %d of the %d samples drawn are broken (%.0f%%), data.max_broken is "
        "%g%s",
        source.name, broken, drawn, 100.0 * broken / std::max<int64_t>(1, drawn), max_broken,
        first));
  }
  return absl::OkStatus();
}

std::vector<std::string> SampleTally::News() {
  std::vector<std::string> lines;
  for (const Source& source : sources_) {
    const int64_t left_out = source.left_out();
    int64_t& told = told_[source.name];
    if (left_out == 0 || left_out < 2 * told) continue;
    told = left_out;
    std::string line = absl::StrCat("data source \"", source.name, "\": ", source.Summary());
    for (const SampleFault fault : kFaults) {
      const auto reason = source.reasons.find(fault);
      if (fault == SampleFault::kCut || reason == source.reasons.end()) continue;
      const Named& named = reason->second.first[0];
      absl::StrAppend(&line, "; first ", Name(fault), ": ", named.sample_id, ": ", named.message);
      break;
    }
    lines.push_back(std::move(line));
  }
  return lines;
}

std::string SampleTally::Table() const {
  std::vector<std::string> lines;
  for (const Source& source : sources_) {
    if (source.reasons.empty()) continue;
    lines.push_back(absl::StrCat(source.name, ": ", source.Summary()));
    for (const SampleFault fault : kFaults) {
      const auto reason = source.reasons.find(fault);
      if (reason == source.reasons.end()) continue;
      for (const Named& named : reason->second.first) {
        lines.push_back(
            absl::StrCat("  ", Name(fault), ": ", named.sample_id, ": ", named.message));
      }
      const auto more = reason->second.count - static_cast<int64_t>(reason->second.first.size());
      if (more > 0) lines.push_back(absl::StrCat("  ", Name(fault), ": ", more, " more"));
    }
  }
  return absl::StrJoin(lines, "\n");
}

std::string SampleTally::ToJson() const {
  Json json = Json::object();
  for (const Source& source : sources_) {
    Json& entry = json[source.name];
    entry["drawn"] = source.drawn;
    for (const auto& [fault, reason] : source.reasons) {
      Json first = Json::array();
      for (const Named& named : reason.first) {
        first.push_back({{"sample", named.sample_id}, {"message", named.message}});
      }
      entry[Name(fault)] = {{"count", reason.count}, {"first", std::move(first)}};
    }
  }
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

absl::Status SampleTally::Restore(absl::string_view text) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto is_count = [](const Json& value) { return value.is_number_unsigned(); };
  if (!json.is_object()) return absl::DataLossError("counts of samples: not a JSON object");
  std::vector<Source> restored;
  for (const auto& [name, entry] : json.items()) {
    Source source{.name = name};
    if (!entry.is_object() || !entry.contains("drawn") || !is_count(entry["drawn"])) {
      return absl::DataLossError(absl::StrCat("counts of samples: \"", name, "\" is no source's"));
    }
    source.drawn = entry["drawn"].get<int64_t>();
    for (const auto& [key, value] : entry.items()) {
      const SampleFault* fault = FaultOfName(key);
      if (fault == nullptr) continue;
      if (!value.is_object() || !value.contains("count") || !is_count(value["count"])) {
        return absl::DataLossError(absl::StrCat("counts of samples: \"", key, "\" has no count"));
      }
      Reason& reason = source.reasons[*fault];
      reason.count = value["count"].get<int64_t>();
      for (const Json& named : value.value("first", Json::array())) {
        if (!named.is_object() || !named.contains("sample") || !named["sample"].is_string() ||
            !named.contains("message") || !named["message"].is_string()) {
          return absl::DataLossError(absl::StrCat("counts of samples: \"", key, "\" names none"));
        }
        reason.first.push_back(
            {named["sample"].get<std::string>(), named["message"].get<std::string>()});
      }
      if (reason.first.empty()) reason.first.push_back({"?", "?"});
    }
    restored.push_back(std::move(source));
  }
  for (Source& source : restored) {
    Source* own = Find(source.name);
    *own = std::move(source);
    restored_[own->name] = {own->drawn, own->broken()};
    told_[own->name] = own->left_out();
  }
  return absl::OkStatus();
}

}  // namespace omni::dataloader
