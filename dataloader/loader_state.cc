#include <exception>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "dataloader/step_planner.h"

namespace omni::dataloader {

using Json = nlohmann::json;

std::string LoaderState::ToJson() const {
  Json json = {{"version", 1}, {"step", step}, {"fingerprint", fingerprint}};
  json["lanes"] = Json::array();
  for (const LaneState& lane : lanes) {
    json["lanes"].push_back({{"cursors", lane.cursors},
                             {"window", lane.window},
                             {"position", lane.position},
                             {"window_step", lane.window_step}});
  }
  return json.dump();
}

absl::StatusOr<LoaderState> LoaderState::FromJson(const std::string& text) {
  try {
    const Json json = Json::parse(text);
    if (json.at("version").get<int>() != 1) {
      return absl::DataLossError(
          absl::StrCat("data state is of version ", json.at("version").get<int>(), ", expected 1"));
    }
    LoaderState state;
    state.step = json.at("step").get<int64_t>();
    state.fingerprint = json.at("fingerprint").get<std::string>();
    size_t num_sources = 0;
    for (const Json& item : json.at("lanes")) {
      LaneState lane;
      lane.cursors = item.at("cursors").get<std::vector<int64_t>>();
      lane.window = item.at("window").get<int64_t>();
      lane.position = item.at("position").get<int64_t>();
      lane.window_step = item.at("window_step").get<int64_t>();
      bool is_valid = lane.window >= 0 && lane.position >= 0 && lane.window_step >= 0;
      for (const int64_t cursor : lane.cursors) is_valid &= cursor >= 0;
      if (!state.lanes.empty()) is_valid &= lane.cursors.size() == num_sources;
      num_sources = lane.cursors.size();
      if (!is_valid) return absl::DataLossError("data state has an impossible lane");
      state.lanes.push_back(std::move(lane));
    }
    return state;
  } catch (const std::exception& error) {
    return absl::DataLossError(absl::StrCat("data state can't be read: ", error.what()));
  }
}

}  // namespace omni::dataloader
