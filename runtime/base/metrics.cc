#include "runtime/base/metrics.h"

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
#include "runtime/base/address.h"
#include "runtime/base/status.h"
#include "runtime/base/unique_fd.h"

namespace omni {
namespace {

// From a millisecond to ten minutes.
const prometheus::Histogram::BucketBoundaries kSeconds = {0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1,
                                                          3,     10,    30,   100,  300, 600};

// civetweb's words for where to listen: numbers, or "+port" for every address of both families.
absl::StatusOr<std::string> ToCivetweb(const std::string& address) {
  OMNI_ASSIGN_OR_RETURN(const HostPort wanted, ParseHostPort(address));
  OMNI_ASSIGN_OR_RETURN(const ListenPlace place, PlaceToListen(wanted));
  // civetweb does not say why it can't; asked first, the system does.
  absl::Status first;
  for (const SocketAddress& at : place.addresses) {
    const auto fd = ListenOn(at);
    if (fd.ok()) {
      close(*fd);
      if (place.is_every && at.family() == AF_INET6) return absl::StrCat("+", wanted.port);
      return at.ToString();
    }
    first.Update(fd.status());
    if (absl::IsAlreadyExists(fd.status())) break;
  }
  return first;
}

// Connects and hangs up. Failing is no error: there may be nobody any more.
void Knock(const SocketAddress& to) {
  const UniqueFd fd(socket(to.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (fd.valid()) (void)connect(fd.get(), to.get(), to.length());
}

}  // namespace

struct MetricsServer::Impl {
  std::string listens_on;  // "127.0.0.1:0", "+9400"
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
  // An address for "every" one is answered by the loopback.
  const auto place = ParseHostPort(impl_->listens_on);
  auto knock_at = Resolve({.host = place.ok() ? place->host : "localhost", .port = port()});
  if (!knock_at.ok()) return;
  std::atomic<bool> stopped{false};
  std::thread knocking([&] {
    while (!stopped.load(std::memory_order_relaxed)) {
      Knock(knock_at->front());
      absl::SleepFor(absl::Milliseconds(2));
    }
  });
  impl_->exposer.reset();
  stopped.store(true, std::memory_order_relaxed);
  knocking.join();
}

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Create(const Options& options) {
  auto impl = std::make_unique<Impl>();
  impl->labels = options.labels;
  impl->registry = std::make_shared<prometheus::Registry>();
  if (!options.address.empty()) {
    auto listens_on = ToCivetweb(options.address);
    if (!listens_on.ok()) {
      return Annotate(listens_on.status(), absl::StrCat("metrics address ", options.address));
    }
    impl->listens_on = *std::move(listens_on);
    try {
      impl->exposer = std::make_unique<prometheus::Exposer>(impl->listens_on, 1);
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
