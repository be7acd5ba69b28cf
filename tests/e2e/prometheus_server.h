// Debian's Prometheus server as a child process, and its HTTP API.
#pragma once

#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tests/e2e/process.h"

namespace omni::test {

// One sample of an instant query's answer.
struct PrometheusSample {
  std::map<std::string, std::string> labels;
  double value;
};

class PrometheusServer {
 public:
  // Starts `prometheus` on a free port of its own choice, with its configuration and database in
  // `folder`. The configuration is the shipped one (deploy/prometheus/prometheus.yml) with these
  // targets, "host:port", scraped five times a second.
  PrometheusServer(const std::string& folder, const std::vector<std::string>& targets);

  // Until it serves; false after two minutes.
  bool WaitReady();
  std::string output() const { return process_->output(); }

  // The data of /api/v1/PATH. InvalidArgument with the whole answer if it is not "success".
  absl::StatusOr<nlohmann::json> Get(const std::string& path) const;
  // An instant query.
  absl::StatusOr<std::vector<PrometheusSample>> Query(const std::string& expression) const;

 private:
  std::unique_ptr<ChildProcess> process_;
  int port_ = 0;
};

// 9400 of "127.0.0.1:9400".
int PortOf(const std::string& address);

extern const char kPrometheusConfig[];  // the shipped one

}  // namespace omni::test
