// Prometheus metrics of one process, served over HTTP.
//
//   OMNI_ASSIGN_OR_RETURN(auto metrics, MetricsServer::Create({.address = "127.0.0.1:0",
//                                                              .labels = {{"rank", "3"}}}));
//   metrics->Set("omnitrain_loss", "Training loss of the last step", {}, 2.31);
//   metrics->Add("omnitrain_tokens_total", "Tokens trained on", {{"source", "image"}}, 512);
//
// Names follow Prometheus' rules (checked by promtool): counters end in _total, times are in
// seconds. Calls are thread-safe and cost about a microsecond.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace omni {

class MetricsServer {
 public:
  using Labels = std::map<std::string, std::string>;
  struct Options {
    std::string address;  // see PlaceToListen, port 0 for any free one; "" serves nothing
    Labels labels;        // on every metric
  };

  // Errors as ListenOn if the address can't be listened on.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Create(const Options& options);
  ~MetricsServer();

  void Set(const std::string& name, const std::string& help, const Labels& labels, double value);
  void Add(const std::string& name, const std::string& help, const Labels& labels,
           double increment);
  // A histogram of durations, in seconds.
  void Observe(const std::string& name, const std::string& help, const Labels& labels,
               double seconds);

  int port() const;          // 0 if nothing is served
  std::string Text() const;  // what a scrape would read

 private:
  struct Impl;
  explicit MetricsServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace omni
