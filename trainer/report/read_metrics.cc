#include "trainer/report/read_metrics.h"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"

namespace omni::trainer {

bool HasEvaluation(const std::string& path, int64_t step) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    // Most lines are steps, which need no parsing.
    if (!absl::StrContains(line, "\"eval/")) continue;
    const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object()) continue;
    const auto found = json.find("step");
    if (found != json.end() && found->is_number_integer() && found->get<int64_t>() == step) {
      return true;
    }
  }
  return false;
}

double TokensReported(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) return 0;  // a pipe would be waited for
  std::ifstream file(path);
  std::string line, last;
  while (std::getline(file, line)) {
    if (absl::StrContains(line, "\"tokens_total\"") && absl::EndsWith(line, "}")) last = line;
  }
  const auto json = nlohmann::json::parse(last, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return 0;
  const auto found = json.find("tokens_total");
  return found != json.end() && found->is_number() ? found->get<double>() : 0.0;
}

}  // namespace omni::trainer
