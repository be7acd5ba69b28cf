#include "runtime/base/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include "runtime/base/status.h"
#include "runtime/base/text_server.h"

namespace omni {
namespace {

// From a millisecond to ten minutes.
const prometheus::Histogram::BucketBoundaries kSeconds = {0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1,
                                                          3,     10,    30,   100,  300, 600};

}  // namespace

struct MetricsServer::Impl {
  Labels labels;
  std::shared_ptr<prometheus::Registry> registry;  // shared: us and the server
  std::unique_ptr<TextServer> server;
};

MetricsServer::MetricsServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

MetricsServer::~MetricsServer() = default;

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Create(const Options& options) {
  auto impl = std::make_unique<Impl>();
  impl->labels = options.labels;
  impl->registry = std::make_shared<prometheus::Registry>();
  if (!options.address.empty()) {
    auto server = TextServer::Create(options.address, "/metrics", [registry = impl->registry] {
      return prometheus::TextSerializer().Serialize(registry->Collect());
    });
    if (!server.ok()) {
      return Annotate(server.status(), absl::StrCat("metrics address ", options.address));
    }
    impl->server = *std::move(server);
  }
  return std::unique_ptr<MetricsServer>(new MetricsServer(std::move(impl)));
}

void MetricsServer::Set(const std::string& name, const std::string& help, const Labels& labels,
                        double value) {
  prometheus::BuildGauge()
      .Name(name)
      .Help(help)
      .Labels(impl_->labels)
      .Register(*impl_->registry)
      .Add(labels)
      .Set(value);
}

void MetricsServer::Add(const std::string& name, const std::string& help, const Labels& labels,
                        double increment) {
  prometheus::BuildCounter()
      .Name(name)
      .Help(help)
      .Labels(impl_->labels)
      .Register(*impl_->registry)
      .Add(labels)
      .Increment(increment);
}

void MetricsServer::Observe(const std::string& name, const std::string& help, const Labels& labels,
                            double seconds) {
  prometheus::BuildHistogram()
      .Name(name)
      .Help(help)
      .Labels(impl_->labels)
      .Register(*impl_->registry)
      .Add(labels, kSeconds)
      .Observe(seconds);
}

int MetricsServer::port() const { return impl_->server == nullptr ? 0 : impl_->server->port(); }

std::string MetricsServer::Text() const {
  return prometheus::TextSerializer().Serialize(impl_->registry->Collect());
}

}  // namespace omni
