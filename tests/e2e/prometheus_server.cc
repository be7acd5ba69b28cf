#include "tests/e2e/prometheus_server.h"

#include <gtest/gtest.h>
#include <yaml-cpp/yaml.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "runtime/base/status.h"
#include "tests/support/http.h"

namespace omni::test {
namespace {

using Json = nlohmann::json;

std::string Config(const std::vector<std::string>& targets) {
  YAML::Node config = YAML::LoadFile(kPrometheusConfig);
  config["global"]["scrape_interval"] = "200ms";
  YAML::Node jobs = config["scrape_configs"];
  EXPECT_EQ(jobs.size(), 1u);
  EXPECT_EQ(jobs[0]["static_configs"].size(), 1u);
  jobs[0]["static_configs"][0]["targets"] = targets;
  return YAML::Dump(config);
}

}  // namespace

const char kPrometheusConfig[] = OMNI_SOURCE_DIR "/deploy/prometheus/prometheus.yml";

int PortOf(const std::string& address) {
  int port = 0;
  EXPECT_TRUE(absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port)) << address;
  return port;
}

PrometheusServer::PrometheusServer(const std::string& folder,
                                   const std::vector<std::string>& targets) {
  std::filesystem::create_directories(folder);
  const std::string config = folder + "/prometheus.yml";
  std::ofstream(config) << Config(targets);
  const std::vector<std::string> arguments = {"--config.file=" + config,
                                              "--storage.tsdb.path=" + folder + "/data",
                                              "--web.listen-address=127.0.0.1:0"};
  process_ = std::make_unique<ChildProcess>("prometheus", arguments);
}

// It logs its port: msg="Listening on" address=127.0.0.1:37203.
bool PrometheusServer::WaitReady() {
  constexpr char kPlace[] = "msg=\"Listening on\" address=";
  return WaitFor([&] {
    const std::string log = process_->output();
    const size_t place = log.find(kPlace);
    const size_t end = log.find('\n', place);
    if (place == std::string::npos || end == std::string::npos) return false;
    port_ = PortOf(log.substr(place, end - place));
    const auto reply = HttpGet(port_, "/-/ready");
    return reply.ok() && reply->status == 200;
  });
}

absl::StatusOr<Json> PrometheusServer::Get(const std::string& path) const {
  OMNI_ASSIGN_OR_RETURN(const HttpReply reply, HttpGet(port_, "/api/v1/" + path));
  Json json = Json::parse(reply.body, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || json.value("status", "") != "success") {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", reply.body));
  }
  return json.at("data");
}

absl::StatusOr<std::vector<PrometheusSample>> PrometheusServer::Query(
    const std::string& expression) const {
  std::string escaped;
  for (const unsigned char c : expression) absl::StrAppendFormat(&escaped, "%%%02X", c);
  OMNI_ASSIGN_OR_RETURN(const Json data, Get("query?query=" + escaped));
  std::vector<PrometheusSample> samples;
  for (const Json& found : data.at("result")) {
    PrometheusSample& sample = samples.emplace_back();
    sample.labels = found.at("metric").get<std::map<std::string, std::string>>();
    sample.value = std::stod(found.at("value").at(1).get<std::string>());
  }
  return samples;
}

}  // namespace omni::test
