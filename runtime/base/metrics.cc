#include "runtime/base/metrics.h"

#include <netdb.h>
#include <prometheus/counter.h>
#include <prometheus/exposer.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "absl/time/clock.h"
#include "runtime/base/status.h"

namespace omni {
namespace {

// From a millisecond to ten minutes.
const prometheus::Histogram::BucketBoundaries kSeconds = {0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1,
                                                          3,     10,    30,   100,  300, 600};

// "host:9400" or "[::1]:9400" without the port and the brackets.
std::string HostOf(const std::string& address) {
  std::string host = address.substr(0, address.rfind(':'));
  if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
  return host;
}

// Connects and hangs up. Failing is no error: there may be nobody any more.
void Knock(const addrinfo& to) {
  const int fd = socket(to.ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return;
  (void)connect(fd, to.ai_addr, to.ai_addrlen);
  close(fd);
}

}  // namespace

struct MetricsServer::Impl {
  std::string address;
  Labels labels;
  std::shared_ptr<prometheus::Registry> registry;  // shared: us and the exposer
  std::unique_ptr<prometheus::Exposer> exposer;
};

MetricsServer::MetricsServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

// civetweb polls its listening socket for two seconds at a time and looks at its stop flag in
// between; no option changes that (1.15). A connection ends the poll, so we knock until it has
// stopped.
MetricsServer::~MetricsServer() {
  if (impl_->exposer == nullptr) return;
  addrinfo* found = nullptr;
  const std::string host = HostOf(impl_->address), service = std::to_string(port());
  if (getaddrinfo(host.c_str(), service.c_str(), nullptr, &found) != 0) return;
  std::atomic<bool> stopped{false};
  std::thread knocking([&] {
    while (!stopped.load(std::memory_order_relaxed)) {
      Knock(*found);
      absl::SleepFor(absl::Milliseconds(2));
    }
  });
  impl_->exposer.reset();
  stopped.store(true, std::memory_order_relaxed);
  knocking.join();
  freeaddrinfo(found);
}

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Create(const Options& options) {
  auto impl = std::make_unique<Impl>();
  impl->address = options.address;
  impl->labels = options.labels;
  impl->registry = std::make_shared<prometheus::Registry>();
  if (!options.address.empty()) {
    try {
      impl->exposer = std::make_unique<prometheus::Exposer>(options.address, 1);
      impl->exposer->RegisterCollectable(impl->registry);
    } catch (const std::exception& e) {
      return absl::UnavailableError(
          absl::StrCat("metrics address ", options.address, ": can't listen: ", e.what()));
    }
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

int MetricsServer::port() const {
  return impl_->exposer == nullptr ? 0 : impl_->exposer->GetListeningPorts().front();
}

std::string MetricsServer::Text() const {
  return prometheus::TextSerializer().Serialize(impl_->registry->Collect());
}

}  // namespace omni
