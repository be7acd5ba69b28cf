#include "runtime/comm/tcp.h"

#include <unistd.h>

#include <utility>

#include "runtime/base/address.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/comm/engine.h"
#include "runtime/comm/peer_links.h"
#include "runtime/comm/sockets.h"
#include "runtime/comm/tcp_transport.h"

namespace omni {

absl::StatusOr<TcpListener> TcpListener::Create(const std::string& host,
                                                const std::string& advertised_host) {
  OMNI_ASSIGN_OR_RETURN(UniqueFd fd, comm::Listen(JoinHostPort(host, 0)));
  OMNI_ASSIGN_OR_RETURN(std::string address, comm::ListenAddress(fd, advertised_host));
  return TcpListener(fd.Release(), std::move(address));
}

TcpListener::~TcpListener() {
  if (fd_ >= 0) close(fd_);
}

TcpListener::TcpListener(TcpListener&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), address_(std::move(other.address_)) {}

TcpListener& TcpListener::operator=(TcpListener&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(address_, other.address_);
  return *this;
}

absl::StatusOr<std::unique_ptr<Communicator>> ConnectTcp(TcpListener listener,
                                                         absl::Span<const std::string> addresses,
                                                         int32_t rank, const CommOptions& options) {
  const int32_t size = static_cast<int32_t>(addresses.size());
  OMNI_CHECK(rank >= 0 && rank < size);
  auto links = std::make_shared<comm::PeerLinks>(
      rank, size, UniqueFd(std::exchange(listener.fd_, -1)),
      std::vector<std::string>(addresses.begin(), addresses.end()), options);
  OMNI_RETURN_IF_ERROR(links->ConnectAll());
  return comm::MakeWorld(std::move(links), comm::MakeTcpTransportFactory(), options);
}

}  // namespace omni
